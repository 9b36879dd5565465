"""What `replace` and `restore` say: a table of the layers that they swapped and of those that they left."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Swapped:
    """A layer whose class was changed.

    Attributes:
        names: its qualified names in the model, several if it is registered at several places; "" is the model itself.
        before: the class that it had.
        after: the class that it has.

    Examples:
        >>> import torch, rnnkit.torch
        >>> rnnkit.torch.replace(torch.nn.GRU(4, 6)).swapped[0].after
        'rnnkit.torch.GRU'
    """

    names: tuple[str, ...]
    before: str
    after: str


@dataclass(frozen=True)
class Left:
    """A recurrent layer that was left as it is.

    Attributes:
        names: its qualified names in the model, several if it is registered at several places; "" is the model itself.
        kind: its class.
        why: the reason.

    Examples:
        >>> import torch, rnnkit.torch
        >>> rnnkit.torch.replace(rnnkit.torch.GRU(4, 6)).left[0].why
        "is rnnkit's already"
    """

    names: tuple[str, ...]
    kind: str
    why: str


@dataclass(frozen=True)
class Report:
    """What `replace` or `restore` swapped, what it left and why. Print it for a table.

    Attributes:
        swapped: the layers whose class was changed, in the order of `named_modules()`.
        left: the recurrent layers that were left as they are.

    Examples:
        >>> import torch, rnnkit.torch
        >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.GRU(4, 6))
        >>> print(rnnkit.torch.replace(model))
        swapped
          1  torch.nn.GRU -> rnnkit.torch.GRU
    """

    swapped: tuple[Swapped, ...]
    left: tuple[Left, ...]

    def __str__(self) -> str:
        rows = [(_shown(s.names), f"{s.before} -> {s.after}") for s in self.swapped]
        kept = [(_shown(s.names), f"{s.kind}: {s.why}") for s in self.left]
        width = max((len(name) for name, _ in rows + kept), default=0)
        lines = []
        for title, part in (("swapped", rows), ("left", kept)):
            lines += [title] if part else []
            lines += [f"  {name:{width}}  {what}" for name, what in part]
        return "\n".join(lines) or "no recurrent layer"


def _shown(names: tuple[str, ...]) -> str:
    return ", ".join(name or "(the module itself)" for name in names)
