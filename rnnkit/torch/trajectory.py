"""trajectory(layer, input): every step's states and gates of a layer of rnnkit.torch, as tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._compile import _disable_dynamo
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils.rnn import PackedSequence

from rnnkit.core.option_arguments import parsed
from rnnkit.core.regularisation import Noise
from rnnkit.functional.step_flags import StepFlags, given_flags
from rnnkit.functional.trajectory import Flagged, check_served, checked_layer, every_step
from rnnkit.nn.rnn_base import Recurrent
from rnnkit.torch import checks, operators, segmented
from rnnkit.torch.arrays import Tensor, as_array, as_tensors, on_device, weight_views
from rnnkit.torch.autocast import under_autocast
from rnnkit.torch.recurrent import Layers, States
from rnnkit.torch.unserved import refuse_capture


def trajectory(
    layer: Any,
    input: Any,
    hx: Any = None,
    *,
    lengths: Any = None,
    of_layer: int = -1,
    resets: Any = None,
    reset_state: Any = None,
    mask: Any = None,
) -> dict[str, Any]:
    """Runs a recurrent layer, and returns its states and gates at every step, as `rnnkit.trajectory` does.

    Not differentiable: no result requires a gradient, whatever input and the parameters do. It is one forward call in
    evaluation mode, whose saved values are copied out: no second loop over time. So dropout is off, and zoneout takes
    its expected value, also of a layer in training mode. Hooks of the layer do not run. Where a call of the layer
    computes 16-bit tensors in float32, this does, and rounds at the end; else the gates are rounded as they are saved.

    Args:
        layer: an RNN, GRU, LSTM or SLSTM of rnnkit.torch, built or put there by `rnnkit.torch.replace`.
        input: as the layer takes it, but for a PackedSequence: pad it, and give `lengths`.
        hx: initial state, as the layer takes it.
        lengths: number of steps of each row, as the layer takes it.
        of_layer: which of the stacked layers, in [-num_layers, num_layers).
        resets: as the layer takes them.
        reset_state: as the layer takes it.
        mask: as the layer takes it. A masked step has the states that it carries, and gates of zero.

    Returns:
        A dict of tensors (T, B, D*H), in the layout and dtype of input, or in the dtype of an active torch.autocast,
        and on its device, zero past a row's length: the states after each step under "h" (with a projection
        (T, B, D*P)), for an LSTM "c" and for an SLSTM "c", "n" and "m", and the gates after their activations: of an
        LSTM "i", "f", "g", "o", of a GRU "r", "z", "n", of an SLSTM "i", "f", "z", "o". An RNN has "h" alone.

    Raises:
        TypeError: `layer` is another module, input is a PackedSequence, or an argument has a wrong type.
        ValueError: an argument has a bad shape, value or dtype, as in a call, or the backend does not serve this.
        RuntimeError: an argument has a bad shape, as in a call, or the backend cannot run here.
        NotImplementedError: input or flags have no values that can be read here: inside torch.export or a transform of
            torch.func, or on the meta device. torch.compile breaks the graph at this call.

    Examples:
        >>> import torch, rnnkit.torch
        >>> lstm = rnnkit.torch.LSTM(4, 6, backend="numpy")
        >>> x = torch.ones(5, 3, 4)
        >>> steps = rnnkit.torch.trajectory(lstm, x)
        >>> sorted(steps), steps["c"].shape
        (['c', 'f', 'g', 'h', 'i', 'o'], torch.Size([5, 3, 6]))
        >>> torch.equal(steps["h"], lstm(x)[0])
        True
    """
    flags = given_flags(resets, reset_state, mask, False)
    # torch.compile would trace NumPy's functions as its own operators. `_untraced` imports all of Dynamo.
    run = _untraced if torch.compiler.is_compiling() else _checked
    return run(layer, input, hx, lengths, of_layer, flags, reset_state)


def _checked(
    layer: Any, input: Any, hx: Any, lengths: Any, of_layer: Any, flags: StepFlags | None, reset_state: Any
) -> dict[str, Tensor]:
    _check_layer(layer)
    number = checked_layer(of_layer, layer.num_layers)
    if isinstance(input, PackedSequence):
        raise TypeError(
            "input must be a torch.Tensor, got a PackedSequence: "
            "torch.nn.utils.rnn.pad_packed_sequence gives input and lengths"
        )
    with torch.no_grad():
        weights = layer._weights()
        x, states, batched = layer._time_major(input, hx)
        _check_readable(x, *(states or ()), *weights)
        again = None if reset_state is None else layer._reset_state(reset_state, x.shape[1], batched)
        checked = None if lengths is None else layer._lengths(lengths, x, batched)
        flagged = None if flags is None else _flagged(layer, flags, x, batched, checked)
        steps = _trajectory(layer, number, x, states or (), again, weights, checked, flagged)
        if not batched:
            return {name: values.squeeze(1) for name, values in steps.items()}
        return {name: values.transpose(0, 1) if layer.batch_first else values for name, values in steps.items()}


_untraced = _disable_dynamo(_checked)


def _flagged(layer: Layers, flags: StepFlags, x: Tensor, batched: bool, lengths: Tensor | None) -> Flagged | None:
    """What the flags decide, without the reset state; None if nothing is reset or masked."""
    T, B, _ = x.shape
    D = 2 if layer.bidirectional else 1
    flags = segmented.on_host(flags)
    found = flags.segments(T, B, not batched, layer.batch_first, D, None if lengths is None else lengths.numpy())
    return None if found is None else Flagged(found, None, *flags.checked(T, B, not batched, layer.batch_first))


def _trajectory(
    layer: Layers,
    number: int,
    x: Tensor,
    states: States,
    again: States | None,
    weights: States,
    lengths: Tensor | None,
    flagged: Flagged | None,
) -> dict[str, Tensor]:
    """Time-major. lengths and flagged are checked."""
    count = len(states)
    x, given, weights = under_autocast(x, (*states, *(again or ())), weights)
    states, again = given[:count], given[count:]
    checks.one_kind(x, states, weights[0])
    try:
        checks.one_kind(x, again, weights[0])
    except RuntimeError as problem:
        raise RuntimeError(f"reset_state: {problem}") from None
    dtype = x.dtype
    # As a call of the layer computes them, so that "h" has the bits of its y.
    widened = operators._WIDENED if flagged is None else segmented._WIDENED
    if x.is_cpu and dtype in widened:
        x, *wide = (t.float() for t in (x, *states, *again, *weights))
        states, again, weights = wide[:count], wide[count : len(given)], wide[len(given) :]
    rates = layer.regularisation
    text = layer._evaluation_text()
    with on_device(x):
        choice = operators.choice_of(x.device, x.dtype, text, layer.backend, layer.strict)
        cell, constants = parsed(text)
        check_served(choice, cell)
        views = weight_views(weights, cell, 2 if layer.bidirectional else 1, x.shape[2], constants)
        noise = Noise(rates, None) if rates is not None and rates.zones else None
        call = operators._stack_call(x, states, views, (), lengths, choice, None, noise)._replace(keep=True)
        if flagged is not None and again:
            flagged = flagged._replace(reset_state=tuple([as_array(s) for s in again]))
        found = every_step(call, number, flagged)
        tensors = as_tensors(list(found.values()))
    if x.dtype is not dtype:
        tensors = [t.to(dtype) for t in tensors]
    return dict(zip(found, tensors, strict=True))


def _check_layer(layer: Any) -> None:
    if isinstance(layer, Layers):
        return
    wanted = "layer must be an RNN, GRU, LSTM or SLSTM of rnnkit.torch"
    if isinstance(layer, Recurrent):
        raise TypeError(f"{wanted}, got {type(layer).__name__} of rnnkit: rnnkit.trajectory takes it")
    if isinstance(layer, nn.RNN | nn.GRU | nn.LSTM):
        raise TypeError(f"{wanted}, got one of torch.nn: rnnkit.torch.replace(layer) first")
    raise TypeError(f"{wanted}, got {type(layer).__name__}")


def _check_readable(x: Tensor, *others: Tensor) -> None:
    """Raises for tensors whose values cannot be read here."""
    refuse_capture("input", x, "trajectory copies tables of the steps from host memory")
    for tensor in (x, *others):
        if isinstance(tensor, FakeTensor) or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            raise NotImplementedError(
                "trajectory reads values: call it outside of torch.export and of transforms of torch.func"
            )
        if tensor.device.type not in ("cpu", "cuda"):
            raise NotImplementedError(f"trajectory needs tensors on cpu or cuda, got one on {tensor.device}")
