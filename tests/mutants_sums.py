"""Planted bugs of long sums, and of the sizes that the tolerances are promised for."""

from __future__ import annotations

from tests.mutation import Edit, Mutant

SUMS, LARGE, DTYPES = "rnnkit/core/long_sums.py", "kernels/cpu/matmul_large.py", "rnnkit/core/dtypes.py"
ROWS, STEPWISE, CUBLAS = "kernels/cuda/rows.cuh", "rnnkit/backends/cupy/stepwise.py", "rnnkit/backends/cupy/cublas.py"


def _sum(name: str, file: str, old: str, new: str, pick: str, tests: str = "sums") -> Mutant:
    return Mutant(f"long sums: {name}", (Edit(file, old, new),), f"tests/test_{tests}.py", pick)


SUM_MUTANTS = (
    _sum("columns in one chain", SUMS, "if N <= COLUMN_ROWS:", "if True:", "linear_over and 1000000-5-3-equal"),
    _sum(
        "classes in one chain where logits are in Fortran order",
        SUMS,
        "np.ascontiguousarray(a).sum(axis=1)",
        "a.sum(axis=1)",
        "many_classes and F",
    ),
    _sum(
        "a loss on a device in float32",
        SUMS,
        "else a.sum(dtype=np.float64)",
        "else a.sum()",
        "losses_are_summed",
        "cupy_sums",
    ),
    _sum(
        "rows after the last whole block lost",
        SUMS,
        "return sums if full == N else sums + d[full:].T @ x[full:]",
        "return sums",
        "sums_of_blocks",
        "cupy_sums",
    ),
    _sum(
        "a span replaces the spans before it",
        LARGE,
        "join(span, out, count, True)",
        "join(span, out, count, False)",
        "every_cell and numba and gru and 32845",
    ),
    _sum(
        "a stretch is its last span",
        LARGE,
        "join(span, stretch, count, k % STRETCH > 0)",
        "join(span, stretch, count, False)",
        "one_step_of_millions and numba-1-equal",
    ),
    _sum(
        "blocks in one chain", LARGE, "SPAN = 64 * K_BLOCK", "SPAN = 1 << 30", "one_step_of_millions and numba-1-equal"
    ),
    _sum(
        "tolerances that do not grow with the features",
        DTYPES,
        "return max(1.0, reach / self.reach)",
        "return 1.0",
        "beyond_the_reach and numpy-rnn_tanh",
    ),
)

CUDA_SUM_MUTANTS = (
    _sum(
        "what was rounded off is forgotten",
        ROWS,
        "sum - sum == Compute(0) ? sum + lost : sum",
        "sum",
        "later_chunks",
        "cupy_sums",
    ),
    _sum(
        "columns in one chain on a device",
        ROWS,
        "constexpr int kChain = 32;",
        "constexpr Index kChain = 1 << 30;",
        "one_step_of_millions",
        "cupy_sums",
    ),
    _sum(
        "a last slice that is shorter is not added",
        CUBLAS,
        "return -(-K // each)",
        "return whole",
        "in_slices and lstm and float32",
        "cupy_sums",
    ),
    _sum(
        "each chunk begins the sum of slices anew",
        STEPWISE,
        "first, last = self.done + n == 0,",
        "first, last = n == 0,",
        "in_slices and lstm and float32 and all-at-once",
        "cupy_sums",
    ),
)
