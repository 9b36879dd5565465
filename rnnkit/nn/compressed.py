"""compress: a copy of a module whose recurrent layers hold bfloat16 or int8 weights, for inference."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np

from rnnkit.core import checks
from rnnkit.core.compression import CompressedMatrix, compressed, matrix_of, problem
from rnnkit.core.dtypes import COMPRESSED, DType
from rnnkit.core.read_only import constant, is_constant
from rnnkit.nn.module import Module
from rnnkit.nn.named_arrays import Params
from rnnkit.nn.rnn_base import Recurrent
from rnnkit.nn.step_cell import StepCell

SCALE = "_scale"  # the end of a scale's name, behind the name of its weights


def compress(module: Module, weights: str = "int8") -> Any:
    """Copies a module for inference, with the weight matrices of its recurrent layers in fewer bytes.

    Activations, biases and sums stay float32; so do Linear, Embedding and other modules inside. A call of one row reads
    every weight once, so it takes less time the fewer bytes they have: docs/performance.md has times and errors.

    The copy is in `eval` mode. Its calls save nothing for backward, whatever the grad mode. Its parameters are
    read-only: the compressed matrices under the names of the weights, and for int8 `<name>_scale`, their scales.
    `state_dict`, `save` and `load_state_dict` have these arrays. It needs the CPU: the CUDA backends have no kernels
    for compressed weights.

    Args:
        module: an RNN, GRU, LSTM or one of their Cells, or a module that contains some; float32, on the CPU.
        weights: "int8", a whole number in [-127, 127] times a float32 scale per row (per gate and unit), a quarter of
            the bytes; or "bfloat16", half of the bytes, with 8 significant bits. See `rnnkit.core.compression`.

    Returns:
        The copy, of the module's class.

    Raises:
        TypeError: `module` is no Module of rnnkit.
        ValueError: `weights` is unknown, there is no recurrent layer inside, or one is not float32, not on the CPU,
            compressed already or has weights that are not finite or too large.

    Examples:
        >>> import numpy as np, rnnkit
        >>> layer = rnnkit.LSTM(4, 6, backend="numpy", rng=0)
        >>> small = rnnkit.compress(layer, "int8")
        >>> small.params["weight_hh_l0"].dtype, small.params["weight_hh_l0_scale"].shape
        (dtype('int8'), (24,))
        >>> x = np.ones((5, 3, 4), np.float32)
        >>> bool(np.abs(small(x)[0] - layer(x)[0]).max() < 0.01)
        True
    """
    if not isinstance(module, Module):
        raise TypeError(f"module must be a Module of rnnkit{_hint(module)}, got {type(module).__name__}")
    row = COMPRESSED[checks.one_of("weights", weights, tuple(COMPRESSED))]
    if weights == "bfloat16" and importlib.util.find_spec("ml_dtypes") is None:
        raise ValueError("weights bfloat16 needs the package ml_dtypes (pip install ml_dtypes)")
    layers = [part for part in module._walk() if _is_recurrent(part)]
    if not layers:
        raise ValueError(f"module must contain a recurrent layer, got {module!r}")
    for layer in layers:
        _check(layer, weights)
    found = copy.deepcopy(module).eval()
    for layer in found._walk():
        if _is_recurrent(layer):
            _compress(layer, row)
    return found


def _is_recurrent(module: Module) -> bool:
    return isinstance(module, Recurrent | StepCell)


def _hint(module: Any) -> str:
    """What to do with a layer of PyTorch."""
    if not hasattr(module, "named_modules"):
        return ""
    return " (layers of rnnkit.torch have no compressed form: load their state_dict into a layer of rnnkit)"


def _check(layer: Any, weights: str) -> None:
    """Raises ValueError if the layer cannot be compressed."""
    kind = type(layer).__name__
    if layer._dtype.name != "float32":
        raise ValueError(f"module must have float32 recurrent layers, got {kind} in {layer._dtype.name}")
    if layer.cell.options:
        raise ValueError(f"module must have recurrent layers without options of cells, got {layer!r}")
    if getattr(layer, "regularisation", None) is not None:
        raise ValueError(f"module must have recurrent layers without zoneout and random masks, got {layer!r}")
    if layer.device != "cpu":
        raise ValueError(
            f"module must be on 'cpu', got {kind} on {layer.device!r}: the CUDA backends have no kernels for "
            f"compressed weights"
        )
    for name, w in layer._params.items():
        reason = problem(w, weights) if w.ndim == 2 else None
        if reason:
            raise ValueError(f"{name} must {reason}")


def _compress(layer: Module, row: DType) -> None:
    matrices = {name: compressed(w, row.weights) for name, w in layer._params.items() if w.ndim == 2}
    params = Params()
    for name, p in layer._params.items():
        matrix = matrices.get(name)
        params._add(name, p if matrix is None else matrix.values)
        if matrix is not None and matrix.scales is not None:
            params._add(name + SCALE, matrix.scales)
    layer._dtype = row
    layer._params = params
    layer._grads = Params()
    layer._matrices = matrices
    show_matrices(layer)


def show_matrices(layer: Any) -> None:
    """Makes the arrays of `_matrices` the layer's parameters, and the others read-only."""
    params = layer._params
    for name, matrix in layer._matrices.items():
        params._add(name, matrix.values)
        if matrix.scales is not None:
            params._add(name + SCALE, matrix.scales)
    for name, p in params.items():
        if not is_constant(p):
            params._add(name, constant(p))
    layer._cached_weights = None


def replace_arrays(layer: Any, new: Mapping[int, np.ndarray]) -> None:
    """Replaces parameters of a compressed layer. new: id of a present parameter -> its new values."""

    def of(array: np.ndarray | None) -> Any:
        return new.get(id(array), array)

    matrices: dict[str, CompressedMatrix] = {
        n: matrix_of(of(m.values), of(m.scales)) for n, m in layer._matrices.items()
    }
    for name, p in layer._params.items():
        layer._params._add(name, of(p))
    layer._matrices = matrices
    show_matrices(layer)
