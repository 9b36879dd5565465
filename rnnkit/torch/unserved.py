"""Features of PyTorch that cannot serve these layers: one error each, that says what to do instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NoReturn

import torch


def refuse_torchscript(module: Any) -> NoReturn:
    """Raises for `torch.jit.script`, which calls it as the method `__prepare_scriptable__` of each submodule."""
    raise NotImplementedError(
        f"torch.jit.script cannot compile {type(module).__name__} of rnnkit.torch: use torch.compile or torch.export, "
        "or rnnkit.torch.restore(model) if the layer was put there by rnnkit.torch.replace"
    )


def not_traced(function: Callable[..., Any], reason: str) -> Callable[..., Any]:
    """The function without torch.compile, which breaks the graph there. PyTorch names the reason from 2.8 on."""
    named = {"reason": reason} if "reason" in inspect.signature(torch.compiler.disable).parameters else {}
    return torch.compiler.disable(function, **named)
