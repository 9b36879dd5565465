"""Checks of arguments. Each raises torch.nn's type of error, with the argument, what it was and what it should be.

Messages that PyTorch's own tests look for begin as PyTorch's do. torch.nn raises AttributeError and IndexError where it
meets something that is no tensor or no pair; here that is a TypeError or RuntimeError with a reason.
"""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence
from typing import Any

import torch

from rnnkit.core.cells import Cell

Tensor = Any  # torch.Tensor: type checkers run without PyTorch


def options(
    input_size: Any,
    hidden_size: Any,
    num_layers: Any,
    bias: Any,
    batch_first: Any,
    dropout: Any,
    bidirectional: Any,
    proj_size: Any,
) -> None:
    """Arguments of a layer's constructor. Any truth value is a `bidirectional`, as in torch.nn."""
    for name, flag in (("bias", bias), ("batch_first", batch_first)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} should be of type bool, got: {_kind(flag)} {flag!r}")
    for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
        if not isinstance(size, int):
            raise TypeError(f"{name} should be of type int, got: {_kind(size)} {size!r}")
    for name, size in (("num_layers", num_layers), ("proj_size", proj_size)):
        try:
            operator.index(size)
        except TypeError:
            raise TypeError(f"{name} should be of type int, got: {_kind(size)} {size!r}") from None
    for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
        if size <= 0:
            raise ValueError(f"{name} must be greater than zero, got {size}")
    if proj_size < 0:
        raise ValueError(f"proj_size should be a positive integer or zero to disable projections, got {proj_size}")
    if proj_size >= hidden_size:
        raise ValueError(f"proj_size has to be smaller than hidden_size = {hidden_size}, got {proj_size}")
    _dropout(dropout)


def _dropout(value: Any) -> None:
    expected = "dropout should be a number in range [0, 1] representing the probability of an element being zeroed"
    got = f"got {_kind(value)} {value!r}"
    if not isinstance(value, (numbers.Number, str)) and not hasattr(value, "__float__"):
        raise TypeError(f"{expected}, {got}")
    number = isinstance(value, numbers.Number) and not isinstance(value, (bool, complex))
    if not number or not 0 <= value <= 1:
        raise ValueError(f"{expected}, {got}")


def no_such(layer: str, unknown: dict[str, Any]) -> None:
    """Raises for keyword arguments that the layer does not have."""
    if "proj_size" in unknown:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
    if unknown:
        raise TypeError(f"{layer}() got an unexpected keyword argument {next(iter(unknown))!r}")


def tensor(name: str, value: Any, expected: str = "a torch.Tensor") -> None:
    """`value` is a tensor, and a dense one: strides say where its elements are."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be {expected}, got {_kind(value)}")
    _dense(name, value)


def _dense(name: str, value: Tensor) -> None:
    if value.layout is not torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else f"layout {value.layout}"
        raise RuntimeError(f"{name} must be a dense tensor, got {kind}")


def pair(hx: Any, unbatched: bool, batched: int) -> tuple[Tensor, Tensor]:
    """hx of an LSTM as a tuple. torch.nn takes both states as one tensor too, if they are unbatched.

    batched: number of dimensions of a batched state. torch.nn refuses one tensor of more with a TypeError.
    """
    if isinstance(hx, torch.Tensor) and not (unbatched and hx.shape[:1] == (2,)):
        error = TypeError if hx.dim() > batched else RuntimeError
        raise error(f"hx must be a pair (h_0, c_0) of tensors, got one tensor of shape {tuple(hx.shape)}")
    if not isinstance(hx, (tuple, list, torch.Tensor)):
        raise TypeError(f"hx must be a pair (h_0, c_0) of tensors, got {_kind(hx)}")
    if len(hx) != 2:
        raise RuntimeError(f"hx must be a pair (h_0, c_0): an LSTM expects two hidden states, got {len(hx)}")
    tensor("hx[0]", hx[0])
    tensor("hx[1]", hx[1])
    return hx[0], hx[1]


def several(hx: Any, names: Sequence[str]) -> tuple[Tensor, ...]:
    """hx of a layer with more than two states as a tuple. names: of the states."""
    wanted = f"hx must be a tuple of {len(names)} tensors ({', '.join(f'{name}_0' for name in names)})"
    if isinstance(hx, torch.Tensor):
        raise TypeError(f"{wanted}, got one tensor of shape {tuple(hx.shape)}")
    if not isinstance(hx, (tuple, list)):
        raise TypeError(f"{wanted}, got {_kind(hx)}")
    if len(hx) != len(names):
        raise RuntimeError(f"{wanted}, got {len(hx)}")
    for k, state in enumerate(hx):
        tensor(f"hx[{k}]", state)
    return tuple(hx)


def dimensions(expected: int, states: Sequence[Tensor]) -> None:
    """The states have as many dimensions as the input."""
    dims = [s.dim() for s in states]
    if dims == [expected] * len(dims):
        return
    kind = "batched 3-D" if expected == 3 else "unbatched 2-D"
    if len(states) == 1:
        raise RuntimeError(f"For {kind} input, hx should also be {expected}-D but got {dims[0]}-D tensor")
    got = ", ".join(f"{d}-D" for d in dims)
    which = "hx and cx" if len(states) == 2 else "the tensors of hx"
    raise RuntimeError(f"For {kind} input, {which} should also be {expected}-D but got ({got}) tensors")


def lengths(value: Tensor, x: Tensor) -> None:
    """A tensor of lengths has whole numbers that can be read. Their shape and values: rnnkit/core/checks.py."""
    if value.is_floating_point() or value.is_complex() or value.dtype is torch.bool:
        raise TypeError(f"lengths must be whole numbers, got dtype {value.dtype}")
    if value.layout is not torch.strided:
        raise TypeError(f"lengths must be a dense tensor, got layout {value.layout}")
    if value.is_meta and not x.is_meta:
        raise RuntimeError(f"lengths must have values, as input on {x.device}, got a tensor on meta")


def step_flags(name: str, value: Any, x: Tensor, batched: bool, batch_first: bool) -> Tensor:
    """Flags per step of a traced call as a bool tensor (T, B) on the host. x (T, B, I)."""
    found = torch.as_tensor(value)
    T, B, _ = x.shape
    letters, shape = ("(T,)", (T,)) if not batched else ("(B, T)", (B, T)) if batch_first else ("(T, B)", (T, B))
    if tuple(found.shape) != shape:
        raise ValueError(f"{name} must have shape {letters} = {shape}, got {tuple(found.shape)}")
    if found.dtype is not torch.bool:
        raise TypeError(f"{name} must be booleans, got dtype {found.dtype}: {name} != 0 converts numbers")
    if not batched:
        found = found.unsqueeze(1)
    elif batch_first:
        found = found.transpose(0, 1)
    return found.to("cpu")


def one_kind(x: Tensor, states: Sequence[Tensor], weight: Tensor) -> None:
    """input, states and weights have one dtype and are on one device. weight: the first; `weights` has the others."""
    dtype = x.dtype
    device = x.device
    for k, other in enumerate((weight, *states)):
        if other.dtype is not dtype or other.device != device:
            name = "the weights" if k == 0 else "hx" if len(states) == 1 else f"hx[{k - 1}]"
            got = f"{other.dtype} on {other.device}"
            raise RuntimeError(f"{name} must have the dtype and device of input, {dtype} on {device}, got {got}")


def weights(given: Sequence[Tensor], cell: Cell, directions: int, I: int) -> None:
    """Weights in the order of `_flat_weights` have the shapes of a stack whose input has I features, and one dtype and
    device."""
    if len(given) < 2 or len(given[1].shape) != 2:
        raise RuntimeError(f"weights must be 2 to 6 for each layer and direction, got {len(given)}")
    GH, R = given[1].shape
    H = GH // cell.n_gates
    biased = len(given) > 2 and len(given[2].shape) == 1
    kinds = ("weight_ih", "weight_hh", *("bias_ih", "bias_hh") * biased)
    unit = (cell.unit_parameter,) * bool(cell.unit_weights)
    projected = cell.projects and R != H and len(given) % ((len(kinds) + 1 + len(unit)) * directions) == 0
    R = R if projected else H
    kinds = (*kinds, *("weight_hr",) * projected, *unit)
    if len(given) % (len(kinds) * directions):
        wanted = f"{', '.join(kinds)} for each layer and each of {directions} directions"
        got = f"{len(given)} weights, with a weight_hh_l0 of shape {tuple(given[1].shape)}"
        raise RuntimeError(f"weights must be {wanted}, got {got}")
    shapes = {"weight_hh": (GH, R), "bias_ih": (GH,), "bias_hh": (GH,), "weight_hr": (R, H)}
    shapes[cell.unit_parameter] = (len(cell.unit_weights), H)
    for k, weight in enumerate(given):
        slot, part = divmod(k, len(kinds))
        layer, direction = divmod(slot, directions)
        name = f"{kinds[part]}_l{layer}{'_reverse' * direction}"
        _dense(name, weight)
        shape = shapes.get(kinds[part], (cell.n_gates * H, directions * R if layer else I))
        if tuple(weight.shape) != shape:
            raise RuntimeError(f"{name} must have the shape {shape}, got {tuple(weight.shape)}")
        if (weight.dtype, weight.device) != (given[0].dtype, given[0].device):
            expected = f"{given[0].dtype} on {given[0].device}"
            raise RuntimeError(f"{name} must be {expected}, as weight_ih_l0, got {weight.dtype} on {weight.device}")
        if weight.numel() and not weight.data_ptr():
            raise RuntimeError(f"{name} must have memory, got a tensor whose storage has been freed")


def states(given: Sequence[Tensor], ends: Sequence[tuple[int, int]], B: int) -> None:
    """The initial states have the shapes that the weights and x give them. ends: as in WeightViews."""
    expected = [(slots, B, width) for slots, width in ends]
    got = [tuple(s.shape) for s in given]
    if got != expected:
        raise RuntimeError(f"state0 must have the shapes {expected}, got {got}")


def _kind(value: Any) -> str:
    return type(value).__name__
