"""Features of PyTorch that cannot serve these layers: one error each, that says what to do instead."""

from __future__ import annotations

from typing import Any, NoReturn


def refuse_torchscript(module: Any) -> NoReturn:
    """Raises for `torch.jit.script`, which calls it as the method `__prepare_scriptable__` of each submodule."""
    raise NotImplementedError(
        f"torch.jit.script cannot compile {type(module).__name__} of rnnkit.torch: use torch.compile or torch.export, "
        "or rnnkit.torch.restore(model) if the layer was put there by rnnkit.torch.replace"
    )
