"""How numbers stand in memory: what the compiled kernels of a dtype load, store and multiply.

    stored     arrays of the caller: x, weights, states, y, gradients; and the values that a cell saves for backward
    operand    what is multiplied by weights: x, h, and the gradients of the gates
    packed     the packed weights
    computed   sums of products, the cell state within a call, and all else

    format          stored     operand    packed            computed
    float32         float32    float32    float32           float32
    float64         float64    float64    float64           float64
    float16         float16    float32    float32           float32
    bfloat16        bfloat16   float32    pairs             float32
    bfloat16_dot    bfloat16   bfloat16   pairs             float32

Pairs: a 32-bit word holds the bfloat16 of two adjacent k, the even k in its low half. A shift and a mask widen them, so
that two k cost one load and two operations more than float32, and half the bytes. AVX512_BF16 multiplies pairs by
pairs: bfloat16_dot does twice the arithmetic per instruction, with h rounded to bfloat16 at each step. Where the
processor has it, it serves all cells but those whose gradient jumps at zero: rounding h may change the sign of a
pre-activation close to zero. To convert packed float16 would take longer than reading half the bytes saves.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

from rnnkit.core.cells import Cell
from rnnkit.kernels.cpu.conversions import has_dot_product
from rnnkit.kernels.cpu.jit import inner
from rnnkit.kernels.cpu.simd import vector_bytes, vectors

PAIRS = "pairs"


class _Row(NamedTuple):
    stored: str
    operand: str
    packed: str
    computed: str


_FORMATS = {
    "float32": _Row("float32", "float32", "float32", "float32"),
    "float64": _Row("float64", "float64", "float64", "float64"),
    "float16": _Row("float16", "float32", "float32", "float32"),
    "bfloat16": _Row("bfloat16", "float32", PAIRS, "float32"),
    "bfloat16_dot": _Row("bfloat16", "bfloat16", PAIRS, "float32"),
}


class Formats(NamedTuple):
    """A row: its `vectors`, whose loads and stores convert, and facts about its packed weights.

    packed        "float32", "float64" or PAIRS
    paired        whether the packed weights are pairs
    dots          whether operands are multiplied in pairs, too
    word          bytes of a word of packed weights: of one weight, or of a pair
    mixed         whether `stored` is not `computed`
    """

    stored: SimpleNamespace
    operand: SimpleNamespace
    computed: SimpleNamespace
    packed: str
    paired: bool
    dots: bool
    word: int
    mixed: bool

    def depth(self, K: int) -> int:
        """How many words K weights take."""
        return (K + 1) // 2 if self.paired else K


@cache
def formats(name: str) -> Formats:
    """The row of a format."""
    row = _FORMATS[name]
    stored = vectors(row.stored)
    operand = vectors(row.operand)
    computed = vectors(row.computed)
    paired = row.packed == PAIRS
    word = 4 if paired else computed.itemsize
    dots = operand.itemsize < computed.itemsize
    return Formats(stored, operand, computed, row.packed, paired, dots, word, row.stored != row.computed)


def format_of(cell: Cell, dtype: str) -> str:
    """The format of a cell's kernels for arrays of a dtype."""
    if dtype == "bfloat16" and not cell.jumps and has_dot_product(vector_bytes()):
        return "bfloat16_dot"
    return dtype


@cache
def depths(name: str) -> Any:
    """`Formats.depth` for kernels: depth(K)."""
    at_once = 2 if formats(name).paired else 1

    @inner
    def depth(K):
        return (K + at_once - 1) // at_once

    return depth
