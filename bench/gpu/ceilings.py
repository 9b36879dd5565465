"""The card's ceilings: python -m bench.gpu.ceilings. Copy bandwidth, matrix rates, pointwise kernels, barriers."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from bench.gpu import barriers, timing
from bench.gpu.card import CLOCKS, smi
from bench.gpu.lines import Item, Lines
from rnnkit.dtypes import DTYPES

# One that lies in the L2 cache of a large card, and one out of memory.
COPY_BYTES = (8 << 20, 4 << 30)
LARGE = {"float64": 4096, "float32": 8192, "tf32": 8192, "float16": 8192, "bfloat16": 8192}
# A step's product: (B, H) by (H, 4H), as an LSTM's.
STEPS = ((1, 1024), (32, 256), (32, 1024), (128, 512), (128, 1024), (512, 2048))
POINTWISE = ((32, 256), (128, 1024), (512, 2048))
SECONDS = 0.1


def main(arguments: list[str] | None = None) -> int:
    lines = Lines.from_arguments(__doc__ or "", arguments)
    import cupy

    device = cupy.cuda.Device()
    arch, multiprocessors = int(device.compute_capability), device.attributes["MultiProcessorCount"]
    lines.write({"clocks": smi(CLOCKS)})
    for size in COPY_BYTES:
        lines.item(f"copy {size >> 20} MiB", lambda size=size: copy(size))
    served = [name for name in DTYPES if name != "bfloat16" or arch >= 80]
    for dtype in served:
        n = LARGE[dtype]
        lines.item(f"product {dtype} {n}", lambda dtype=dtype, n=n: product(dtype, n, n, n))
    for dtype in served:
        for B, H in STEPS:
            lines.item(f"step {dtype} B={B} H={H}", lambda d=dtype, B=B, H=H: product(d, B, 4 * H, H))
    for B, H in POINTWISE:
        lines.item(f"pointwise float32 B={B} H={H}", lambda B=B, H=H: pointwise("float32", B, H))
    lines.item("launches", barriers.launches)
    for blocks in sorted({2, 8, 32, multiprocessors}):
        lines.item(f"grid.sync {blocks}", lambda blocks=blocks: barriers.grid_sync(blocks))
        lines.item(f"grid counter {blocks}", lambda blocks=blocks: barriers.grid_counter(blocks))
    lines.item("flag handoff", barriers.flag_handoff)
    for cluster in barriers.CLUSTERS:
        key = f"cluster.sync {cluster}"
        if arch < 90:
            lines.skip(key, "thread-block clusters need compute capability 9.0")
        else:
            lines.item(key, lambda cluster=cluster: barriers.cluster_sync(cluster, multiprocessors))
    lines.write({"clocks": smi(CLOCKS)})
    return 0


def copy(size: int) -> Item:
    """Bytes read and written a second by a copy inside the device."""
    import cupy

    size = min(size, cupy.cuda.runtime.memGetInfo()[0] // 4)
    a, b = cupy.zeros(size, np.uint8), cupy.empty(size, np.uint8)
    a[::4096] = 1
    samples = timing.measure(lambda: b.data.copy_from_device_async(a.data, size), SECONDS)
    times = timing.summary(samples.device)
    return {"bytes": size, "ms": times, "gb_per_s": 2 * size / times["median"] / 1e6}


def product(dtype: str, M: int, N: int, K: int) -> Item:
    """The rate of (M, K) by (N, K) transposed through the library's own cuBLAS path, with random numbers.

    A step's product is too short for an event of its own, so a graph of many is timed, as schedule D runs it.
    """
    import cupy

    from rnnkit.backends.cuda.cublas import Products

    row = DTYPES[dtype]
    a, w = _random((M, K), row), _random((N, K), row)
    out = cupy.empty((M, N), row.compute)
    repeats = max(1, min(200, int(2e10 / (2 * M * N * K))))
    stream, handle, scratch = _capturing()
    handle.use(stream.ptr, scratch.data.ptr, scratch.nbytes)
    products = Products(handle, row)
    operands = (_matrix(a, row.stored), _matrix(w, row.stored), _matrix(out, row.computed), M, N, K)
    with stream:
        products.rows_by_weights(*operands)
        stream.synchronize()
        stream.begin_capture()
        for _ in range(repeats):
            products.rows_by_weights(*operands)
        graph = stream.end_capture()
    times = timing.summary([ms / repeats for ms in timing.measure(graph.launch, SECONDS).device])
    some = min(N, 64)
    want = a[:1].get().astype(np.float64) @ w[:some].get().astype(np.float64).T
    worst = float(np.abs(out[:1, :some].get() - want).max() / np.abs(want).max())
    status = "ok" if worst < 10 * row.forward.rtol + 10 * row.forward.atol else "wrong"
    tflops = 2 * M * N * K / times["median"] / 1e9
    return {"status": status, "error": worst, "ms": times, "tflops": tflops, "repeats": repeats}


def pointwise(dtype: str, B: int, H: int) -> Item:
    """The LSTM's forward_step against the bytes that it moves; its arrays lie in the L2 cache where they fit."""
    import cupy

    from rnnkit.backends.cuda import modules, sources

    row, GH = DTYPES[dtype], 4 * H
    kernels = modules.kernels(sources.stepwise("lstm", row.stored))
    gates, side = cupy.zeros((B, GH), row.compute), cupy.zeros((B, GH), row.compute)
    bias, c = cupy.zeros(2 * GH, row.compute), cupy.zeros((B, H), row.compute)
    h, y = cupy.zeros((B, H), row.storage), cupy.empty((1, B, H), row.storage)
    call, nothing, zero = cupy.zeros(256, np.uint8), np.uint64(0), np.int64(0)
    set_call = (call, y, *(nothing,) * 4, nothing, nothing, zero, zero, zero, zero)
    kernels["set_call"]((1,), (1,), set_call)
    shape = modules.rows_by_units(B, H)
    i = np.int32
    arguments = (call, gates, side, bias, h, c, nothing, i(B), i(B), i(H), i(H), i(0), zero)
    times = timing.summary(timing.measure(lambda: kernels["forward_step"](*shape, arguments), SECONDS).device)
    s, k = row.storage.itemsize, row.compute.itemsize
    moved = 2 * B * GH * k + 2 * GH * k + 2 * B * H * k + 2 * B * H * s
    return {"bytes": moved, "ms": times, "gb_per_s": moved / times["median"] / 1e6}


def _random(shape: tuple[int, ...], row: Any) -> Any:
    """Random numbers on the device: zeros would run faster than data does."""
    import cupy

    block = np.random.default_rng(0).standard_normal((min(shape[0], 256), shape[1]), dtype=np.float32)
    repeats = -(-shape[0] // block.shape[0])
    return cupy.asarray(np.tile(block, (repeats, 1))[: shape[0]].astype(row.storage))


def _matrix(array: Any, dtype: str) -> Any:
    from rnnkit.backends.cuda.cublas import Matrix

    return Matrix(int(array.data.ptr), int(array.shape[1]), dtype)


def _capturing() -> tuple[Any, Any, Any]:
    """A stream to capture on, a cuBLAS handle, and its work space."""
    import cupy

    from rnnkit.backends.cuda.cublas import Handle, workspace_bytes

    scratch = cupy.empty(workspace_bytes(cupy.cuda.runtime.getDevice()), np.uint8)
    return cupy.cuda.Stream(non_blocking=True), Handle(), scratch


if __name__ == "__main__":
    sys.exit(main())
