"""explain(module, input): what a call of one of these layers runs, why, and its memory.

The module's own forward runs, with the operator `rnnkit::forward` replaced by one that notes its arguments and computes
nothing. So autocast, parametrizations, packed sequences and transforms are described as a call would run them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from rnnkit.backends import Sizes
from rnnkit.core import checks
from rnnkit.core.option_arguments import parsed
from rnnkit.explain import NOTHING_FLAGGED, CallSizes, Explanation, explanation, segments_note, together
from rnnkit.functional.step_flags import StepFlags
from rnnkit.torch.arrays import Tensor, parts_of_each
from rnnkit.torch.cell_base import CellBase
from rnnkit.torch.operators import choice_of
from rnnkit.torch.recurrent import Layers
from rnnkit.torch.segmented import on_host, on_host_array


class _Call(NamedTuple):
    """The arguments of a call of `rnnkit::forward` (rnnkit/torch/operators.py), and the bytes of its reserve."""

    x: Tensor
    state0: Sequence[Tensor]
    weights: Sequence[Tensor]
    masks: Sequence[Tensor]
    lengths: Tensor | None
    cell: str
    backend: str | None
    bidirectional: bool
    keep: bool
    reserve: int
    layout: str = ""
    rates: Sequence[float] = ()


class _Noting(TorchDispatchMode):
    """Notes the calls of `rnnkit::forward`, and gives them results without values."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.rnnkit.forward.default:
            return func(*args, **(kwargs or {}))
        device = args[0].device
        on_meta = tree_map_only(torch.Tensor, lambda t: t.to("meta"), (args, kwargs))
        results = [torch.empty_like(r, device=device) for r in func(*on_meta[0], **on_meta[1])]
        reserve = results[-1].nbytes if kwargs["keep"] else 0
        self.calls.append(_Call(*args, **(kwargs | {"reserve": reserve})))
        return results


def explain(
    module: Any,
    input: Any,
    hx: Any = None,
    lengths: Any = None,
    *,
    resets: Any = None,
    mask: Any = None,
    truncate: int | None = None,
) -> Explanation:
    """Describes what `module(input, hx, lengths=lengths)` would run here, without running its kernels.

    The arguments are checked as in a call. It says what holds where it is called: with or without gradients, under
    `torch.autocast`, inside a function that `torch.vmap` maps.

    Args:
        module: an RNN, GRU, LSTM, SLSTM or Cell of rnnkit.torch, built or put there by `rnnkit.torch.replace`.
        input: the input of the call, a tensor or a PackedSequence.
        hx: the initial state of the call, or None for zeros.
        lengths: number of steps of each row, as in the call; None for a Cell.
        resets: where the state is reset, as in the call; None for a Cell. The notes say how they run.
        mask: which steps are not masked, as in the call; None for a Cell.
        truncate: as in the call; None for a Cell. A note says how many calls of the kernels there are.

    Returns:
        An `rnnkit.explain.Explanation`; print it for a table. Its `kept_bytes` are what autograd keeps for backward
        beyond the arguments and the parameters. Its `notes` say whether a derivative is asked for, how many calls of
        the kernels torch.vmap makes, and what torch.compile makes of the layer.

    Raises:
        TypeError: `module` is another module, or an argument has a wrong type.
        ValueError: an argument has a bad shape, value or dtype, as in a call.
        RuntimeError: an argument has a bad shape, as in a call, or the backend cannot run here.

    Examples:
        >>> import torch, rnnkit.torch
        >>> layer = rnnkit.torch.GRU(4, 6, backend="numpy")
        >>> with torch.no_grad():
        ...     explanation = rnnkit.torch.explain(layer, torch.ones(5, 3, 4))
        >>> explanation.backend, explanation.dtype, explanation.kept_bytes
        ('numpy', 'float32', 0)
    """
    if isinstance(module, CellBase):
        of_sequences = {"lengths": lengths, "resets": resets, "mask": mask, "truncate": truncate}
        for name, value in of_sequences.items():
            if value is not None:
                raise TypeError(f"{name} must be None for a Cell, which takes one step")
        options = {}
    elif isinstance(module, Layers):
        options = {"lengths": lengths, "resets": resets, "mask": mask, "truncate": truncate}
    else:
        raise TypeError(_not_a_layer(module))
    data = input.data if isinstance(input, PackedSequence) else input
    given = _storages([data, *_tensors(hx), *module.parameters(), *module.buffers(), *_tensors(vars(module).values())])
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices), _Noting() as noting:  # the forward draws dropout masks
        module.forward(input, hx, **options)
    call = noting.calls[0]
    cast = None
    if call.x.dtype != data.dtype:
        cast = f"torch.autocast casts {_name(data.dtype)} to {_name(call.x.dtype)}"
        if not torch.is_autocast_enabled(data.device.type):
            cast = f"{_name(data.dtype)} with resets or a mask on a CPU is computed in float32 and rounded at the end"
    if resets is not None or mask is not None:
        return _of_segments(noting.calls, module, given, cast, StepFlags(resets, False, mask, False), input, lengths)
    packed = isinstance(input, PackedSequence)
    if truncate is not None and len(noting.calls) > 1:
        found = _of_chunks(noting.calls, module, given, cast, packed, truncate)
    else:
        found = _explanation(call, module, given, cast, len(noting.calls), packed)
    return replace(found, notes=(*found.notes, *_copy_of_lengths(lengths)))


def _copy_of_lengths(lengths: Any) -> tuple[str, ...]:
    if not isinstance(lengths, torch.Tensor) or lengths.is_cpu or lengths.is_meta:
        return ()
    return (f"lengths on {lengths.device} are copied to the host once, which waits for the device",)


def _of_chunks(calls: list[_Call], module: Any, given: set[int], cast: str | None, packed: bool, k: int) -> Explanation:
    """The Explanation of a call with `truncate`: of its calls together, whose outputs are joined at the end."""
    found = [_explanation(call, module, given, cast, 1, packed) for call in calls]
    steps = [call.x.shape[0] * call.x.shape[1] for call in calls]
    outputs = [n * call.weights[1].shape[1] * call.x.itemsize for n, call in zip(steps, calls, strict=True)]
    whole = together(found, outputs)
    if calls[0].keep and module.bidirectional and calls[0].lengths is not None:
        index = 8 * sum(steps) // (2 * module.num_layers)  # of the steps in reverse order
        whole = replace(whole, workspace_bytes=whole.workspace_bytes + index, kept_bytes=whole.kept_bytes + index)
    note = f"truncate={k}: {len(calls)} calls of at most {k} steps, gradients of states cut between them"
    notes = [n for n in found[0].notes if n != ONE_NODE]
    if len(notes) < len(found[0].notes):
        notes.append(f"under torch.compile the call is {len(calls)} nodes of the graph")
    return replace(whole, notes=(note, *notes))


def _of_segments(
    calls: list[_Call],
    module: Any,
    given: set[int],
    cast: str | None,
    flags: StepFlags,
    input: Tensor,
    lengths: Any,
) -> Explanation:
    """The Explanation of a call with resets or a mask: of its calls together."""
    unbatched = input.dim() == 2
    B, T = (1, input.shape[0]) if unbatched else input.shape[:2] if module.batch_first else input.shape[1::-1]
    steps = None if lengths is None else checks.lengths(on_host_array("lengths", lengths), T, B, unbatched)
    D = 2 if module.bidirectional else 1
    segments = on_host(flags).segments(T, B, unbatched, module.batch_first, D, steps)
    found = [_explanation(call, module, given, cast, 1, False) for call in calls]
    if segments is None:
        return replace(found[0], notes=(NOTHING_FLAGGED, *found[0].notes))
    outputs = [call.x.shape[0] * call.x.shape[1] * D * call.weights[1].shape[1] * call.x.itemsize for call in calls]
    whole = together(found, outputs if segments.place is not None else [0])
    # The input of each call exists from the beginning. With gradients it is counted as saved.
    others = 0 if calls[0].keep else sum(call.x.nbytes for call in calls[1:])
    told = (segments_note(segments), *found[0].notes)
    if calls[0].keep and told[-1] == ONE_NODE:
        told = (*told[:-1], f"{ONE_NODE}, and keeps room for twice the steps")
    return replace(whole, workspace_bytes=whole.workspace_bytes + others, notes=told)


def _explanation(call: _Call, module: Any, given: set[int], cast: str | None, calls: int, packed: bool) -> Explanation:
    """given: the storages of the tensors that exist without the call. calls: how many there were. packed: whether the
    input is a PackedSequence."""
    T, B, I = call.x.shape
    cell, _ = parsed(call.cell)
    GH, R = call.weights[1].shape
    D = 2 if call.bidirectional else 1
    L = len(call.weights) // (D * parts_of_each(call.weights, cell))
    steps = T * B if call.lengths is None else int(call.lengths.sum())
    choice = choice_of(call.x.device, call.x.dtype, call.cell, call.backend)
    arguments = [call.x, *call.state0, *call.weights, *([] if call.lengths is None else [call.lengths])]
    copied = sum(a.nbytes for a in arguments if not _exists(a, given))
    copies = sum(a.nbytes for a in (call.x, *call.weights) if not _exists(a, given))
    copies += 0 if call.x.is_contiguous() else call.x.nbytes
    if packed:  # the index of each row-step, and y in its padded form
        copied += 8 * steps
        copies += 8 * steps + T * B * D * R * call.x.itemsize
    wide = choice.dtype.name != _name(call.x.dtype)
    if wide:  # the operator makes float32 tensors of its arguments, and its results from float32 tensors
        results = T * B * D * R + sum(L * D * B * width for width in cell.state_widths(R, GH // cell.n_gates))
        copies += 4 * (results + sum(a.numel() for a in (*arguments, *call.masks)))
    sizes = CallSizes(
        choice=choice,
        cell=cell,
        sizes=Sizes(T, B, I, GH // cell.n_gates, R, steps),
        layers=L,
        directions=D,
        keep=call.keep,
        masks=sum(m.nbytes for m in call.masks),
        drawing=2 * call.masks[0].nbytes if call.masks else 0,
        copies=copies,
        copied=copied,
        reserve=call.reserve if call.keep else None,
        noise=bool(call.rates),
    )
    as_they_are = not wide and all(_exists(w, given) for w in call.weights)
    cached = "are cached, and each call checks whether they are stale" if as_they_are else "are made anew by each call"
    device = str(call.x.device)
    found = explanation(sizes, repr(module), device, f"; packed weights {cached}", _notes(call, module, calls))
    rounded = f"{_name(call.x.dtype)} on a CPU is computed in float32 and rounded at the end" if wide else None
    return replace(found, why="; ".join(filter(None, (found.why, cast, rounded))))


ONE_NODE = "under torch.compile the call is one node of the graph"


def _notes(call: _Call, module: Any, calls: int) -> tuple[str, ...]:
    notes = []
    if call.keep:
        notes.append(
            "a derivative is asked for: backward is one call, a derivative of it is a loop over steps in Python"
        )
    else:
        notes.append("no derivative is asked for: nothing is saved for backward")
    if _under_vmap():
        notes.append(
            f"torch.vmap makes {calls} calls, of which this is one" if calls > 1 else "torch.vmap makes one call"
        )
    if isinstance(module, (nn.RNN, nn.GRU, nn.LSTM)):
        kind = next(k for k in (nn.RNN, nn.GRU, nn.LSTM) if isinstance(module, k)).__name__
        notes.append(f"torch.compile breaks the graph at this layer, an instance of torch.nn.{kind}")
    else:
        notes.append(ONE_NODE)
    return tuple(notes)


def _under_vmap() -> bool:
    active = torch._C._functorch.get_interpreter_stack()
    return active is not None and any(i.key() == torch._C._functorch.TransformType.Vmap for i in active)


def _not_a_layer(module: Any) -> str:
    wanted = "module must be an RNN, GRU, LSTM, SLSTM or Cell of rnnkit.torch"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return f"{wanted}, got one of torch.nn: rnnkit.torch.replace(module) first"
    if isinstance(module, nn.Module):
        return f"{wanted}, got {type(module).__name__}: name one of the layers in it"
    return f"{wanted}, got {type(module).__name__}"


def _tensors(values: Any) -> list[Tensor]:
    """The tensors among the values, of which None and lists may be some."""
    if isinstance(values, torch.Tensor):
        return [values]
    found: list[Tensor] = []
    for value in values or ():
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [v for v in value if isinstance(v, torch.Tensor)]
    return found


def _storages(tensors: Sequence[Tensor]) -> set[int]:
    return {_unwrapped(t).untyped_storage().data_ptr() for t in tensors}


def _exists(tensor: Tensor, given: set[int]) -> bool:
    return tensor.untyped_storage().data_ptr() in given


def _unwrapped(tensor: Tensor) -> Tensor:
    """The tensor without the wrappers of torch.func's transforms."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
