"""Tensors that say they are on a CUDA device, for PyTorch without CUDA: how often does a call wait for the device?

`OnCard` holds a tensor of the CPU. `Card` is a mode in which operators compute on the held tensors, and which notes
each one that would make the host wait for the device. Autograd refuses such tensors, so it is for calls without
gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

CARD = torch.device("cuda", 0)
aten = torch.ops.aten

# Operators whose result or whose shape is a number that the host reads.
WAITING = {
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.bincount.default,
    aten._assert_async.default,
}


class OnCard(torch.Tensor):
    """A tensor on CARD, of the values of `held`."""

    held: Any

    @staticmethod
    def __new__(cls, held: Any) -> Any:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), dtype=held.dtype, device=CARD
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Card().__torch_dispatch__(function, types, args, kwargs)


class Card(TorchDispatchMode):
    """waits: the operators that waited for the device. uploads: numbers sent to it without waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.uploads = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        here = any(isinstance(leaf, OnCard) for leaf in tree_leaves((args, options)))
        device = options.get("device")
        to_card = here if device is None else torch.device(device).type == "cuda"
        if device is not None:
            options["device"] = torch.device("cpu")
        if function in WAITING and here:
            self.waits.append(str(function))
        if function is aten._to_copy.default and to_card != here:
            if to_card and options.get("non_blocking"):
                self.uploads += args[0].numel()
            else:
                self.waits.append(f"{function} {'to' if to_card else 'from'} the device")
        if function is aten.copy_.default and len({isinstance(t, OnCard) for t in args[:2]}) == 2:
            self.waits.append(str(function))
        if function is aten.index.Tensor and any(i is not None and i.dtype is torch.bool for i in args[1]) and here:
            self.waits.append(f"{function} by flags")
        args, options = tree_map_only(OnCard, lambda t: t.held, (args, options))
        result = function(*args, **options)
        return tree_map_only(torch.Tensor, OnCard, result) if to_card else result


def on_card(tensor: Any) -> Any:
    """The tensor on the card, without a gradient."""
    return OnCard(tensor.detach())


def from_card(tensor: Any) -> Any:
    """The values of a tensor on the card, or the tensor itself."""
    return tensor.held if isinstance(tensor, OnCard) else tensor
