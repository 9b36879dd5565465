"""PEERS: one row per library or backend that is measured. Each has a module in this folder.

A peer's module has

    make(name)                       -> a Peer; raises ImportError, or Absent with the reason, where it cannot run here
    Peer.versions                    -> name -> version, of the libraries that compute the result
    Peer.unsupported(point)          -> why the peer cannot compute the point, or None
    Peer.prepare(problem, threads)   -> Prepared: `call()` runs the whole pass and waits for it, and is timed;
                                        `results(called)` converts its return value to NumPy arrays by name

Names of results are rnnkit's and torch's: y, h_n, c_n, and with a backward dx, dh0, dc0 and "d" + a parameter's name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from bench.grid import Point
from bench.problem import Problem
from rnnkit.backends import BACKENDS, pinned_names


class Absent(Exception):
    """A peer cannot run on this machine; the message says why."""


class Prepared(NamedTuple):
    """A point ready to run: weights in place, inputs where the peer wants them."""

    call: Callable[[], Any]
    results: Callable[[Any], dict[str, np.ndarray]]


class Peer(Protocol):
    versions: dict[str, str]

    def unsupported(self, point: Point) -> str | None: ...

    def prepare(self, problem: Problem, threads: int) -> Prepared: ...


@dataclass(frozen=True)
class PeerRow:
    """One row of PEERS: its name, its module, whether it is rnnkit itself, and whether it compiles for every point.

    A peer that compiles prepares before the others, and compiles while they are checked. A peer that is slow is left
    out of the grids with many points unless it is named.
    """

    name: str
    module: str
    ours: bool = False
    compiles: bool = False
    slow: bool = False

    def load(self) -> Peer:
        return importlib.import_module(self.module).make(self.name)


ORACLE = "numpy"  # rnnkit's reference backend

# rnnkit's backends in their order of preference, then the other libraries, then backends with one schedule pinned.
PEERS: dict[str, PeerRow] = {
    row.name: row
    for row in (
        *(PeerRow(name, "bench.peers.rnnkit", ours=True, slow=name == ORACLE) for name in BACKENDS),
        PeerRow("via torch", "bench.peers.torch", ours=True),
        PeerRow("via torch, compiled", "bench.peers.torch", ours=True, compiles=True, slow=True),
        PeerRow("torch", "bench.peers.torch"),
        PeerRow("onnxruntime", "bench.peers.onnxruntime"),
        PeerRow("openvino", "bench.peers.openvino"),
        PeerRow("jax", "bench.peers.jax", compiles=True),
        *(PeerRow(name, "bench.peers.rnnkit", ours=True) for name in pinned_names() if ":" in name),
    )
}
