"""DTYPE_MUTANTS: planted bugs of 16-bit and tf32 arithmetic, one row each. See `tests.mutation`."""

from __future__ import annotations

from tests.mutation import Edit, Mutant

WIDE, OPTIMIZERS = "rnnkit/core/mixed_precision.py", "rnnkit/optim/base.py"
BIDIRECTIONAL, EMBEDDING, STACK = "rnnkit/nn/bidirectional.py", "rnnkit/nn/embedding.py", "rnnkit/functional/stack.py"


def _row(name: str, file: str, old: str, new: str, pick: str) -> Mutant:
    return Mutant(name, (Edit(file, old, new),), "tests/test_dtypes.py tests/test_dtypes_training.py", pick)


DTYPE_MUTANTS = (
    _row(
        "16 bits: losses summed in 16 bits",
        WIDE,
        "    return a.astype(compute_dtype(a.dtype), copy=False)\n",
        "    return a\n",
        "losses_beyond_float16 or test_losses",
    ),
    _row(
        "16 bits: Linear's bias gradient summed in 16 bits",
        "rnnkit/nn/linear.py",
        "column_sums(rows))",
        "rows.sum(axis=0))",
        "sums_over_a_batch",
    ),
    _row(
        "16 bits: Embedding's gradient summed in 16 bits",
        EMBEDDING,
        "dy = wide(dy.reshape(-1, self.embedding_dim))",
        "dy = dy.reshape(-1, self.embedding_dim)",
        "test_embedding and bfloat16",
    ),
    _row(
        "16 bits: steps added to the rounded parameter",
        OPTIMIZERS,
        "            xp.copyto(master, wide, where=written)\n",
        "            xp.copyto(master, wide)\n",
        "steps_below_half",
    ),
    _row(
        "16 bits: a parameter written to is stepped back to its master",
        OPTIMIZERS,
        "            xp.copyto(master, wide, where=written)\n",
        "",
        "what_is_written",
    ),
    _row(
        "16 bits: the optimizer's state in 16 bits",
        OPTIMIZERS,
        "{slot: xp.zeros(p.shape, compute) for slot in self.slots}",
        "{slot: xp.zeros_like(p) for slot in self.slots}",
        "small_squares or optimizers_follow",
    ),
    _row(
        "16 bits: the clipping factor rounded",
        "rnnkit/optim/clipping.py",
        "narrow(wide(grad) * factor, grad.dtype)",
        "grad * grad.dtype.type(factor)",
        "test_clipping",
    ),
    _row(
        "16 bits: the average of two directions summed before it is halved",
        BIDIRECTIONAL,
        "_halved(wide(forward) + wide(reverse), forward)",
        "_halved(forward + reverse, forward)",
        "average_of_large",
    ),
    _row(
        "tf32: the mirror of a Bidirectional in strict float32",
        BIDIRECTIONAL,
        '        arguments["dtype"] = layer._dtype.name',
        '        arguments["dtype"] = layer.dtype',
        "pass_the_row_on",
    ),
)
