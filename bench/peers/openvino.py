"""OpenVINO: the ONNX model that ONNX Runtime runs too, forward only, in one infer request that all calls reuse.

INFERENCE_PRECISION_HINT is always named: without it OpenVINO computes in bfloat16 where the processor has units for it.
It is f32 at float32 points. At bfloat16 points it is bf16, and inputs and results are float32 arrays, exact in the
first case and rounded to bfloat16 at the end. A processor on which OpenVINO does not take the hint is unsupported.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import openvino

from bench.grid import Point
from bench.peers import Absent, Prepared
from bench.peers.onnx_model import build_model
from bench.peers.signal_stack import kept_signal_stack
from bench.problem import Problem
from rnnkit.core.cells import CELLS
from rnnkit.core.dtypes import DTYPES

HINTS = {"float32": "f32", "bfloat16": "bf16"}
DEVICE = "CPU"


def make(name: str) -> OpenVino:
    return OpenVino()


class OpenVino:
    def __init__(self) -> None:
        self.versions = {"openvino": openvino.get_version().split("-")[0], "onnx": onnx.__version__}
        self.core = openvino.Core()
        with kept_signal_stack():
            devices = self.core.available_devices
        if DEVICE not in devices:
            raise Absent("this OpenVINO has no CPU device")
        self.capabilities = self.core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")

    def unsupported(self, point: Point) -> str | None:
        if point.backward:
            return "OpenVINO is inference only"
        if point.dtype not in HINTS:
            return f"OpenVINO computes recurrent layers in {' or '.join(HINTS)}"
        if point.dtype == "bfloat16" and "BF16" not in self.capabilities:
            return "OpenVINO has no bfloat16 on this processor"
        return "the ONNX LSTM has no projection" if point.P else None

    def prepare(self, problem: Problem, threads: int) -> Prepared:
        hint = HINTS[problem.point.dtype]
        single = in_float32(problem)
        model = self.core.read_model(build_model(single).SerializeToString())
        settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = self.core.compile_model(model, DEVICE, settings)
        taken = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if taken != hint:
            raise ValueError(f"OpenVINO took INFERENCE_PRECISION_HINT {taken}, not {hint}")
        request = compiled.create_infer_request()
        names = CELLS[single.point.cell].states
        feeds = {"x": single.x, **{f"{n}0": s for n, s in zip(names, single.state0, strict=True)}}
        if single.lengths is not None:
            feeds["lengths"] = single.lengths.astype(np.int32)
        arrays = {name: np.ascontiguousarray(a) for name, a in feeds.items()}
        for name, array in arrays.items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        outputs = ["y", *(f"{n}_n" for n in names)]

        def call() -> Any:
            request.infer(share_outputs=True)
            return arrays, request

        def results(called: Any) -> dict[str, np.ndarray]:
            storage = DTYPES[problem.point.dtype].storage
            return {name: np.array(called[1].get_tensor(name).data).astype(storage, copy=False) for name in outputs}

        return Prepared(call, results)


def in_float32(problem: Problem) -> Problem:
    """The problem with float32 arrays, which hold every bfloat16 exactly."""
    if problem.point.dtype == "float32":
        return problem

    def single(a: np.ndarray) -> np.ndarray:
        return a.astype(np.float32)

    return replace(
        problem,
        point=replace(problem.point, dtype="float32"),
        x=single(problem.x),
        state0=tuple(map(single, problem.state0)),
        params={name: single(p) for name, p in problem.params.items()},
        dy=single(problem.dy),
    )
