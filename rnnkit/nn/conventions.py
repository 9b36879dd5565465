"""Checks of what names and shapes cannot tell: that weights belong to the module's own cells and merges."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from rnnkit.core import checks
from rnnkit.core.cells import CELLS
from rnnkit.nn.named_arrays import StateDict

# The cells of a mapping that records none: it has PyTorch's names, so it holds one of PyTorch's cells. As in PyTorch,
# the loading layer determines whether RNN weights are used with tanh or relu.
PYTORCH_CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm")
# Of each other cell: its option, and whose weights have the same names and shapes.
_OTHERS = {"gru_reset_before": (" (reset_after=False)", "the other GRU"), "slstm": ("", "an LSTM")}
# The buffer by which a state dict of rnnkit.torch shows such a cell.
_BUFFERS = {"reset_before": "gru_reset_before", "slstm": "slstm"}


def cells_by_buffer(
    mapping: Mapping[str, Any], meanings: Mapping[str, Mapping[str, Any]], names: Collection[str]
) -> dict[str, tuple[str, str]]:
    """The buffers of rnnkit.torch's layers in the mapping: name -> the prefix of the layer's parameters, and the cell.

    meanings, names: as in `check_meaning`.
    """
    found = {}
    for prefix in (prefix for prefix, own in meanings.items() if "cell" in own):
        for buffer, cell in _BUFFERS.items():
            name = prefix + buffer
            if name in mapping and name not in names:
                found[name] = (prefix, cell)
    return found


def check_meaning(
    mapping: Mapping[str, Any],
    meanings: Mapping[str, Mapping[str, Any]],
    cells: str | Mapping[str, str] | None,
    names: Collection[str],
) -> None:
    """Raises ValueError unless the arrays of `mapping` belong to the module's own cells and merges.

    Args:
        mapping: the state dict.
        meanings: prefix of parameter names -> the module's own "cell", "merge" and compressed "weights".
        cells: the argument of `load_state_dict`.
        names: the module's parameter names.
    """
    recorded: Mapping[str, Mapping[str, Any]] = mapping.layers if isinstance(mapping, StateDict) else {}
    named = _named_cells(cells, [prefix for prefix, own in meanings.items() if "cell" in own])
    shown = dict(cells_by_buffer(mapping, meanings, names).values())
    for prefix, own in meanings.items():
        source = recorded.get(prefix, {})
        where = repr(prefix.rstrip(".")) if prefix else "this layer"
        if "cell" in own and any(name in mapping for name in names if name.startswith(prefix)):
            cell = source.get("cell") or shown.get(prefix)
            _check_cell(where, own["cell"], cell, named.get(prefix), hasattr(mapping, "_metadata"))
        if source and source.get("weights") != own.get("weights"):
            theirs, ours = (of.get("weights", "not compressed") for of in (source, own))
            raise ValueError(f"the weights for {where} are {theirs}, and its own are {ours}: see rnnkit.compress")
        if "merge" in own and source.get("merge", own["merge"]) != own["merge"]:
            raise ValueError(
                f"the weights for {where} are those of a Bidirectional with merge={source['merge']!r}, and it has "
                f"merge={own['merge']!r}: load dict(mapping), which records no merge, to load them nevertheless"
            )


def _check_cell(where: str, own: str, recorded: str | None, named: str | None, from_torch: bool) -> None:
    if recorded is not None and named is not None and recorded != named:
        raise ValueError(f"cells must agree with the mapping, which holds a {recorded} cell for {where}, got {named!r}")
    source_cell = recorded or named
    if source_cell is None:
        if own in PYTORCH_CELLS:
            return
        source = "torch has no such cell" if from_torch else "only a StateDict records its cell"
        option, other = _OTHERS[own]
        raise ValueError(
            f"{where} is a {own} cell{option}, and weights of {other} have the same names and shapes; "
            f"{source}: pass cells={own!r} if the mapping holds weights of a {own} cell"
        )
    if source_cell != own:
        raise ValueError(f"the weights for {where} are those of a {source_cell} cell, and it is a {own}")


def _named_cells(cells: Any, prefixes: list[str]) -> dict[str, str]:
    """Prefix of parameter names -> cell, from the argument `cells`: one name for all layers, or one per layer name."""
    if cells is None:
        return {}
    if isinstance(cells, str):
        cells = dict.fromkeys(prefixes, cells)
    if not isinstance(cells, Mapping):
        kind = type(cells).__name__
        raise TypeError(f"cells must be the name of a cell or a mapping of layer names to cells, got {kind}")
    by_name = {prefix.rstrip("."): prefix for prefix in prefixes}
    cell_of: dict[str, str] = {}
    for layer, cell in cells.items():
        if not isinstance(layer, str) or layer.rstrip(".") not in by_name:
            known = ", ".join(map(repr, by_name)) or "none"
            raise ValueError(f"cells must name recurrent layers of this module, {known}, got {layer!r}")
        cell_of[by_name[layer.rstrip(".")]] = checks.one_of("cells", cell, tuple(CELLS))
    return cell_of
