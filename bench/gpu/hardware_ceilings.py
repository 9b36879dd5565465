"""Measures the card's ceilings: python -m bench.gpu.hardware_ceilings. It may be cut off after any item.

Launches, copies and large products come first, because the models need them. Barriers and exchanges of data between
blocks follow, then the products of single steps.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from bench.gpu import exchange_costs, sync_costs, timing
from bench.gpu.card import CLOCKS, smi
from bench.gpu.items_file import Item, Lines
from rnnkit.core.dtypes import DTYPES

# A copy within the L2 cache of a large card, and one from memory.
COPY_BYTES = (8 << 20, 4 << 30)
LARGE = {"float64": 4096, "float32": 8192, "tf32": 8192, "float16": 8192, "bfloat16": 8192}
# (B, H) of a step of an LSTM, and the steps of a chunk for the weights' gradient.
STEPS = ((1, 1024), (32, 256), (32, 1024), (128, 512), (512, 2048))
CHUNK = 16
POINTWISE = ((32, 256), (128, 1024), (512, 2048))
# Seconds of timing per copy or large product and per product of a step; seconds that a product needs with its check.
SECONDS = 0.1
STEP_SECONDS = 0.03
NEEDS = 1.0
# Members of an all-gather, besides all multiprocessors.
MEMBERS = (2, 8, 32)
# Products by cuBLAS's operations on its column-major operands, and the method of `Products` that calls each.
LAYOUTS = {"TN": "rows_by_weights", "NN": "rows_through", "NT": "over_steps"}
# Rows that repeat down an operand, and columns of a product that are compared with float64.
BLOCK_ROWS = 256
COLUMNS = 64


def main(arguments: list[str] | None = None) -> int:
    lines = Lines.from_arguments(__doc__ or "", arguments)
    import cupy

    device = cupy.cuda.Device()
    arch = int(device.compute_capability)
    multiprocessors = device.attributes["MultiProcessorCount"]
    served = [name for name in DTYPES if name != "bfloat16" or arch >= 80]
    lines.item("clocks before", lambda: {"smi": smi(CLOCKS)})
    lines.item("launches", sync_costs.launches)
    for size in COPY_BYTES:
        lines.item(f"copy {size >> 20} MiB", partial(copy, size))
    large(lines, served, "TN")
    grid(lines, multiprocessors)
    clusters(lines, arch, multiprocessors)
    for layout in LAYOUTS:
        steps(lines, served, layout)
    for layout in ("NN", "NT"):
        large(lines, served, layout)
    for B, H in POINTWISE:
        lines.item(f"pointwise float32 B={B} H={H}", partial(pointwise, "float32", B, H))
    lines.item("clocks after", lambda: {"smi": smi(CLOCKS)})
    return 0


def grid(lines: Lines, multiprocessors: int) -> None:
    """Grid barriers, and exchanges through the L2 cache."""
    counts = sorted({*MEMBERS, multiprocessors})
    lines.item("flag handoff", sync_costs.flag_handoff)
    for way in exchange_costs.L2_WAYS:
        lines.item(f"hop {way}", partial(exchange_costs.hop, way))
    for blocks in counts:
        lines.item(f"grid.sync {blocks}", partial(sync_costs.grid_sync, blocks))
        lines.item(f"grid counter {blocks}", partial(sync_costs.grid_counter, blocks))
    for words in exchange_costs.VECTORS:
        for members in counts:
            for way in exchange_costs.L2_WAYS:
                key = f"all-gather {way} N={members} words={words}"
                lines.item(key, partial(exchange_costs.all_gather, way, members, words, multiprocessors))


def clusters(lines: Lines, arch: int, multiprocessors: int) -> None:
    """Cluster barriers, and exchanges through distributed shared memory."""

    def item(key: str, work: Callable[[], Item]) -> None:
        if arch < 90:
            lines.skip(key, "thread-block clusters need compute capability 9.0")
        else:
            lines.item(key, work)

    for size in sync_costs.CLUSTERS:
        item(f"cluster.sync {size}", partial(sync_costs.cluster_sync, size, multiprocessors))
        for way in ("push", "pull"):
            item(f"DSMEM hop {way} C={size}", partial(exchange_costs.cluster_hop, way, size))
        for words in exchange_costs.VECTORS:
            for way in exchange_costs.CLUSTER_WAYS:
                key = f"DSMEM all-gather {way} C={size} words={words}"
                item(key, partial(exchange_costs.cluster_gather, way, size, words, multiprocessors))


def large(lines: Lines, dtypes: list[str], layout: str) -> None:
    for dtype in dtypes:
        n = LARGE[dtype]
        lines.item(f"product {dtype} {layout} {n}", partial(product, dtype, layout, n, n, n, SECONDS), NEEDS)


def steps(lines: Lines, dtypes: list[str], layout: str) -> None:
    for dtype in dtypes:
        for B, H in STEPS:
            work = partial(product, dtype, layout, *step_shape(layout, B, H), STEP_SECONDS)
            lines.item(f"step {dtype} {layout} B={B} H={H}", work, NEEDS)


def step_shape(layout: str, B: int, H: int) -> tuple[int, int, int]:
    """(M, N, K) of an LSTM's products: h W_hh^T, dgates W_hh, and W_hh's gradient over CHUNK steps."""
    return {"TN": (B, 4 * H, H), "NN": (B, H, 4 * H), "NT": (4 * H, H, B * CHUNK)}[layout]


def copy(size: int) -> Item:
    """Bytes read and written per second by a copy within the device."""
    import cupy

    size = min(size, cupy.cuda.runtime.memGetInfo()[0] // 4)
    a = cupy.zeros(size, np.uint8)
    b = cupy.empty(size, np.uint8)
    a[::4096] = 1
    samples = timing.measure(lambda: b.data.copy_from_device_async(a.data, size), SECONDS)
    times = timing.summary(samples.device)
    return {"bytes": size, "ms": times, "gb_per_s": 2 * size / times["median"] / 1e6}


class Operand(NamedTuple):
    """A matrix on the device, and the block of rows that it repeats."""

    array: Any
    block: np.ndarray

    def part(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return self.block[np.ix_(rows % len(self.block), columns)].astype(np.float64)


def product(dtype: str, layout: str, M: int, N: int, K: int, seconds: float) -> Item:
    """The rate of an (M, N) product over K through the library's cuBLAS calls, with random numbers.

    A step's product is too short for a pair of events, so a graph of many products is timed, as in the stepwise
    schedule. NT accumulates, as the library does from the second chunk on. The error is that of a product into an
    output of NaN, and of one more product that is added to it.
    """
    import cupy

    from rnnkit.backends.cupy.cublas import Products

    row = DTYPES[dtype]
    shapes = {"TN": ((M, K), (N, K)), "NN": ((M, K), (K, N)), "NT": ((K, M), (K, N))}[layout]
    a, b = (_operand(shape, row, seed) for seed, shape in enumerate(shapes))
    out = cupy.empty((M, N), row.compute)
    out.data.memset_async(0xFF, out.nbytes)  # NaN in every dtype
    repeats = max(1, min(200, int(2e10 / (2 * M * N * K))))
    stream, handle, scratch = _capturing()
    handle.use(stream.ptr, scratch.data.ptr, scratch.nbytes)
    method = getattr(Products(handle, row), LAYOUTS[layout])
    adds = layout == "NT"
    operands = (_matrix(a.array, row.stored), _matrix(b.array, row.stored), _matrix(out, row.computed), M, N, K)
    timing.wait()
    with stream:
        worst = 0.0
        for times in (1, 2):
            method(*operands, add=times == 2)
            stream.synchronize()
            worst = max(worst, _error(layout, a, b, out, K, times))
        stream.begin_capture()
        for _ in range(repeats):
            method(*operands, add=adds)
        graph = stream.end_capture()
    if not worst < 10 * row.forward.rtol + 10 * row.forward.atol:
        return {"status": "wrong", "why": f"the error is {worst:.3g} of the largest element", "error": worst}
    ms = timing.summary([all_ms / repeats for all_ms in timing.measure(graph.launch, seconds).device])
    tflops = 2 * M * N * K / ms["median"] / 1e9
    return {"error": worst, "ms": ms, "tflops": tflops, "repeats": repeats, "shape": (M, N, K)}


def _error(layout: str, a: Operand, b: Operand, out: Any, K: int, times: int) -> float:
    """The largest error of the first and last row of `out`, against `times` float64 products, over their maximum."""
    M, N = out.shape
    rows = np.array([0, M - 1])
    columns = np.unique(np.linspace(0, N - 1, COLUMNS).astype(int))
    k = np.arange(K)
    left = a.part(k, rows).T if layout == "NT" else a.part(rows, k)
    right = b.part(columns, k).T if layout == "TN" else b.part(k, columns)
    want = times * (left @ right)
    got = np.stack([out[int(r)].get()[columns] for r in rows])
    error = float(np.abs(got - want).max() / np.abs(want).max())
    return error if np.isfinite(error) else float("inf")


def pointwise(dtype: str, B: int, H: int) -> Item:
    """The bandwidth of the LSTM's forward_step. Its arrays are in the L2 cache where they fit."""
    import cupy

    from rnnkit.backends.cupy import modules, sources, stepwise_launch

    row = DTYPES[dtype]
    GH = 4 * H
    kernels = modules.kernels(stepwise_launch.build("lstm", row.stored))
    rows = modules.kernels(sources.rows(row.stored))
    gates = cupy.zeros((B, GH), row.compute)
    side = cupy.zeros((B, GH), row.compute)
    bias = cupy.zeros(2 * GH, row.compute)
    c = cupy.zeros((B, H), row.compute)
    h = cupy.zeros((B, H), row.storage)
    y = cupy.empty((1, B, H), row.storage)
    call = cupy.zeros(256, np.uint8)
    nothing = np.uint64(0)
    zero = np.int64(0)
    strides = tuple(map(np.int64, (B * H, H, 0, 0)))
    rows["set_call"]((1,), (1,), (call, y, *(nothing,) * 7, *strides, zero, zero))
    each = stepwise_launch.WIDE_BYTES // row.compute.itemsize
    wide = H % each == 0 and B * H >= stepwise_launch.WIDE_ELEMENTS
    kernel = kernels["forward_step_wide" if wide else "forward_step"]
    shape = modules.rows_by_units(B, H // each if wide else H)
    i = np.int32
    arguments = (call, gates, side, bias, h, c, nothing, i(B), i(H), i(H), i(0))
    times = timing.summary(timing.measure(lambda: kernel(*shape, arguments), SECONDS).device)
    s = row.storage.itemsize
    k = row.compute.itemsize
    moved = 2 * B * GH * k + 2 * GH * k + 2 * B * H * k + 2 * B * H * s
    return {"bytes": moved, "ms": times, "gb_per_s": moved / times["median"] / 1e6}


@lru_cache(maxsize=4)
def _block(columns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((BLOCK_ROWS, columns), dtype=np.float32)


def _operand(shape: tuple[int, int], row: Any, seed: int) -> Operand:
    """Random numbers on the device, since zeros would run faster. One block is drawn, and copied down the rows."""
    import cupy

    block = _block(shape[1], seed)[: shape[0]].astype(row.storage)
    source = cupy.asarray(block)
    array = cupy.empty(shape, row.storage)
    for first in range(0, shape[0], len(block)):
        size = block[: shape[0] - first].nbytes
        (array.data + first * block.strides[0]).copy_from_device_async(source.data, size)
    return Operand(array, block)


def _matrix(array: Any, dtype: str) -> Any:
    from rnnkit.backends.cupy.cublas import Matrix

    return Matrix(int(array.data.ptr), int(array.shape[1]), dtype)


def _capturing() -> tuple[Any, Any, Any]:
    """A stream to capture on, a cuBLAS handle and its workspace."""
    import cupy

    from rnnkit.backends.cupy.cublas import Handle, workspace_bytes

    scratch = cupy.empty(workspace_bytes(cupy.cuda.runtime.getDevice()), np.uint8)
    return cupy.cuda.Stream(non_blocking=True), Handle(), scratch


if __name__ == "__main__":
    sys.exit(main())
