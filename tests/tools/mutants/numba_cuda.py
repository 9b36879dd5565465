"""NUMBA_CUDA_MUTANTS: bugs planted in the Numba CUDA kernels and in what launches them. See `tests.tools.mutants`."""

from __future__ import annotations

from tests.tools.mutants.planting import Edit, Mutant

SCAN, RESET_BEFORE = "kernels/numba_cuda/scan.py", "kernels/numba_cuda/scan_reset_before.py"
NUMBERS, SHAPE, BACKEND = (
    "kernels/numba_cuda/numbers.py",
    "kernels/numba_cuda/launch_shape.py",
    "rnnkit/backends/numba_cuda.py",
)
BARRIER = "            cuda.syncthreads()\n"


def _parity(name: str, file: str, old: str, new: str, case: str) -> Mutant:
    """A bug that a result shows: `case` is one of rnnkit.testing.CASES, and the dtype."""
    pick = f"every_output_and_gradient and {case}"
    return Mutant(name, (Edit(file, old, new),), "tests/cuda/test_numba_cuda.py", pick)


def _race(name: str, file: str, old: str, new: str, case: str) -> Mutant:
    """A bug that may show on a device now and then only: the race itself is found."""
    return Mutant(name, (Edit(file, old, new),), "tests/cuda/test_numba_cuda.py", f"no_two_threads_race and {case}")


def _host(name: str, old: str, new: str, pick: str) -> Mutant:
    return Mutant(name, (Edit(BACKEND, old, new),), "tests/cuda/test_numba_cuda_host.py", pick)


NUMBA_CUDA_MUTANTS = (
    _race(
        "Numba CUDA: no barrier between a step's units and the next step",
        SCAN,
        BARRIER
        + "            if projected:\n                for p in range(thread, R, threads):\n                    y[",
        "            if projected:\n                for p in range(thread, R, threads):\n                    y[",
        "gru-T3-B4-I2-H5",
    ),
    _parity(
        "Numba CUDA: the same, and its numbers",
        SCAN,
        BARRIER
        + "            if projected:\n                for p in range(thread, R, threads):\n                    y[",
        "            if projected:\n                for p in range(thread, R, threads):\n                    y[",
        "gru-T5-B3-I4-H6-float32",
    ),
    _race(
        "Numba CUDA: no barrier after the projection",
        SCAN,
        "w_proj[:, p], zero))\n                cuda.syncthreads()\n",
        "w_proj[:, p], zero))\n",
        "lstm and P3",
    ),
    _race(
        "Numba CUDA: no barrier between du and its product",
        SCAN,
        BARRIER + "            for k in range(thread, R, threads):\n                dh[",
        "            for k in range(thread, R, threads):\n                dh[",
        "rnn_tanh-T3-B4-I2-H5",
    ),
    _race(
        "Numba CUDA: no barrier after the projection's gradient",
        SCAN,
        "dh[b, p] = zero\n                cuda.syncthreads()\n",
        "dh[b, p] = zero\n",
        "lstm and P3",
    ),
    _race(
        "Numba CUDA: a barrier that only some threads reach",
        SCAN,
        BARRIER + "            for k in range(thread, R, threads):\n                dh[",
        "            if thread < H:\n                cuda.syncthreads()\n"
        "            for k in range(thread, R, threads):\n                dh[",
        "rnn_relu-T3-B4-I2-H5",
    ),
    _race(
        "Numba CUDA, reset before: no barrier after the second stage",
        RESET_BEFORE,
        BARRIER + "            before = y[t, b]\n",
        "            before = y[t, b]\n",
        "gru_reset_before-T3-B4-I2-H5",
    ),
    _race(
        "Numba CUDA, reset before: r h' read before it is whole",
        RESET_BEFORE,
        BARRIER + "            for j in range(thread, H, threads):\n                u_n =",
        "            for j in range(thread, H, threads):\n                u_n =",
        "gru_reset_before-T3-B4-I2-H5",
    ),
    _race(
        "Numba CUDA: a block past the batch takes a row",
        SCAN,
        "if b >= dh.shape[0]:",
        "if b > dh.shape[0]:",
        "rnn_tanh-T3-B4-I2-H5",
    ),
    Mutant(
        "Numba CUDA: units past the block's threads left out",
        (
            Edit(
                SCAN,
                "for j in range(thread, H, threads):\n                x = ",
                "for j in range(thread, min(H, threads), threads):\n                x = ",
            ),
        ),
        "tests/cuda/test_numba_cuda.py",
        "more_units_than_threads and gru-T2",
    ),
    _parity(
        "Numba CUDA: every gate reads the first one's numbers",
        NUMBERS,
        "*load_rest(row, j + H, H))",
        "*load_rest(row, j, H))",
        "lstm-T5-B3-I4-H6-float64",
    ),
    _parity(
        "Numba CUDA: backward in the order of forward",
        SCAN,
        "t = s if reverse else steps - 1 - s",
        "t = steps - 1 - s if reverse else s",
        "rnn_tanh-T5-B3-I4-H6-float32",
    ),
    _race(
        "Numba CUDA: a reversed row starts at the batch's last step",
        RESET_BEFORE,
        "t = steps - 1 - s if reverse else s",
        "t = y.shape[0] - 1 - s if reverse else s",
        "gru_reset_before-T3-B4-I2-H5-reverse-ragged",
    ),
    _parity(
        "Numba CUDA: y past a row's end not written",
        SCAN,
        "for t in range(steps, y.shape[0]):",
        "for t in range(steps + 1, y.shape[0]):",
        "gru-T5-B3-I4-H6-ragged-float32",
    ),
    _parity(
        "Numba CUDA: backward is given the new c for the old",
        SCAN,
        "c_prev[t, b, j] = c_before",
        "c_prev[t, b, j] = c_new",
        "lstm-T5-B3-I4-H6-float16",
    ),
    _parity(
        "Numba CUDA: dc not carried",
        SCAN,
        "                    dc[b, j] = dc_new\n",
        "                    dc[b, j] = dc[b, j]\n",
        "lstm-T5-B3-I4-H6-float32",
    ),
    _parity(
        "Numba CUDA: the hidden side given the input side's gradients",
        BACKEND,
        "dgates_h = cupy.empty((T, B, GH), storage) if is_split(cell.name) else dgates_x",
        "dgates_h = dgates_x",
        "gru-T5-B3-I4-H6-float32",
    ),
    _parity(
        "Numba CUDA, reset before: dh through r left out",
        RESET_BEFORE,
        "dgates[t, b, : 2 * H], w[: 2 * H, j]",
        "dgates[t, b, :H], w[:H, j]",
        "gru_reset_before-T5-B3-I4-H6-float32",
    ),
    Mutant(
        "Numba CUDA: relu makes 0 of NaN",
        (Edit(NUMBERS, "return zero if a <= zero else a ", "return a if a > zero else zero "),),
        "tests/cuda/test_numba_cuda.py",
        "infinities and rnn_relu",
    ),
    Mutant(
        "Numba CUDA: sigmoid from exp(a), which overflows",
        (Edit(NUMBERS, "return one / (one + math.exp(-a))", "return math.exp(a) / (one + math.exp(a))"),),
        "tests/cuda/test_numba_cuda.py",
        "infinities and gru",
    ),
    _host(
        "Numba CUDA: launched on the null stream",
        "cuda.external_stream(cupy.cuda.get_current_stream().ptr)",
        "cuda.external_stream(0)",
        "current_stream",
    ),
    _host(
        "Numba CUDA: Numba waits for the stream at every array",
        "cuda.as_cuda_array(array, sync=False)",
        "cuda.as_cuda_array(array)",
        "waits_for_nothing and lstm",
    ),
    _host(
        "Numba CUDA: x W_ih^T rounded to float16",
        "keep=keep, compute=dtype.compute\n",
        "keep=keep\n",
        "float16_gates",
    ),
    _host(
        "Numba CUDA: explain forgets c",
        "has_c * H * C) + 8 * B if keep",
        "0 * H * C) + 8 * B if keep",
        "bytes_that_explain and lstm-float32",
    ),
    _host(
        "Numba CUDA: every step's gates in memory where one step's are enough",
        "H, steps = GH // cell.n_gates, T if keep else 1",
        "H, steps = GH // cell.n_gates, T",
        "bytes_that_explain and gru_reset_before-float32",
    ),
    Mutant(
        "Numba CUDA: threads that are no whole warps",
        (Edit(SHAPE, "-(-width // WARP) * WARP", "width"),),
        "tests/cuda/test_numba_cuda_host.py",
        "whole_warps",
    ),
)
