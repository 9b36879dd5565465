"""Weights on disk and from Keras.

    rnnkit.save(model, "model.safetensors")
    model.load_state_dict(rnnkit.load("model.safetensors"))

Checkpoints, for training to go on from, are files of weights with more in them: see `rnnkit.io.checkpoint`.

Files are safetensors, which any tool reads. Their metadata says what shapes cannot: the gate order, which cell the
arrays belong to (the two GRUs share every name and shape, and are different functions), and a checksum. `load` checks
all three as far as a file has them, so files from other tools load as well.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from rnnkit.core.cells import CELLS
from rnnkit.core.devices import to_numpy
from rnnkit.io import checkpoint, safetensors_format
from rnnkit.io.keras import from_keras
from rnnkit.nn.module import Module, StateDict
from rnnkit.nn.named_arrays import layers_problem

__all__ = ["FORMAT_VERSION", "GATE_ORDER", "from_keras", "load", "save"]

FORMAT_VERSION, CHECKPOINT_VERSION = "1", "2"  # of weights, and of checkpoints
GATE_ORDER = ";".join(f"{name}={','.join(CELLS[name].gates)}" for name in ("lstm", "gru"))

# Metadata keys. The gate order has a plain name, for other tools to read; the rest are ours alone.
_ORDER, _VERSION, _LAYERS, _DIGEST = "gate_order", "rnnkit.format_version", "rnnkit.layers", "rnnkit.sha256"
_CHECKPOINT = "rnnkit.checkpoint"

# The arguments that say what a layer is, by the names layers keep them under.
_CONFIG = (
    "input_size",
    "hidden_size",
    "num_layers",
    "nonlinearity",
    "bias",
    "batch_first",
    "dropout",
    "bidirectional",
    "proj_size",
    "reset_after",
    "num_embeddings",
    "embedding_dim",
    "in_features",
    "out_features",
    "merge",
)


def save(
    module_or_mapping: Module | Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    optimizer: Any = None,
    rng: Any = None,
    step: int | None = None,
    scalars: Mapping[str, Any] | None = None,
) -> None:
    """Writes the parameters of a module, or a mapping of names to arrays (NumPy, CuPy or torch), as safetensors.

    With any of the other arguments it writes a checkpoint, which `load` gives back and `Checkpoint.restore` puts back:
    a module (or a mapping of names to Modules) with its dropout's random generators, and
    optimizer  an optimizer over it
    rng        a numpy Generator, as a data loader's, or a mapping of names to some
    step       a whole number of at least 0
    scalars    a mapping of names to numbers, texts or None
    Save between steps: gradients are no part of it.

    The metadata holds the gate order, the format's version, each layer's kind and arguments, and a checksum. The file
    appears whole or not at all: a crash or a full disk leaves an older file as it was. Raises TypeError or ValueError
    naming a bad array or argument before anything is written, OSError where the file cannot be.
    """
    extras: dict[str, str] = {}
    if any(given is not None for given in (optimizer, rng, step, scalars)):
        module = checkpoint.together(module_or_mapping)
        tensors, found = checkpoint.contents(module, optimizer, rng, step, scalars)
        layers = _describe(module)
        extras[_CHECKPOINT] = json.dumps(found)
    elif isinstance(module_or_mapping, Module):
        tensors = dict(module_or_mapping.state_dict())
        layers = _describe(module_or_mapping)
    elif isinstance(module_or_mapping, Mapping):
        tensors = {name: to_numpy(value) for name, value in module_or_mapping.items()}
        layers = module_or_mapping.layers if isinstance(module_or_mapping, StateDict) else {}
    else:
        kind = type(module_or_mapping).__name__
        raise TypeError(f"module_or_mapping must be a Module or a mapping of names to arrays, got {kind}")
    version = CHECKPOINT_VERSION if extras else FORMAT_VERSION
    metadata = {_ORDER: GATE_ORDER, _VERSION: version, _LAYERS: json.dumps(layers), **extras}
    little = {name: safetensors_format.little_endian(str(name), value) for name, value in tensors.items()}
    metadata[_DIGEST] = _digest(little, metadata)
    safetensors_format.write(path, little, metadata)


def load(path: str | os.PathLike[str]) -> StateDict:
    """name -> NumPy array of a safetensors file, ours or another tool's, for `load_state_dict`.

    What the file says of its layers comes along in `.layers`, and `load_state_dict` refuses another cell's weights. A
    checkpoint is given as a `Checkpoint`: the model's arrays, and the rest in attributes and by `restore`.
    Raises OSError where the file cannot be read; ValueError naming the file and the fault where it is damaged, was
    written by a later format, or says that its gates are in another order than rnnkit's.
    """
    tensors, metadata = safetensors_format.read(path)
    try:
        _check_gate_order(metadata.get(_ORDER, ""))
        layers = _check_ours(tensors, metadata)
        if metadata.get(_VERSION) == CHECKPOINT_VERSION:
            return checkpoint.from_file(tensors, layers, _json(metadata, _CHECKPOINT))
    except ValueError as problem:
        raise ValueError(f"{os.fspath(path)!r} cannot be loaded: {problem}") from problem
    return StateDict(tensors, layers)


def _json(metadata: Mapping[str, str], key: str) -> Any:
    try:
        return json.loads(metadata.get(key, "{}"))
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"its {key} is not JSON ({problem})") from problem


def _describe(module: Module) -> dict[str, dict[str, Any]]:
    """Prefix of parameter names -> kind, arguments and cell of the module they belong to, innermost where two share it.

    A prefix is read off the names under which the whole shows the part's arrays, whatever stands between them.
    """
    shown = {id(value): name for name, value in module.params.items()}
    found: dict[str, dict[str, Any]] = {}
    for part in module._walk():
        for name, value in part.params.items():
            prefix = shown[id(value)].removesuffix(name)
            found[prefix] = {"kind": type(part).__name__}
            for key in _CONFIG:
                if isinstance(getattr(part, key, None), (bool, int, float, str)):
                    found[prefix][key] = getattr(part, key)
            found[prefix] |= part._meanings.get("", {})
            break
    return found


def _check_gate_order(said: str) -> None:
    """Refuses a claim like "lstm=i,o,f,c" that rnnkit's own order of that cell's gates does not bear out."""
    for claim in filter(None, said.replace(" ", "").split(";")):
        if claim not in GATE_ORDER.split(";"):
            raise ValueError(
                f"its metadata gives the gate order {claim!r}, and rnnkit's is {GATE_ORDER!r}; permute the gates first"
            )


def _check_ours(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The layers a file of ours describes, its checksum verified; nothing for a file from elsewhere."""
    if not any(key.startswith("rnnkit.") for key in metadata):
        return {}
    version = metadata.get(_VERSION)
    if version not in (FORMAT_VERSION, CHECKPOINT_VERSION):
        raise ValueError(f"its format version must be {FORMAT_VERSION!r} or {CHECKPOINT_VERSION!r}, got {version!r}")
    if metadata.get(_DIGEST) != _digest(tensors, metadata):
        raise ValueError("its contents do not have the checksum that its metadata gives: they have been changed")
    layers = _json(metadata, _LAYERS)
    wrong = layers_problem(layers)
    if wrong:
        raise ValueError(f"its {_LAYERS} must {wrong}")
    return layers


def _digest(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """SHA-256 of names, dtypes, shapes, values and our own metadata: of what a file says, not of how it lays it out.

    A tool that writes the same arrays anew, in another layout or with metadata of its own beside ours, leaves it valid.
    """
    said = [metadata.get(key) for key in (_ORDER, _VERSION, _LAYERS)]
    said += [metadata[_CHECKPOINT]] if _CHECKPOINT in metadata else []
    total = hashlib.sha256(json.dumps(said).encode())
    for name in sorted(tensors):
        value = tensors[name]
        total.update(json.dumps([name, value.dtype.name, value.shape]).encode())
        total.update(safetensors_format.as_bytes(value).data)
    return total.hexdigest()
