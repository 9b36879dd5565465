"""ONNX Runtime: the model of bench.peers.onnx_model, forward only.

Inputs and outputs are bound once to preallocated buffers, so a call makes no extra copy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime

from bench.grid import Point
from bench.peers import Prepared
from bench.peers.onnx_model import build_model
from bench.problem import Problem
from rnnkit.core.cells import CELLS
from rnnkit.core.dtypes import DTYPES


def make(name: str) -> OnnxRuntime:
    return OnnxRuntime()


class OnnxRuntime:
    def __init__(self) -> None:
        self.versions = {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}

    def unsupported(self, point: Point) -> str | None:
        if point.backward:
            return "ONNX Runtime is inference only"
        if point.dtype != "float32":
            return "ONNX Runtime's recurrent kernels have float32 alone"
        return "the ONNX LSTM has no projection" if point.P else None

    def prepare(self, problem: Problem, threads: int) -> Prepared:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            build_model(problem).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        point = problem.point
        names = CELLS[problem.point.cell].states
        feeds = {"x": problem.x, **{f"{n}0": s for n, s in zip(names, problem.state0, strict=True)}}
        if problem.lengths is not None:
            feeds["lengths"] = problem.lengths.astype(np.int32)
        shapes = {"y": problem.dy.shape, **{f"{n}_n": s.shape for n, s in zip(names, problem.state0, strict=True)}}
        binding = session.io_binding()
        buffers = {}
        values = {n: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(a)) for n, a in feeds.items()}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name, shape in shapes.items():
            buffers[name] = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), DTYPES[point.dtype].storage)
            binding.bind_ortvalue_output(name, buffers[name])

        def call() -> Any:
            session.run_with_iobinding(binding)
            return values, buffers

        return Prepared(call, lambda called: {name: buffer.numpy() for name, buffer in called[1].items()})
