"""The parameters of a recurrent layer or Cell: names, shapes, initial values, and the arguments that its repr shows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rnnkit.core import checks
from rnnkit.core.cells import Cell
from rnnkit.core.option_arguments import ARGUMENTS
from rnnkit.core.regularisation import regularisation_arguments

# Fields of Weights and PyTorch's names for them.
PARTS = (
    ("w_ih", "weight_ih"),
    ("w_hh", "weight_hh"),
    ("b_ih", "bias_ih"),
    ("b_hh", "bias_hh"),
    ("w_hr", "weight_hr"),
    ("w_unit", "weight_peephole"),
)


def parameter_names(cell: Cell) -> tuple[str, ...]:
    """PyTorch's names of the fields of Weights, without the suffix of a layer and direction."""
    return (*[name for _, name in PARTS[:-1]], cell.unit_parameter)


# Constructor arguments that a repr omits if they have their default, in the order of the constructors.
DEFAULTS = {
    "num_layers": 1,
    "nonlinearity": "tanh",
    "bias": True,
    "batch_first": False,
    "dropout": 0.0,
    "bidirectional": False,
    "proj_size": 0,
    "reset_after": True,
    **ARGUMENTS,
    "strict": False,
}


def layer_repr(layer: Any) -> str:
    """The repr of a recurrent layer or cell: its sizes, the arguments without their default, and its dtype."""
    arguments = [str(layer.input_size), str(layer.hidden_size)]
    for name, default in DEFAULTS.items():
        value = getattr(layer, name, default)
        if value != default:
            arguments.append(f"{name}={value!r}")
    arguments += regularisation_arguments(getattr(layer, "regularisation", None))
    return f"{type(layer).__name__}({', '.join(arguments)}, dtype={layer._dtype.name})"


def uniform_parameters(
    cell: Cell, I: int, H: int, P: int, bias: bool, dtype: np.dtype, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draws the parameters of one layer and direction from U(-1/sqrt(H), 1/sqrt(H)), as PyTorch does.

    With layer normalisation the gains are 1, and the shift of c and the biases are 0, as PyTorch's LayerNorm has them.
    """
    GH = cell.n_gates * H
    R = P or H
    shapes: dict[str, tuple[int, ...]] = {"weight_ih": (GH, I), "weight_hh": (GH, R)}
    if bias:
        shapes |= {"bias_ih": (GH,), "bias_hh": (GH,)}
    if P:
        shapes["weight_hr"] = (P, H)
    if cell.unit_weights and not cell.normalises:
        shapes[cell.unit_parameter] = (len(cell.unit_weights), H)
    bound = 1 / math.sqrt(H)
    if cell.normalises:
        found = {name: rng.uniform(-bound, bound, shapes[name]).astype(dtype) for name in ("weight_ih", "weight_hh")}
        found |= {name: np.zeros(GH, dtype) for name in shapes if name.startswith("bias")}
        rows = [np.full(H, name != "b_c", dtype) for name in cell.unit_weights]
        return found | {cell.unit_parameter: np.stack(rows)}
    return {name: rng.uniform(-bound, bound, shape).astype(dtype) for name, shape in shapes.items()}


def check_proj_size(proj_size: Any, hidden_size: int) -> int:
    if isinstance(proj_size, checks.NOT_NUMBERS) or not isinstance(proj_size, (int, np.integer)):
        raise TypeError(f"proj_size must be a whole number, got {proj_size!r}")
    if not 0 <= proj_size < hidden_size:
        raise ValueError(f"proj_size must be in [0, hidden_size={hidden_size}), got {proj_size}")
    return int(proj_size)
