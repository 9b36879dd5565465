"""CELLS: one row a cell, and each cell's step as plain NumPy, forward beside backward.

This file is the definition of what rnnkit computes. The compiled kernels are held to it; it is itself held to
finite differences, PyTorch, ONNX Runtime, Keras and JAX by the tests.

Every step works on one time step of one direction:

    x_side   (B, G*H)   x_t W_ih^T + b_ih, gates packed in the order of the row's `gates`
    state    tuple      the states at the step before, in the order of the row's `states`: h (B, R), others (B, H)
    weights  Weights    weight_hh (G*H, R), bias_hh (G*H,) or None, weight_hr (P, H) or None, w_unit (K, H) or None;
                        R = P if projected, else H

`forward` returns the new state and `kept`, the arrays that `backward` reads. `backward` takes the gradient of the new
state and returns the gradients of both sides' pre-activations, of the state before, and of the projection's output.
The two sides differ for the GRU alone, whose n gate multiplies the hidden side by r before adding.

`Cell.with_options` adds options to a row: rnnkit/core/cell_options.py says which, and rnnkit/core/option_steps.py has
their steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from rnnkit.core.cell_options import PLAIN, Options, check_options, constants_of, options_of
from rnnkit.core.devices import array_module

Array = Any
State = tuple[Array, ...]
Kept = dict[str, Array]


class Weights(NamedTuple):
    """Parameters of one layer-direction, in PyTorch's layout. Biases, the projection and w_unit may be None.

    w_unit  (K, H), the weights per unit that `Cell.unit_weights` names
    """

    w_ih: Array
    w_hh: Array
    b_ih: Array | None = None
    b_hh: Array | None = None
    w_hr: Array | None = None
    w_unit: Array | None = None


def each_weight(function: Callable[..., Array], *weights: Weights) -> Weights:
    """The function of all arrays that stand for one parameter. None, in the first of `weights`, stays None."""
    return Weights(*(None if parts[0] is None else function(*parts) for parts in zip(*weights, strict=True)))


class StepGradients(NamedTuple):
    """Gradients of one step: both sides' pre-activations (B, G*H), the state before, and dh (B, P) if projected.

    dunit  (B, K*H), what each row adds to the gradients of the weights per unit, or None. A cell that normalises has
           those of bias_ih and bias_hh behind them, (B, (K + 2 G) H)
    """

    dx_side: Array
    dh_side: Array
    dstate: State
    dprojected: Array | None = None
    dunit: Array | None = None


class Steps(NamedTuple):
    """One time step of a cell in NumPy, see the module's docstring."""

    forward: Callable[[Array, State, Weights], tuple[State, Kept]]
    backward: Callable[[Kept, State, Weights], StepGradients]


@dataclass(frozen=True, eq=False)
class Cell:
    """One row of CELLS: every fact about a cell that layers, backends and kernels need.

    gates         names of the gates, in the order of their blocks in the weights
    states        "h", then the states that stay with their unit: ("h",), ("h", "c"), ("h", "c", "n", "m")
    forward, backward
                  one time step in NumPy; see the module's docstring
    products      the operand of each block of gates on the hidden side, as (operand, first gate, end gate): how the
                  gradients of the pre-activations become those of weight_hh
    saved         names of the values that a fused step saves for backward, per unit, beside the states
    reads_h       whether the pointwise part reads the state before, h'
    splits_sides  whether the gradients of the input side and the hidden side differ
    projects      whether the cell takes a projection, weight_hr
    jumps         whether its gradient jumps where a pre-activation, or the difference of two, changes its sign
    options       what is added to the row of CELLS of the same name
    unit_weights  names of the weights per unit, the rows of Weights.w_unit
    constants     names of the numbers that a call passes beside its arrays (`LayerCall.constants`)
    key           the name and the options as stable text, of compiled kernels and their files. `cell_of` reads it
    steps_at      steps_at(constants): the steps with these numbers. None: forward and backward take none
    gates_from    gates_from(values): the gates that `saved` lacks, by name; see `gates_of`. None: it has all of them
    """

    name: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    forward: Callable[[Array, State, Weights], tuple[State, Kept]]
    backward: Callable[[Kept, State, Weights], StepGradients]
    products: tuple[tuple[str, int, int], ...]
    saved: tuple[str, ...]
    reads_h: bool = False
    splits_sides: bool = False
    projects: bool = False
    jumps: bool = False
    options: Options = PLAIN
    unit_weights: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    steps_at: Callable[[tuple[float, ...]], Steps] | None = None
    gates_from: Callable[[Kept], Kept] | None = None
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", f"{self.name}+{self.options}" if self.options else self.name)

    def __reduce__(self) -> Any:
        return cell_of, (self.key,)

    def with_options(self, options: Options) -> Cell:
        """The row of CELLS of this name with the options: the same object for equal options, the row itself for none.

        Raises ValueError if the cell does not have an option.
        """
        return _with_options(self.name, check_options(self.name, options)) if options else CELLS[self.name]

    def steps(self, constants: tuple[float, ...] = ()) -> Steps:
        """One time step in NumPy, with the numbers that `constants` names."""
        return Steps(self.forward, self.backward) if self.steps_at is None else self.steps_at(constants)

    def gates_of(self, values: Kept) -> Kept:
        """Every gate of some steps, by name. values: what `saved` names, and the states before them, "c_prev"."""
        found = values if self.gates_from is None else values | self.gates_from(values)
        return {gate: found[gate] for gate in self.gates}

    @property
    def n_gates(self) -> int:
        """G."""
        return len(self.gates)

    @property
    def n_saved(self) -> int:
        """How many values per unit and step are saved for backward, beside the states."""
        return len(self.saved)

    @property
    def normalises(self) -> bool:
        """Whether rows are normalised (rnnkit/core/norm_steps.py): biases are then added after that, by the step."""
        return bool(self.options.layer_norm)

    @property
    def unit_parameter(self) -> str:
        """What layers call their parameter of the weights per unit, without the suffix of a layer and direction."""
        return "weight_layer_norm" if self.normalises else "weight_peephole"

    @property
    def n_statistics(self) -> int:
        """How many normalisations a row has per step: for each of them one number is saved for backward."""
        return (2 if self.splits_sides else 1) + self.has_c if self.normalises else 0

    @property
    def n_norm_gradients(self) -> int:
        """How many blocks of H the gradients of what is normalised, scaled and shifted have: see norm_steps.py."""
        return self.n_gates + self.splits_sides if self.normalises else 0

    @property
    def n_unit_sums(self) -> int:
        """How many gradients of weights per unit a step gives: those of w_unit, then of the biases if it adds them."""
        return len(self.unit_weights) + (2 * self.n_gates if self.normalises else 0)

    @property
    def has_c(self) -> bool:
        """Whether the cell has a cell state c."""
        return "c" in self.states

    @property
    def n_cell_states(self) -> int:
        """How many states of (B, H) stay with their unit: 1 for c, 3 for c, n and m."""
        return len(self.states) - 1

    def state_widths(self, R: int, H: int) -> tuple[int, ...]:
        """The widths of the states: R of h, H of the others."""
        return (R,) + (H,) * self.n_cell_states

    @property
    def resets_before(self) -> bool:
        """Whether a step has a second product on the hidden side, whose operand the first one decides: r h'."""
        return len(self.products) > 1


def sigmoid(a: Array) -> Array:
    """1 / (1 + exp(-a)), by the half-angle identity so that no argument overflows."""
    return 0.5 * (1 + np.tanh(0.5 * a))


def _hidden_side(h: Array, weights: Weights, first: int = 0, end: int | None = None) -> Array:
    """h W_hh^T + b_hh over rows [first, end) of the packed gates."""
    product = h @ weights.w_hh[first:end].T
    return product if weights.b_hh is None else product + weights.b_hh[first:end]


# RNN: h = act(x W_ih^T + b_ih + h' W_hh^T + b_hh). Elman, Cognitive Science 14 (1990); torch.nn.RNN.


def _rnn_step(
    activation: Callable[[Array], Array], through: Callable[[Array, Array], Array]
) -> tuple[Callable[..., tuple[State, Kept]], Callable[..., StepGradients]]:
    """forward and backward of an RNN: `through` takes h and dh to the gradient of the pre-activation."""

    def forward(x_side: Array, state: State, weights: Weights) -> tuple[State, Kept]:
        (h_prev,) = state
        h = activation(x_side + _hidden_side(h_prev, weights))
        return (h,), {"h_prev": h_prev, "h": h}

    def backward(kept: Kept, dstate: State, weights: Weights) -> StepGradients:
        (dh,) = dstate
        da = through(kept["h"], dh)
        return StepGradients(da, da, (da @ weights.w_hh,))

    return forward, backward


_TANH = _rnn_step(np.tanh, lambda h, dh: dh * (1 - h * h))
_RELU = _rnn_step(lambda a: np.maximum(a, 0), lambda h, dh: np.where(h <= 0, 0, dh))


# LSTM: i,f,o = sigmoid(.), g = tanh(.); c = f c' + i g; h = o tanh(c), then h W_hr^T under projection.
# Hochreiter and Schmidhuber (1997) with Gers' forget gate (2000); projection: Sak et al. (2014); torch.nn.LSTM.


def _lstm_forward(x_side: Array, state: State, weights: Weights) -> tuple[State, Kept]:
    h_prev, c_prev = state
    i, f, g, o = np.split(x_side + _hidden_side(h_prev, weights), 4, axis=1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c = f * c_prev + i * g
    m = o * np.tanh(c)
    h = m if weights.w_hr is None else m @ weights.w_hr.T
    return (h, c), {"h_prev": h_prev, "c_prev": c_prev, "i": i, "f": f, "g": g, "o": o, "c": c, "m": m}


def _lstm_backward(kept: Kept, dstate: State, weights: Weights) -> StepGradients:
    dh, dc = dstate
    i, f, g, o = kept["i"], kept["f"], kept["g"], kept["o"]
    dm = dh if weights.w_hr is None else dh @ weights.w_hr
    tanh_c = np.tanh(kept["c"])
    dc = dc + dm * o * (1 - tanh_c * tanh_c)
    da = np.concatenate(
        [
            dc * g * i * (1 - i),
            dc * kept["c_prev"] * f * (1 - f),
            dc * i * (1 - g * g),
            dm * tanh_c * o * (1 - o),
        ],
        axis=1,
    )
    return StepGradients(da, da, (da @ weights.w_hh, dc * f), None if weights.w_hr is None else dh)


# GRU, reset after the product: r,z = sigmoid(.); n = tanh(x_n + r (h' W_hn^T + b_hn)); h = (1 - z) n + z h'.
# Cho et al. (2014) in the form of cuDNN and torch.nn.GRU.


def _gru_forward(x_side: Array, state: State, weights: Weights) -> tuple[State, Kept]:
    (h_prev,) = state
    x_r, x_z, x_n = np.split(x_side, 3, axis=1)
    h_r, h_z, h_n = np.split(_hidden_side(h_prev, weights), 3, axis=1)
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    n = np.tanh(x_n + r * h_n)
    h = (1 - z) * n + z * h_prev
    return (h,), {"h_prev": h_prev, "r": r, "z": z, "n": n, "h_side_n": h_n}


def _gru_backward(kept: Kept, dstate: State, weights: Weights) -> StepGradients:
    (dh,) = dstate
    r, z, n = kept["r"], kept["z"], kept["n"]
    da_n = dh * (1 - z) * (1 - n * n)
    da_z = dh * (kept["h_prev"] - n) * z * (1 - z)
    da_r = da_n * kept["h_side_n"] * r * (1 - r)
    dx_side = np.concatenate([da_r, da_z, da_n], axis=1)
    dh_side = np.concatenate([da_r, da_z, da_n * r], axis=1)
    return StepGradients(dx_side, dh_side, (dh * z + dh_side @ weights.w_hh,))


# GRU, reset before the product: n = tanh(x_n + (r h') W_hn^T + b_hn); the rest as above.
# Cho et al. (2014) as first written; Keras reset_after=False, ONNX linear_before_reset=0. A different function, not a
# permutation of the one above.


def _gru_before_forward(x_side: Array, state: State, weights: Weights) -> tuple[State, Kept]:
    (h_prev,) = state
    H = h_prev.shape[1]
    x_r, x_z, x_n = np.split(x_side, 3, axis=1)
    h_r, h_z = np.split(_hidden_side(h_prev, weights, 0, 2 * H), 2, axis=1)
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    rh = r * h_prev
    n = np.tanh(x_n + _hidden_side(rh, weights, 2 * H))
    h = (1 - z) * n + z * h_prev
    return (h,), {"h_prev": h_prev, "r": r, "z": z, "n": n, "rh": rh}


def _gru_before_backward(kept: Kept, dstate: State, weights: Weights) -> StepGradients:
    (dh,) = dstate
    r, z, n, h_prev = kept["r"], kept["z"], kept["n"], kept["h_prev"]
    H = h_prev.shape[1]
    da_n = dh * (1 - z) * (1 - n * n)
    da_z = dh * (h_prev - n) * z * (1 - z)
    drh = da_n @ weights.w_hh[2 * H :]
    da_r = drh * h_prev * r * (1 - r)
    da = np.concatenate([da_r, da_z, da_n], axis=1)
    dh_prev = dh * z + drh * r + da[:, : 2 * H] @ weights.w_hh[: 2 * H]
    return StepGradients(da, da, (dh_prev,))


# sLSTM: i and f are exponential, kept in range by the stabiliser m; c and n are divided by e^m. Beck et al., "xLSTM"
# (2024), in the vanilla form of FlashRNN (Poeppel et al., 2024), whose kernels have these equations too:
#
#     p = log sigmoid(a_f) + m';  m = max(a_i, p), or a_i where n' = 0
#     i = exp(a_i - m);  f = exp(min(p - m, 0));  c = f c' + i tanh(a_z);  n = max(f n' + i, 1);  h = sigmoid(a_o) c / n
#
# n is at least 1 after a step, so n' = 0 marks a unit that has had none: then c' should be 0, and m' is not read. The
# limit of f acts there alone. Gradients are those of the equations, through m too; where two arguments of max or min
# are equal, that of a_i, of f n' + i, and of p - m.


def _slstm_forward(x_side: Array, state: State, weights: Weights) -> tuple[State, Kept]:
    h_prev, c_prev, n_prev, m_prev = state
    a_i, a_f, a_z, a_o = np.split(x_side + _hidden_side(h_prev, weights), 4, axis=1)
    p = m_prev + np.minimum(a_f, 0) - np.log1p(np.exp(-np.abs(a_f)))
    of_f = (a_i < p) & (n_prev != 0)  # where m is p
    m = np.where(of_f, p, a_i)
    i = np.exp(a_i - m)
    f = np.exp(np.minimum(p - m, 0))
    z, o = np.tanh(a_z), sigmoid(a_o)
    c = f * c_prev + i * z
    total = f * n_prev + i
    n = np.maximum(total, 1)
    kept = {"h_prev": h_prev, "c_prev": c_prev, "n_prev": n_prev, "m_prev": m_prev, "i": i, "f": f, "z": z, "o": o}
    kept |= {"f_slope": sigmoid(-a_f), "of_f": of_f, "limited": p > m, "below": total < 1, "c": c, "n": n}
    return (o * c / n, c, n, m), kept


def _slstm_backward(kept: Kept, dstate: State, weights: Weights) -> StepGradients:
    dh, dc, dn, dm = dstate
    i, f, z, o, c, n = (kept[name] for name in ("i", "f", "z", "o", "c", "n"))
    dc = dc + dh * o / n
    dn = np.where(kept["below"], 0, dn - dh * o * c / (n * n))
    by_i = (dc * z + dn) * i
    by_f = np.where(kept["limited"], 0, (dc * kept["c_prev"] + dn * kept["n_prev"]) * f)
    dm = dm - by_i - by_f
    dp = by_f + np.where(kept["of_f"], dm, 0)
    da_i = by_i + np.where(kept["of_f"], 0, dm)
    da = np.concatenate([da_i, dp * kept["f_slope"], dc * i * (1 - z * z), dh * c / n * o * (1 - o)], axis=1)
    return StepGradients(da, da, (da @ weights.w_hh, dc * f, dn * f, dp))


def _slstm_gates(values: Kept) -> Kept:
    """i and f from lead = a_i - p."""
    n_prev = values["n_prev"]
    xp: Any = array_module(n_prev)
    lead = values["lead"].astype(n_prev.dtype)
    e = xp.exp(-xp.abs(lead))
    one = e.dtype.type(1)
    return {"i": xp.where((lead < 0) & (n_prev != 0), e, one), "f": xp.where(lead < 0, one, e)}


_H_PREV = "h_prev"

CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        Cell(
            "rnn_tanh",
            gates=("h",),
            states=("h",),
            forward=_TANH[0],
            backward=_TANH[1],
            products=((_H_PREV, 0, 1),),
            saved=("h",),
        ),
        Cell(
            "rnn_relu",
            gates=("h",),
            states=("h",),
            forward=_RELU[0],
            backward=_RELU[1],
            products=((_H_PREV, 0, 1),),
            saved=("h",),
            jumps=True,
        ),
        Cell(
            "gru",
            gates=("r", "z", "n"),
            states=("h",),
            forward=_gru_forward,
            backward=_gru_backward,
            products=((_H_PREV, 0, 3),),
            saved=("r", "z", "n", "h_side_n"),
            reads_h=True,
            splits_sides=True,
        ),
        Cell(
            "gru_reset_before",
            gates=("r", "z", "n"),
            states=("h",),
            forward=_gru_before_forward,
            backward=_gru_before_backward,
            products=((_H_PREV, 0, 2), ("rh", 2, 3)),
            saved=("r", "z", "n"),
            reads_h=True,
        ),
        Cell(
            "lstm",
            gates=("i", "f", "g", "o"),
            states=("h", "c"),
            forward=_lstm_forward,
            backward=_lstm_backward,
            products=((_H_PREV, 0, 4),),
            saved=("i", "f", "g", "o"),
            projects=True,
        ),
        Cell(
            "slstm",
            gates=("i", "f", "z", "o"),
            states=("h", "c", "n", "m"),
            forward=_slstm_forward,
            backward=_slstm_backward,
            products=((_H_PREV, 0, 4),),
            saved=("lead", "f_slope", "z", "o"),
            jumps=True,
            gates_from=_slstm_gates,
        ),
    )
}


@cache
def cell_of(key: str) -> Cell:
    """The cell of a `Cell.key`. Raises KeyError for an unknown name, ValueError for unknown options."""
    name, _, options = key.partition("+")
    return CELLS[name].with_options(options_of(options))


@cache
def _with_options(name: str, options: Options) -> Cell:
    from rnnkit.core.norm_steps import norm_fields  # these import this file
    from rnnkit.core.option_steps import steps_of, values_to_save

    row = CELLS[name]
    if not options:
        return row
    if not options.changes_formulas:
        return replace(row, options=options)
    if options.layer_norm:
        return replace(row, options=options, constants=constants_of(name, options), **norm_fields(row, options))
    constants = constants_of(name, options)
    steps_at = steps_of(name, options)
    forward, backward = steps_at((1.0,) * len(constants))
    return replace(
        row,
        forward=forward,
        backward=backward,
        saved=values_to_save(row, options),
        jumps=row.jumps or options.jumps,
        options=options,
        unit_weights=("p_i", "p_f", "p_o") if options.peephole else (),
        constants=constants,
        steps_at=steps_at,
    )
