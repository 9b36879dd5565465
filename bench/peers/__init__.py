"""PEERS: one row a thing that is measured, one small file each beside this one.

A peer's file has

    make(name)                       -> a Peer; raises ImportError, or Absent with the reason, where it cannot run here
    Peer.versions                    -> name -> version of what does the work
    Peer.unsupported(point)          -> why it has no such network, or None
    Peer.prepare(problem, threads)   -> Prepared: `call()` runs the whole pass and waits for it; `results(called)` turns
                                        what it returned into NumPy arrays by name, outside the clock

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
    """One row of PEERS: its name, its file, whether it is rnnkit itself, and whether it compiles for every point.

    One that does is asked to prepare before the others, and compiles while they are checked.
    """

    name: str
    module: str
    ours: bool = False
    compiles: bool = False

    def load(self) -> Peer:
        return importlib.import_module(self.module).make(self.name)


# rnnkit's own backends in their order of preference, then the others; last, backends with one schedule pinned.
PEERS: dict[str, PeerRow] = {
    row.name: row
    for row in (
        *(PeerRow(name, "bench.peers.rnnkit", ours=True) for name in BACKENDS),
        PeerRow("torch", "bench.peers.torch"),
        PeerRow("onnxruntime", "bench.peers.onnxruntime"),
        PeerRow("jax", "bench.peers.jax", compiles=True),
        *(PeerRow(name, "bench.peers.rnnkit", ours=True) for name in pinned_names() if ":" in name),
    )
}
ORACLE = "numpy"  # a backend of rnnkit that is there to be right
