"""The two operators that PyTorch sees, `rnnkit::forward` and `rnnkit::backward`: a whole stack of layers each.

They are what a compiled or exported model contains, one node each. All that backward needs is in their arguments and in
`reserve`, a tensor of bytes (rnnkit/functional/reserve.py). Neither is differentiable by itself: see
rnnkit/torch/autograd.py.

Everything is time-major. x (T, B, I); state0 one tensor (L*D, B, ·) a state, or none for zeros; weights as
`_flat_weights` of PyTorch's layers; cell as `text_of` of rnnkit/core/option_arguments.py, a name in CELLS for a cell
without options; masks of dropout, one (T, B, D*R) a layer but the last, or none; lengths (B,) int64
or None.

rates: those of a `Regularisation` in the order of its fields, or none. With them the last of `masks` is the noise on
the CPU, int64: (0,) in evaluation mode, (1,) the seed, or (1 + 2 B,) the seed, the number of each row, and the time of
its first step. So no random mask is stored for backward.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rnnkit
from rnnkit.backends import Choice, Sizes, select
from rnnkit.core import checks as core_checks
from rnnkit.core.cells import Array, Cell
from rnnkit.core.devices import array_module
from rnnkit.core.option_arguments import parsed
from rnnkit.core.regularisation import Noise, Regularisation
from rnnkit.functional import stack, stack_backward
from rnnkit.functional.reserve import Reserve, stack_bytes
from rnnkit.kernels.cpu.cache import sources_digest
from rnnkit.torch import checks
from rnnkit.torch.arrays import (
    Tensor,
    WeightViews,
    as_array,
    as_tensors,
    new_bytes,
    on_device,
    parts_of,
    state_shapes,
    weight_views,
)

LIBRARY = torch.library.Library("rnnkit", "DEF")
LIBRARY.define(
    "forward(Tensor x, Tensor[] state0, Tensor[] weights, Tensor[] masks, Tensor? lengths, *, "
    'str cell, str? backend, bool bidirectional, bool keep, str layout="", float[] rates=[]) -> Tensor[]'
)
LIBRARY.define(
    "backward(Tensor? dy, Tensor?[] dstate_n, Tensor x, Tensor[] state0, Tensor[] weights, Tensor[] masks, "
    "Tensor? lengths, Tensor reserve, *, str cell, str? backend, bool bidirectional, float[] rates=[], "
    "bool wants_dx=True, bool wants_dweights=True) -> Tensor[]"
)


def _layout() -> str:
    """A digest of rnnkit's sources, which decide what is where in a reserve."""
    digest = hashlib.sha256(f"{rnnkit.__version__} {sources_digest()}".encode())
    folder = Path(rnnkit.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


# Traced calls have it as the argument `layout`. PyTorch finds compiled graphs on disk by the operators and arguments of
# a graph, and does not see that an operator has changed. A graph also contains the sizes of the reserves.
LAYOUT = _layout()


def check_layout(layout: str) -> None:
    """Raises in a graph that keeps what backward needs as other sources of rnnkit do. layout: as of `forward`."""
    if layout not in ("", LAYOUT):
        raise RuntimeError(
            "this graph was compiled with other sources of rnnkit, and keeps what backward needs in another way: "
            "compile the model again"
        )


# On the CPU, tensors of these dtypes are computed in float32 and rounded at the end: NumPy has bfloat16 only with the
# package ml_dtypes.
_WIDENED = () if importlib.util.find_spec("ml_dtypes") else (torch.bfloat16,)


@cache
def choice_of(device: Any, dtype: Any, cell: str, backend: str | None, strict: bool = False) -> Choice:
    """The backend for tensors of this torch.device and torch.dtype."""
    on_cuda = device.type == "cuda"
    name = "float32" if dtype in _WIDENED and not on_cuda else str(dtype).removeprefix("torch.")
    return select(f"cuda:{device.index or 0}" if on_cuda else "cpu", name, parsed(cell)[0].key, backend, strict)


def forward(
    x: Tensor,
    state0: Sequence[Tensor],
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    lengths: Tensor | None,
    *,
    cell: str,
    backend: str | None,
    bidirectional: bool,
    keep: bool,
    layout: str = "",
    rates: Sequence[float] = (),
) -> list[Tensor]:
    """y (T, B, D*R), the final states (L*D, B, ·), and with `keep` the reserve (bytes,) uint8.

    layout: LAYOUT of the process that traced the call, or "" for an eager call.
    """
    if keep:
        check_layout(layout)
    if x.dtype in _WIDENED and x.device.type == "cpu":
        wide: Any = (x.float(), _floats(state0), _floats(weights), _floats(masks), lengths)
        results = forward(*wide, cell=cell, backend=backend, bidirectional=bidirectional, keep=keep, rates=rates)
        return [a if a.dtype == torch.uint8 else a.to(x.dtype) for a in results]
    D = 2 if bidirectional else 1
    with on_device(x):
        choice = choice_of(x.device, x.dtype, cell, backend)
        row, constants = parsed(cell)
        views = weight_views(weights, row, D, x.shape[2], constants)
        reserve = None
        if keep:
            kind = (x.device, x.dtype, cell, backend)
            shapes = (x.shape, weights[1].shape)
            reserve = new_bytes(x, _reserve_bytes(kind, shapes, len(views.layers), D, lengths is not None))
        dropped, noise = _noise_of(masks, rates)
        call = _stack_call(x, state0, views, dropped, lengths, choice, reserve, noise)
        y, state_n, _ = stack.forward(call)
        results = as_tensors([y, *state_n])
        return results if reserve is None else [*results, reserve]


def backward(
    dy: Tensor | None,
    dstate_n: Sequence[Tensor | None],
    x: Tensor,
    state0: Sequence[Tensor],
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    lengths: Tensor | None,
    reserve: Tensor,
    *,
    cell: str,
    backend: str | None,
    bidirectional: bool,
    rates: Sequence[float] = (),
    wants_dx: bool = True,
    wants_dweights: bool = True,
) -> list[Tensor]:
    """The gradients of x, of state0 and of weights. None for dy or a final state's gradient means zeros.

    wants_dx, wants_dweights: whether to compute those of x and of weights. Without, they are not in the list.
    """
    if x.dtype in _WIDENED and x.device.type == "cpu":
        of_forward = (x.float(), _floats(state0), _floats(weights), _floats(masks), lengths, reserve)
        wide: Any = (_float(dy), _floats(dstate_n), *of_forward)
        grads = backward(
            *wide,
            cell=cell,
            backend=backend,
            bidirectional=bidirectional,
            rates=rates,
            wants_dx=wants_dx,
            wants_dweights=wants_dweights,
        )
        return [g.to(x.dtype) for g in grads]
    with on_device(x):
        choice = choice_of(x.device, x.dtype, cell, backend)
        row, constants = parsed(cell)
        views = weight_views(weights, row, 2 if bidirectional else 1, x.shape[2], constants)
        dropped, noise = _noise_of(masks, rates)
        call = _stack_call(x, state0, views, (), lengths, choice, reserve, noise)
        saved = stack.restored(call, [as_array(m) for m in dropped])
        ends = tuple([_end_gradient(d, s, not state0) for d, s in zip(dstate_n, call.state0, strict=True)])
        given = (saved, None if dy is None else as_array(dy), ends, call.layers)
        dx, dstate0, dweights = stack_backward.backward(*given, wants_dx, wants_dweights)
        parts = [part for layer in dweights for direction in layer for part in parts_of(direction)]
        found = [*dstate0[: len(state0)], *parts]
        return as_tensors([dx, *found] if wants_dx else found)


def _stack_call(
    x: Tensor,
    state0: Sequence[Tensor],
    views: WeightViews,
    masks: Sequence[Tensor],
    lengths: Tensor | None,
    choice: Choice,
    reserve: Tensor | None,
    noise: Noise | None,
) -> stack.StackCall:
    """The tensors as arrays. reserve: None if nothing is to be kept for backward."""
    array = as_array(x.contiguous())
    T, B, _ = array.shape
    if state0:
        checks.states(state0, views.ends, B)
        states = tuple([as_array(s) for s in state0])
    else:
        xp: Any = array_module(array)
        states = tuple([xp.zeros((slots, B, width), array.dtype) for slots, width in views.ends])
    checked = None if lengths is None else core_checks.lengths(lengths.cpu().numpy(), T, B)
    dropout = None
    if masks:
        arrays = [as_array(m) for m in masks]
        dropout = lambda layer, _: arrays[layer]  # noqa: E731
    memory = None if reserve is None else Reserve(as_array(reserve))
    cell, _, _, constants = views.of
    how = (checked, dropout, reserve is not None, memory, constants, noise)
    return stack.StackCall(cell, choice, array, states, views.layers, *how)


def _noise_of(masks: Sequence[Tensor], rates: Sequence[float]) -> tuple[Sequence[Tensor], Noise | None]:
    """The dropout masks, and the noise of a call."""
    if not rates:
        return masks, None
    *dropped, tensor = masks
    values = tensor.numpy()
    rows, times = np.split(values[1:], 2) if len(values) > 1 else (None, None)
    seed = int(values[0]) % 2**64 if len(values) else None
    of_x, of_h, of_weights, zone_h, zone_c, per_gate, zoned = rates
    found = Regularisation(of_x, of_h, of_weights, zone_h, zone_c, bool(per_gate), bool(zoned))
    return dropped, Noise(found, seed, rows=rows, times=times)


@lru_cache(256)
def _reserve_bytes(kind: Any, shapes: Any, layers: int, directions: int, ragged: bool) -> int:
    """`stack_bytes`, cached. kind: arguments of `choice_of`; shapes: those of x and weight_hh_l0."""
    _, _, cell, _ = kind
    x, w_hh = shapes
    row, _ = parsed(cell)
    sizes = _sizes(x, w_hh, row)
    return stack_bytes(choice_of(*kind), row, sizes, layers, directions, ragged)


def _end_gradient(given: Tensor | None, state0: Array, zeros: bool) -> Array:
    """The gradient of a final state, None for zeros. zeros: whether state0 is, so that it can be the gradient: no
    backend writes into either."""
    if given is not None:
        return as_array(given)
    if zeros:
        return state0
    xp: Any = array_module(state0)
    return xp.zeros(state0.shape, state0.dtype)


def _sizes(x: Any, w_hh: Any, cell: Cell) -> Sizes:
    """x and w_hh: shapes."""
    T, B, I = x
    GH, R = w_hh
    return Sizes(T, B, I, GH // cell.n_gates, R, T * B)


def _floats(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [_float(t) for t in tensors]


def _float(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or not tensor.is_floating_point() else tensor.float()


def _forward_shapes(
    x: Tensor,
    state0: Sequence[Tensor],
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    lengths: Tensor | None,
    *,
    cell: str,
    backend: str | None,
    bidirectional: bool,
    keep: bool,
    layout: str = "",
    rates: Sequence[float] = (),
) -> list[Tensor]:
    """The results of `forward` without their values, for tracing and for tensors on the meta device."""
    D = 2 if bidirectional else 1
    row, _ = parsed(cell)
    sizes = _sizes(x.shape, weights[1].shape, row)
    states = state_shapes(weights, row, sizes.B)
    results = [x.new_empty(shape) for shape in ((sizes.T, sizes.B, D * sizes.R), *states)]
    if not keep:
        return results
    choice = choice_of(x.device, x.dtype, cell, backend)
    size = stack_bytes(choice, row, sizes, states[0][0] // D, D, lengths is not None)
    return [*results, x.new_empty((size,), dtype=torch.uint8)]


def _backward_shapes(
    dy: Tensor | None,
    dstate_n: Sequence[Tensor | None],
    x: Tensor,
    state0: Sequence[Tensor],
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    lengths: Tensor | None,
    reserve: Tensor,
    *,
    cell: str,
    backend: str | None,
    bidirectional: bool,
    rates: Sequence[float] = (),
    wants_dx: bool = True,
    wants_dweights: bool = True,
) -> list[Tensor]:
    of_x = [x] if wants_dx else []
    of_weights = weights if wants_dweights else []
    return [t.new_empty(t.shape) for t in (*of_x, *state0, *of_weights)]


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("forward", forward, _device)
    LIBRARY.impl("backward", backward, _device)
torch.library.register_fake("rnnkit::forward", _forward_shapes, lib=LIBRARY)
torch.library.register_fake("rnnkit::backward", _backward_shapes, lib=LIBRARY)
