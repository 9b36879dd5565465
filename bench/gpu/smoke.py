"""Does anything work on this card: python -m bench.gpu.smoke. Short checks, one line each, before anything is measured.

The first three are the base case (`plan.BASE_CASE`): without them no later part can measure anything.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np

from bench.gpu import card, timing
from bench.gpu.items_file import Item, Lines, Unavailable
from rnnkit.core.dtypes import DTYPES
from rnnkit.testing import Case, error_ratio, make_inputs, run, widened

CASE = Case("lstm", T=12, B=5, I=9, H=20)


def main(arguments: list[str] | None = None) -> int:
    lines = Lines.from_arguments(__doc__ or "", arguments)
    lines.item("nvrtc", nvrtc)
    lines.item("cublas", cublas)
    lines.item("one step", lambda: right("cupy", dataclasses.replace(CASE, T=1)))
    lines.item("a graph has the bits of plain launches", graph)
    lines.item("torch's LSTM", torch_lstm)
    lines.item("bfloat16 over DLPack", bfloat16_over_dlpack)
    lines.item("a Numba kernel", numba_kernel)
    return 0


def nvrtc() -> Item:
    """NVRTC compiles a module of the library, and the driver loads it."""
    from rnnkit.backends.cupy import modules, stepwise_launch

    build = stepwise_launch.build("lstm", "float32")
    kernels = modules.kernels(build)
    # Only a compiled and loaded kernel has attributes.
    registers = {name: kernel.registers for name, kernel in kernels.items()}
    return {"module": build.name, "kernels": len(kernels), "most_registers": max(registers.values())}


def cublas() -> Item:
    """A product through the library's cuBLAS calls, against float64."""
    import cupy

    from rnnkit.backends.cupy.arena import current
    from rnnkit.backends.cupy.cublas import Matrix, Products

    rng = np.random.default_rng(0)
    a, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 40), (24, 40)))
    there = [cupy.asarray(a), cupy.asarray(w), cupy.full((5, 24), np.nan, np.float32)]
    matrices = [Matrix(int(array.data.ptr), array.shape[1], "float32") for array in there]
    arena = current()
    arena.begin()
    Products(arena.handle, DTYPES["float32"]).rows_by_weights(*matrices, 5, 24, 40)
    worst = error_ratio(there[2], a.astype(np.float64) @ w.astype(np.float64).T, "float32")
    return _verdict(worst, "the product")


def right(backend: str, case: Case, dtype: str = "float32") -> Item:
    """Forward and backward of a case within their bounds of the float64 oracle."""
    inputs = make_inputs(case, dtype, device="cuda:0")
    got = run(case, inputs, backend)
    want = run(case, widened(inputs), "numpy")
    forward = ("y", "h_n", "c_n")
    ratios = {
        name: error_ratio(got[name], want[name], dtype, "forward" if name in forward else "backward") for name in want
    }
    name = max(ratios, key=ratios.__getitem__)
    return _verdict(ratios[name], name)


def graph() -> Item:
    """A shape's first call is launched, the second captured, the third replayed. All must have the same bits."""
    from rnnkit.backends.cupy import arena

    inputs = make_inputs(CASE, "float32", device="cuda:0")
    before = arena.counts()
    results = [run(CASE, inputs, "cupy:stepwise") for _ in range(3)]  # the schedule with graphs
    after = arena.counts()
    found = {
        name: getattr(after, name) - getattr(before, name) for name in ("launches", "captures", "replays", "refused")
    }
    for name, array in results[0].items():
        if any(array.tobytes() != other[name].tobytes() for other in results[1:]):
            return {"status": "wrong", "why": f"{name} has other bits from a graph", **found}
    if found["refused"] or not found["replays"]:
        return {"status": "failed", "why": "no graph was used: the steps were launched one by one", **found}
    return found


def torch_lstm() -> Item:
    """torch's LSTM runs on the card. The item has the versions of torch and cuDNN."""
    versions = card.torch_versions()
    if not versions["sees_the_card"]:
        raise Unavailable(f"torch {versions['torch']} sees no CUDA device")
    import torch

    module = torch.nn.LSTM(9, 20, device="cuda")
    y, _ = module(torch.randn(12, 5, 9, device="cuda"))
    y.sum().backward()
    finite = bool(torch.isfinite(y).all())
    return {**versions, "status": "ok" if finite else "wrong", "why": "" if finite else "y is not finite"}


def bfloat16_over_dlpack() -> Item:
    """A bfloat16 tensor of torch is read without a copy, and gives the bits of an equal CuPy array."""
    versions = card.torch_versions()
    if not versions["sees_the_card"]:
        raise Unavailable(f"torch {versions['torch']} sees no CUDA device")
    import cupy
    import torch

    import rnnkit

    if int(cupy.cuda.Device().compute_capability) < 80:
        return {"status": "skipped", "why": "bfloat16 needs compute capability 8.0"}
    layer = rnnkit.LSTM(9, 20, dtype="bfloat16", device="cuda", rng=1)
    given = torch.randn(12, 5, 9, device="cuda").to(torch.bfloat16)
    torch.cuda.synchronize()
    y, _ = layer(given)
    back = torch.from_dlpack(y)
    same = cupy.from_dlpack(given)
    if back.data_ptr() != y.data.ptr or same.data.ptr != given.data_ptr():
        return {"status": "wrong", "why": "an array was copied"}
    other, _ = layer(same.copy())
    if y.get().tobytes() != other.get().tobytes():
        return {"status": "wrong", "why": "a torch tensor gives another result than a CuPy array"}
    return {}


def numba_kernel() -> Item:
    """The Numba CUDA backend on a small case."""
    from rnnkit.backends import BACKENDS

    problem = BACKENDS["numba_cuda"].problem()
    if problem:
        raise Unavailable(problem)
    found = right("numba_cuda", CASE)
    timing.wait()
    return found


def _verdict(worst: float, name: str) -> dict[str, Any]:
    if worst <= 1:
        return {"worst": worst}
    return {"status": "wrong", "why": f"{name} is {worst:.3g} times its bound off", "worst": worst}


if __name__ == "__main__":
    sys.exit(main())
