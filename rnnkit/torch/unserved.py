"""Features of PyTorch that cannot serve these layers: one error each, that says what to do instead."""

from __future__ import annotations

from typing import Any, NoReturn

import torch


def refuse_torchscript(module: Any) -> NoReturn:
    """Raises for `torch.jit.script`, which calls it as the method `__prepare_scriptable__` of each submodule."""
    raise NotImplementedError(
        f"torch.jit.script cannot compile {type(module).__name__} of rnnkit.torch: use torch.compile or torch.export, "
        "or rnnkit.torch.restore(model) if the layer was put there by rnnkit.torch.replace"
    )


def refuse_capture(name: str, tensor: Any, why: str) -> None:
    """Raises while PyTorch captures a CUDA graph on the device of the tensor, which is the argument `name`."""
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{name} on {tensor.device} must not be given while a CUDA graph is captured, because {why}: "
            "call the layer outside of the capture"
        )
