"""What names and shapes do not say of weights, and `load_state_dict` holds against the module: cells and merges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rnnkit.core import checks
from rnnkit.core.cells import CELLS
from rnnkit.nn.named_arrays import StateDict

# What a mapping that says nothing may hold: PyTorch's names, so PyTorch's cells. Which RNN it is, tanh or relu, PyTorch
# leaves to the layer that loads it, and so do we.
TORCHS_CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm")


def check_meaning(
    mapping: Mapping[str, Any],
    meanings: Mapping[str, Mapping[str, Any]],
    cells: str | Mapping[str, str] | None,
    names: Iterable[str],
) -> None:
    """Raises ValueError unless the arrays of `mapping` are known to be of the module's own cells and merges.

    meanings: prefix -> the module's own. cells: as of `load_state_dict`. names: the module's parameters.
    """
    said: Mapping[str, Mapping[str, Any]] = mapping.layers if isinstance(mapping, StateDict) else {}
    named = _named_cells(cells, [prefix for prefix, own in meanings.items() if "cell" in own])
    for prefix, own in meanings.items():
        found = said.get(prefix, {})
        where = repr(prefix.rstrip(".")) if prefix else "this layer"
        if "cell" in own and any(name in mapping for name in names if name.startswith(prefix)):
            _check_cell(where, own["cell"], found.get("cell"), named.get(prefix), hasattr(mapping, "_metadata"))
        if "merge" in own and found.get("merge", own["merge"]) != own["merge"]:
            raise ValueError(
                f"the weights for {where} are those of a Bidirectional with merge={found['merge']!r}, and it has "
                f"merge={own['merge']!r}: dict(mapping) says nothing of it and loads all the same"
            )


def _check_cell(where: str, own: str, said: str | None, named: str | None, torchs: bool) -> None:
    if said is not None and named is not None and said != named:
        raise ValueError(f"cells must agree with the mapping, which holds a {said} cell for {where}, got {named!r}")
    found = said or named
    if found is None:
        if own in TORCHS_CELLS:
            return
        source = (
            "it is torch's, which has no such cell" if torchs else "a mapping other than a StateDict does not say so"
        )
        raise ValueError(
            f"{where} is a {own} cell (reset_after=False), which has the names and shapes of the other GRU, and the "
            f"mapping must be of the same; {source}: give cells={own!r} if it is"
        )
    if found != own:
        raise ValueError(f"the weights for {where} are those of a {found} cell, and it is a {own}")


def _named_cells(cells: Any, prefixes: list[str]) -> dict[str, str]:
    """Prefix -> cell, of the argument `cells`: one name for all layers, or a mapping of layers' names."""
    if cells is None:
        return {}
    if isinstance(cells, str):
        cells = dict.fromkeys(prefixes, cells)
    if not isinstance(cells, Mapping):
        raise TypeError(f"cells must be the name of a cell or a mapping of layers to such, got {type(cells).__name__}")
    by_name = {prefix.rstrip("."): prefix for prefix in prefixes}
    found: dict[str, str] = {}
    for layer, cell in cells.items():
        if not isinstance(layer, str) or layer.rstrip(".") not in by_name:
            known = ", ".join(map(repr, by_name)) or "none"
            raise ValueError(f"cells must name recurrent layers of this module, {known}, got {layer!r}")
        found[by_name[layer.rstrip(".")]] = checks.one_of("cells", cell, tuple(CELLS))
    return found
