"""Weights in files.

    rnnkit.save(model, "model.safetensors")
    model.load_state_dict(rnnkit.load("model.safetensors"))

A checkpoint, from which training resumes, is a file of weights with additional contents: see `rnnkit.io.checkpoint`.

Files are in the safetensors format, which other tools read. Their metadata records what names and shapes do not
determine: the gate order, the cell of each recurrent layer (the two GRU variants have equal names and shapes but are
different functions), and a checksum. `load` checks those that the file has, so files from other tools load as well.
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

FORMAT_VERSION = "1"  # of files with weights only
CHECKPOINT_VERSION = "2"
GATE_ORDER = ";".join(f"{name}={','.join(CELLS[name].gates)}" for name in ("lstm", "gru"))

# Metadata keys. The gate order has an unprefixed name, because other tools may read it.
_ORDER = "gate_order"
_VERSION = "rnnkit.format_version"
_LAYERS = "rnnkit.layers"
_DIGEST = "rnnkit.sha256"
_CHECKPOINT = "rnnkit.checkpoint"

# Constructor arguments that the file records: attributes of layers.
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
    """Writes parameters to a safetensors file, and with any of the keyword arguments a checkpoint.

    The metadata holds the gate order, the format version, each layer's class and arguments, and a checksum. The file is
    written under a temporary name and then renamed, so a crash or a full disk leaves an older file intact. A checkpoint
    also holds the state of the model's random generators; `load` and `Checkpoint.restore` read it. Save a checkpoint
    between steps: gradients are not part of it.

    Args:
        module_or_mapping: a Module, or a mapping of names to arrays (NumPy, CuPy or torch). For a checkpoint a Module,
            or a mapping of names to Modules.
        path: the file.
        optimizer: an optimizer over the module.
        rng: a numpy Generator, such as a data loader's, or a mapping of names to Generators.
        step: number of steps trained, at least 0.
        scalars: a mapping of names to numbers, strings or None.

    Raises:
        TypeError: an array or argument has the wrong type. No file is written.
        ValueError: an argument has a bad value. No file is written.
        OSError: the file cannot be written.

    Examples:
        >>> import rnnkit
        >>> layer = rnnkit.Linear(3, 2, rng=0)
        >>> rnnkit.save(layer, "layer.safetensors")
        >>> list(rnnkit.load("layer.safetensors"))
        ['weight', 'bias']
    """
    extras: dict[str, str] = {}
    if any(argument is not None for argument in (optimizer, rng, step, scalars)):
        module = checkpoint.as_module(module_or_mapping)
        tensors, contents = checkpoint.contents(module, optimizer, rng, step, scalars)
        layers = _describe(module)
        extras[_CHECKPOINT] = json.dumps(contents)
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
    """Reads a safetensors file of rnnkit or of another tool.

    `layers` of the result holds what the file records of its layers; `load_state_dict` refuses the weights of another
    cell.

    Args:
        path: the file.

    Returns:
        A StateDict, name -> NumPy array, for `load_state_dict`; for a checkpoint a `Checkpoint`, with the model's
        arrays, further attributes and `restore`.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged, has a later format version, or declares another gate order than rnnkit's. The
            message names the file.

    Examples:
        >>> import rnnkit
        >>> layer = rnnkit.GRU(3, 4, rng=0)
        >>> rnnkit.save(layer, "gru.safetensors")
        >>> layer.load_state_dict(rnnkit.load("gru.safetensors"))
        LoadedKeys(missing_keys=[], unexpected_keys=[])
    """
    tensors, metadata = safetensors_format.read(path)
    try:
        _check_gate_order(metadata.get(_ORDER, ""))
        layers = _checked_layers(tensors, metadata)
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
    """Prefix of parameter names -> class, arguments and cell of the module they belong to.

    A prefix is the part of the parameters' names that precedes the module's own names. If two modules share a prefix,
    as LastState and its layer do, the innermost is recorded.
    """
    full_names = {id(value): name for name, value in module.params.items()}
    layers: dict[str, dict[str, Any]] = {}
    for part in module._walk():
        for name, value in part.params.items():
            prefix = full_names[id(value)].removesuffix(name)
            layers[prefix] = {"kind": type(part).__name__}
            for key in _CONFIG:
                if isinstance(getattr(part, key, None), (bool, int, float, str)):
                    layers[prefix][key] = getattr(part, key)
            layers[prefix] |= part._meanings.get("", {})
            break
    return layers


def _check_gate_order(declared: str) -> None:
    """Raises ValueError if a declaration such as "lstm=i,o,f,c" differs from rnnkit's gate order of that cell."""
    for order in filter(None, declared.replace(" ", "").split(";")):
        if order not in GATE_ORDER.split(";"):
            raise ValueError(
                f"its metadata gives the gate order {order!r}, and rnnkit's is {GATE_ORDER!r}; permute the gates first"
            )


def _checked_layers(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The layers that a file of rnnkit describes, after verifying the checksum; empty for a file of another tool."""
    if not any(key.startswith("rnnkit.") for key in metadata):
        return {}
    version = metadata.get(_VERSION)
    if version not in (FORMAT_VERSION, CHECKPOINT_VERSION):
        raise ValueError(f"its format version must be {FORMAT_VERSION!r} or {CHECKPOINT_VERSION!r}, got {version!r}")
    if metadata.get(_DIGEST) != _digest(tensors, metadata):
        raise ValueError("its contents do not have the checksum in its metadata: they have been changed")
    layers = _json(metadata, _LAYERS)
    problem = layers_problem(layers)
    if problem:
        raise ValueError(f"its {_LAYERS} must {problem}")
    return layers


def _digest(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """SHA-256 of the names, dtypes, shapes, values and rnnkit's own metadata, independent of the layout of the file.

    It stays valid if another tool rewrites the arrays in another layout or adds metadata.
    """
    texts = [metadata.get(key) for key in (_ORDER, _VERSION, _LAYERS)]
    texts += [metadata[_CHECKPOINT]] if _CHECKPOINT in metadata else []
    digest = hashlib.sha256(json.dumps(texts).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(json.dumps([name, value.dtype.name, value.shape]).encode())
        digest.update(safetensors_format.as_bytes(value).data)
    return digest.hexdigest()
