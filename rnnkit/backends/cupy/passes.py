"""A forward pass as all schedules run it: products of x by chunks of steps, and around them states in and out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rnnkit.backends.cupy import arena as arenas
from rnnkit.backends.cupy.arena import Arena
from rnnkit.backends.cupy.cublas import Matrix, Products
from rnnkit.backends.cupy.launcher import contiguous, packing_table
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.backends.cupy.saved import Memory, Saved, SavedStates, chunk_buffers, of_chunk, saved_bytes
from rnnkit.backends.interface import LayerCall, Sizes
from rnnkit.core.cells import Array, State, Weights


class ForwardLauncher(Protocol):
    """What a schedule provides for `forward`: a `launcher.Launcher` with the steps of a chunk."""

    products: Products

    def pack(self, flat: Array, x: Array) -> None: ...

    def pack_chunk(self, flat: Array, x: Array, chunk: Chunk) -> None: ...

    def swap(self, one: str, other: str) -> None: ...

    def compute_matrix(self, name: str, ld: int) -> Matrix: ...

    def array(self, a: Array) -> Matrix: ...

    def forward_begin(self, state0: State, weights: Weights) -> None: ...

    def forward_chunk(self, chunk: Chunk, weights: Weights, y: Array, states: SavedStates) -> None:
        """The steps of a chunk, from the products of x in "gates", and the states in "h" and "c"."""
        ...

    def forward_end(self, state_n: State) -> None: ...


def forward_buffers(p: Problem) -> dict[str, int]:
    """Bytes of the buffers that `ForwardPass` and `launcher.Launcher` use."""
    c = p.compute_bytes
    gates = p.chunk_rows * p.GH * c
    sizes = {"gates": gates, "bias": 2 * p.GH * c, "h": p.B * p.R * p.storage_bytes}
    if p.ahead_steps is not None:
        sizes["gates_next"] = gates
    states = p.cell.n_cell_states
    sizes |= chunk_buffers(p)
    return sizes | ({"c": states * p.B * p.H * c} if states else {})


Launchers = Callable[[Arena, "Array | None"], ForwardLauncher]  # of an arena and a `packing_table`


class ForwardPass:
    """The forward of one layer, a chunk at a time. After `join` it holds y, state_n and saved.

    Where the problem has `ahead_steps`, the steps run on the arena's lane, and the products on its stream: the product
    of a chunk beside the steps of the chunk before. There are two buffers of products. A product waits until the steps
    of two chunks before have read its buffer, and the steps wait for their product.

    below: the layer whose y is this one's x, a chunk ahead of it. mask (T, B, R): what its y is multiplied by, or None.
    """

    def __init__(
        self,
        p: Problem,
        call: LayerCall,
        launcher_of: Launchers,
        arena: Arena,
        below: ForwardPass | None = None,
        mask: Array | None = None,
    ) -> None:
        import cupy

        self.p = p
        self.arena = arena
        self.below = below
        self.mask = mask
        self.y = call.out
        if self.y is None or self.y.strides[2] != p.storage_bytes:
            self.y = cupy.empty((p.T, p.B, p.R), p.dtype.storage)
        if p.ragged or not p.N:
            self.y.fill(0)
        self.given = call.x
        self.x = call.x
        self.state0 = contiguous(call.state0)
        self.weights = Weights(*contiguous(call.weights))
        memory = Memory(call.reserve if call.keep else None)
        self.states = SavedStates.placed(p, memory) if call.keep else SavedStates()
        self.table = packing_table(p)
        self.state_n: State
        self.chunks = 0  # that have been launched
        if not p.N:
            self.state_n = tuple(s.copy() for s in self.state0)
            return
        self.launcher = launcher_of(arena, self.table)
        if p.ragged:
            self.x = memory.array((p.N, p.I), p.dtype.storage)
            if below is None:
                self.launcher.pack(self.x, call.x)
        self.state_n = tuple(cupy.empty_like(s) for s in self.state0)
        self.launcher.forward_begin(self.state0, self.weights)

    def run(self, chunk: Chunk) -> None:
        """Launches the product of a chunk and its steps. The next chunk of `Problem.chunks` must follow."""
        if self.p.ahead_steps is None:
            self._product(chunk)
            self._steps(chunk)
            return
        here = self.arena.stream
        lane = self.arena.lane
        parity = self.chunks % 2
        if self.chunks >= 2:
            here.wait_event(lane.done[parity])
        if self.below is not None:
            here.wait_event(self.below.arena.lane.done[parity])
            self._take_from_below(chunk)
        self._product(chunk)
        lane.stream.wait_event(here.record(lane.ready[parity]))
        self.chunks += 1
        with lane.stream:
            self._steps(chunk)
        lane.stream.record(lane.done[parity])
        self.launcher.swap("gates", "gates_next")

    def _steps(self, chunk: Chunk) -> None:
        states = of_chunk(self.p, self.states, self.launcher, chunk.n0)
        self.launcher.forward_chunk(chunk, self.weights, self.y, states)

    def _take_from_below(self, chunk: Chunk) -> None:
        """Applies the mask to the steps of x that the layer below has just computed, and packs ragged rows."""
        steps = slice(chunk.t0, chunk.t0 + chunk.T)
        if self.mask is not None:
            x = self.given[steps]
            x *= self.mask[steps]
        if self.p.ragged:
            self.launcher.pack_chunk(self.x, self.given, chunk)

    def _product(self, chunk: Chunk) -> None:
        p = self.p
        launcher = self.launcher
        gates = launcher.compute_matrix("gates", p.GH)
        rows = launcher.array(self.x).at(chunk.n0)
        launcher.products.rows_by_weights(rows, launcher.array(self.weights.w_ih), gates, chunk.N, p.GH, p.I)

    def join(self) -> None:
        """Makes the arena's stream wait for the steps, also of a pass that failed."""
        if self.chunks:
            lane = self.arena.lane
            self.arena.stream.wait_event(lane.stream.record(lane.done[0]))

    def end(self) -> tuple[Array, State, Saved]:
        """y (T, B, R), the final states, and what `backward` needs."""
        if self.p.N:
            self.launcher.forward_end(self.state_n)
        return self.y, self.state_n, Saved(self.x, self.states, self.table)


def forward(p: Problem, call: LayerCall, launcher_of: Launchers) -> tuple[Array, State, Saved]:
    """y (T, B, R), the final states, and what `backward` needs."""
    one = ForwardPass(p, call, launcher_of, arenas.current())
    try:
        for chunk in p.chunks():
            one.run(chunk)
    finally:
        one.join()
    return one.end()


def forward_stack(
    problems: Sequence[Problem],
    calls: Sequence[LayerCall],
    masks: Sequence[Array | None],
    launchers: Sequence[Launchers],
) -> list[tuple[Array, State, Saved]]:
    """The layers of a stack at once, as a wavefront: each layer runs a chunk of steps behind the one below it.

    The x of a call is the `out` of the call before it, and each mask, if it is not None, multiplies that x. Products
    run on the current stream, the steps of each layer on a lane of its own.
    """
    passes: list[ForwardPass] = []
    try:
        for number, arena in enumerate(arenas.current().parts(len(calls))):
            below = passes[-1] if passes else None
            passes.append(ForwardPass(problems[number], calls[number], launchers[number], arena, below, masks[number]))
        chunks = list(problems[0].chunks())
        for front in range(len(chunks) + len(passes) - 1):
            for number, one in enumerate(passes):
                if 0 <= front - number < len(chunks):
                    one.run(chunks[front - number])
    finally:
        for one in passes:
            one.join()
    return [one.end() for one in passes]


def saved_in_reserve(p: Problem, call: LayerCall) -> Saved:
    """What the forward of this call saved, from `call.reserve`. The table of ragged rows goes to the device again."""
    memory = Memory(call.reserve)
    states = SavedStates.placed(p, memory)
    x = memory.array((p.N, p.I), p.dtype.storage) if p.ragged else call.x
    return Saved(x, states, packing_table(p))


def memory(p: Problem, sizes: Sizes, keep: bool, workspaces: tuple[dict[str, Any], ...]) -> tuple[int, int]:
    """The transient and kept bytes of `rnnkit.backends.Description`, from the workspaces of a call's passes."""
    import cupy

    T, B, I, _, _, N = sizes
    work = max(sum(workspace.values()) for workspace in workspaces)
    transient = arenas.bytes_of(work, cupy.cuda.runtime.getDevice())
    packed = N * I * p.storage_bytes + 8 * (B + T + 1) if N != T * B else 0
    kept = saved_bytes(p, N) + packed if keep else 0
    return transient + (0 if keep else packed), kept
