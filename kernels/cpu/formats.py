"""How numbers stand in memory: what the compiled kernels of a dtype load, store and multiply.

    stored     arrays of the caller: x, biases, states, y, gradients; and the values that a cell saves for backward
    weights    the caller's weight matrices
    operand    what is multiplied by weights: x, h, and the gradients of the gates
    packed     the packed weights
    computed   sums of products, the cell state within a call, and all else

    format            stored     weights    operand    packed     computed
    float32           float32    float32    float32    float32    float32
    float64           float64    float64    float64    float64    float64
    float16           float16    float16    float32    float32    float32
    bfloat16          bfloat16   bfloat16   float32    pairs      float32
    bfloat16_dot      bfloat16   bfloat16   bfloat16   pairs      float32
    float32_bfloat16  float32    bfloat16   float32    pairs      float32
    float32_int8      float32    int8       float32    int8       float32

Pairs: a 32-bit word holds the bfloat16 of two adjacent k, the even k in its low half. A shift and a mask widen them, so
that two k cost one load and two operations more than float32, and half the bytes. AVX512_BF16 multiplies pairs by
pairs: bfloat16_dot does twice the arithmetic per instruction, with h rounded to bfloat16 at each step. Where the
processor has it, it serves all cells but those whose gradient jumps at zero: rounding h may change the sign of a
pre-activation close to zero. To convert packed float16 would take longer than reading half the bytes saves.

The last two are for inference with compressed weights (rnnkit/core/compression.py). A row of int8 weights has its scale
behind it, 4 bytes of a float32, and a panel of packed ones has the scales of its columns behind the last k. Sums are
multiplied by the scale once, after the walk over K.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

from rnnkit.core.cells import Cell
from rnnkit.kernels.cpu.conversions import has_dot_product
from rnnkit.kernels.cpu.jit import inner
from rnnkit.kernels.cpu.simd import vectors
from rnnkit.kernels.cpu.vec_type import vector_bytes

PAIRS = "pairs"
INT8 = "int8"
SCALE_BYTES = 4  # of the float32 behind a row of int8


class _Row(NamedTuple):
    stored: str
    weights: str
    operand: str
    packed: str
    computed: str


_FORMATS = {
    "float32": _Row("float32", "float32", "float32", "float32", "float32"),
    "float64": _Row("float64", "float64", "float64", "float64", "float64"),
    "float16": _Row("float16", "float16", "float32", "float32", "float32"),
    "bfloat16": _Row("bfloat16", "bfloat16", "float32", PAIRS, "float32"),
    "bfloat16_dot": _Row("bfloat16", "bfloat16", "bfloat16", PAIRS, "float32"),
    "float32_bfloat16": _Row("float32", "bfloat16", "float32", PAIRS, "float32"),
    "float32_int8": _Row("float32", INT8, "float32", INT8, "float32"),
}


class Formats(NamedTuple):
    """A row: its `vectors`, whose loads and stores convert, and facts about its packed weights.

    packed        "float32", "float64", PAIRS or INT8
    paired        whether the packed weights are pairs
    scaled        whether each row of weights has a scale
    dots          whether operands are multiplied in pairs, too
    word          bytes of a word of packed weights: of one weight, or of a pair
    mixed         whether `stored` is not `computed`
    """

    stored: SimpleNamespace
    weights: SimpleNamespace
    operand: SimpleNamespace
    computed: SimpleNamespace
    packed: str
    paired: bool
    scaled: bool
    dots: bool
    word: int
    mixed: bool

    def depth(self, K: int) -> int:
        """How many words K weights take, and their scale."""
        return (K + 1) // 2 if self.paired else K + self.scale_bytes

    @property
    def scale_bytes(self) -> int:
        """Bytes behind each row of weights."""
        return SCALE_BYTES if self.scaled else 0


@cache
def formats(name: str) -> Formats:
    """The row of a format."""
    row = _FORMATS[name]
    stored = vectors(row.stored)
    weights = vectors(row.weights)
    operand = vectors(row.operand)
    computed = vectors(row.computed)
    paired = row.packed == PAIRS
    scaled = row.packed == INT8
    word = 4 if paired else 1 if scaled else computed.itemsize
    dots = operand.itemsize < computed.itemsize
    mixed = row.stored != row.computed
    return Formats(stored, weights, operand, computed, row.packed, paired, scaled, dots, word, mixed)


def format_of(cell: Cell, dtype: str) -> str:
    """The format of a cell's kernels for arrays of a dtype."""
    if dtype == "bfloat16" and not cell.jumps and has_dot_product(vector_bytes()):
        return "bfloat16_dot"
    return dtype


@cache
def depths(name: str) -> Any:
    """`Formats.depth` for kernels: depth(K)."""
    at_once = 2 if formats(name).paired else 1
    behind = formats(name).scale_bytes

    @inner
    def depth(K):
        return (K + at_once - 1) // at_once + behind

    return depth


@cache
def row_sizes(name: str) -> Any:
    """row_bytes(K): bytes of a row of K of the caller's weights, with its scale."""
    size = formats(name).weights.itemsize
    behind = formats(name).scale_bytes

    @inner
    def row_bytes(K):
        return K * size + behind

    return row_bytes
