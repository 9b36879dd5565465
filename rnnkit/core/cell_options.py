"""Options: what may be added to a cell of CELLS, and the activations that ONNX names.

`Options` says what is compiled: flags and names. The numbers that go with them (a clip value, alpha and beta) are
`constants`, a tuple of floats that each call passes, so that another value compiles nothing. `Cell.constants` names
them in order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from rnnkit.core import checks


class Activation(NamedTuple):
    """One of ONNX's activations: the defaults of alpha and beta.

    None: the activation has no such number. NaN: it has one and no default, so it must be given.
    """

    alpha: float | None = None
    beta: float | None = None

    @property
    def numbers(self) -> int:
        """How many of alpha and beta it has."""
        return (self.alpha is not None) + (self.beta is not None)


# https://onnx.ai/onnx/operators/onnx__LSTM.html; defaults are those of the ONNX operator of the same name.
ACTIVATIONS: dict[str, Activation] = {
    "Relu": Activation(),
    "Tanh": Activation(),
    "Sigmoid": Activation(),
    "Affine": Activation(math.nan, math.nan),
    "LeakyRelu": Activation(0.01),
    "ThresholdedRelu": Activation(1.0),
    "ScaledTanh": Activation(math.nan, math.nan),
    "HardSigmoid": Activation(0.2, 0.5),
    "Elu": Activation(1.0),
    "Softsign": Activation(),
    "Softplus": Activation(),
}
# Activations whose slope jumps: where the pre-activation is near a jump, rounding decides the gradient.
_JUMPS = ("Relu", "LeakyRelu", "ThresholdedRelu", "HardSigmoid")

# Kinds of layer normalisation per cell, with the epsilon of their source. rnnkit/core/norm_steps.py has the equations.
LAYER_NORMS: dict[str, dict[str, float]] = {
    "lstm": {"haste": 1e-5, "torch": 1e-5},
    "gru": {"haste": 1e-5, "dreamer": 1e-3},
}

# What ONNX calls f, g and h: of the gates, of the candidate, of the output. An RNN has f alone.
ROLES = ("f", "g", "h")
DEFAULT_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "rnn_tanh": ("Tanh",),
    "rnn_relu": ("Relu",),
    "gru": ("Sigmoid", "Tanh"),
    "gru_reset_before": ("Sigmoid", "Tanh"),
    "lstm": ("Sigmoid", "Tanh", "Tanh"),
}


@dataclass(frozen=True)
class Options:
    """What is added to a cell. Every default is off, and a cell without options is the row of CELLS itself.

    peephole     i, f and o also read c, through one weight per unit and gate
    clip         the pre-activations of the gates are limited to [-clip, clip]
    cell_clip    c is limited to [-cell_clip, cell_clip]
    coupled      f = 1 - i
    activations  names in ACTIVATIONS, one a role of the cell; () for its own
    layer_norm   a kind in LAYER_NORMS of layer normalisation; "" for none

    What follows acts on the states between steps, and is in no formula of a cell. A call sets it, by its
    `Regularisation`: rnnkit/core/noise_steps.py has the equations.

    zoneout_h, zoneout_c  h and c keep old values at random
    zoned_output          h is made from c after its zoneout
    recurrent_dropout     the operand of the hidden product is masked
    mask_per_gate         by another mask for each gate
    """

    peephole: bool = False
    clip: bool = False
    cell_clip: bool = False
    coupled: bool = False
    activations: tuple[str, ...] = ()
    layer_norm: str = ""
    zoneout_h: bool = False
    zoneout_c: bool = False
    zoned_output: bool = False
    recurrent_dropout: bool = False
    mask_per_gate: bool = False

    def __bool__(self) -> bool:
        return self != PLAIN

    def __str__(self) -> str:
        """The options as text, "" for none: stable, for names of kernels and files. `options_of` reads it."""
        parts = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            parts.append(field.name if value is True else f"{field.name}={text}")
        return "+".join(parts)

    @property
    def jumps(self) -> bool:
        """Whether the gradient jumps where a pre-activation passes a limit or a corner."""
        return self.clip or self.cell_clip or any(name in _JUMPS for name in self.activations)

    @property
    def changes_formulas(self) -> bool:
        """Whether the formulas of a step are not those of the row of CELLS."""
        return bool(self.peephole or self.clip or self.cell_clip or self.coupled or self.activations or self.layer_norm)

    @property
    def has_noise(self) -> bool:
        """Whether a step does anything at random."""
        return self.zoneout_h or self.zoneout_c or self.recurrent_dropout


PLAIN = Options()


def options_of(text: str) -> Options:
    """The reverse of `str(options)`."""
    given: dict[str, Any] = {}
    defaults: dict[str, Any] = {field.name: field.default for field in fields(Options)}
    for part in filter(None, text.split("+")):
        name, equals, value = part.partition("=")
        if name not in defaults:
            raise ValueError(f"{text!r} names no option {name!r}")
        kind: Any = type(defaults[name])
        given[name] = True if not equals else tuple(value.split(",")) if kind is tuple else kind(value)
    return Options(**given)


def check_options(cell: str, options: Options) -> Options:
    """Returns the options as the cell has them: without activations that are its own.

    Raises:
        ValueError: the cell does not have an option, or an activation is unknown.
    """
    own = DEFAULT_ACTIVATIONS.get(cell)
    for name in ("peephole", "cell_clip", "coupled"):
        if getattr(options, name) and cell != "lstm":
            raise ValueError(f"{name} is an option of an LSTM, and the cell is {cell}")
    if own is None and options.changes_formulas:
        raise ValueError(f"the cell {cell} takes no options")
    if options.layer_norm:
        return _check_layer_norm(cell, options)
    _check_noise(cell, options)
    if own is None or not options.activations or options.activations == own:
        return Options(**{**vars(options), "activations": ()})
    if len(options.activations) != len(own):
        raise ValueError(f"activations must be {len(own)} for a {cell} cell, got {len(options.activations)}")
    for name in options.activations:
        checks.one_of("an activation", name, tuple(ACTIVATIONS))
    return options


def _check_noise(cell: str, options: Options) -> None:
    if options.zoneout_c and cell != "lstm":
        raise ValueError(f"zoneout of c is an option of an LSTM, and the cell is {cell}")
    if options.zoneout_c and options.peephole:
        raise ValueError("zoneout of c must be 0 with peephole: o would read c before or after it")
    if options.zoned_output and options.changes_formulas:
        raise ValueError("zoneout_output must be 'raw' for an LSTM with other options")


def _check_layer_norm(cell: str, options: Options) -> Options:
    kinds = LAYER_NORMS.get(cell)
    if kinds is None:
        raise ValueError(f"layer_norm is an option of {' and '.join(LAYER_NORMS)}, and the cell is {cell}")
    checks.one_of("layer_norm", options.layer_norm, tuple(kinds))
    arguments = {"zoneout_h": "zoneout", "zoneout_c": "zoneout", "zoned_output": "zoneout_output"}
    for field in fields(options):
        if field.name != "layer_norm" and getattr(options, field.name) != field.default:
            raise ValueError(f"{arguments.get(field.name, field.name)} must be off with layer_norm")
    return options


def activations_of(cell: str, options: Options) -> tuple[str, ...]:
    """The names of the cell's activations, one a role."""
    return options.activations or DEFAULT_ACTIVATIONS[cell]


def constants_of(cell: str, options: Options) -> tuple[str, ...]:
    """The names of the numbers that a call passes, in order: "clip", "cell_clip", then "alpha_f", "beta_f", ....

    With layer normalisation "norm_eps" alone.
    """
    if options.layer_norm:
        return ("norm_eps",)
    names = [name for name in ("clip", "cell_clip") if getattr(options, name)]
    for role, activation in zip(ROLES, options.activations, strict=False):
        row = ACTIVATIONS[activation]
        names += [f"{name}_{role}" for name in ("alpha", "beta") if getattr(row, name) is not None]
    return tuple(names)
