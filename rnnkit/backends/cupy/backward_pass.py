"""A backward pass as all schedules run it: steps by chunks, then the products over the row-steps of each chunk.

Per chunk, dx, dW_ih, dW_hh and the biases' gradients follow its steps, so the workspace does not grow with T. All
products of a layer run on one stream, chunk by chunk, so a sum is added up in the same order whatever runs beside it.
What the call does not want is not launched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from rnnkit.backends.cupy import arena as arenas
from rnnkit.backends.cupy.arena import Arena
from rnnkit.backends.cupy.cublas import Matrix
from rnnkit.backends.cupy.launcher import Launcher, contiguous, units_aligned
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.backends.cupy.recompute_buffers import recompute_buffers
from rnnkit.backends.cupy.saved import Saved, SavedStates
from rnnkit.backends.cupy.weight_sums import WeightSums, weight_sum_buffers
from rnnkit.backends.interface import NO_DWEIGHTS, BackwardCall, Gradients
from rnnkit.core.cells import Array, State, Weights

if TYPE_CHECKING:
    from rnnkit.backends.cupy.recompute import Recomputation

# The buffers that the steps of a chunk write for its products.
GRADIENTS = ("dgates_x", "dgates_h", "dprojected")


class BackwardLauncher(Launcher):
    """A Launcher with the steps of a chunk, which a schedule provides for `backward`."""

    def backward_begin(self, dstate_n: State, weights: Weights) -> None:
        """Copies the gradients of the final states to "dh" and "dc"."""
        self.gradients_begin(dstate_n)

    def backward_chunk(self, chunk: Chunk, weights: Weights, states: SavedStates, dy: Array | None) -> None:
        """The steps of a chunk, last first, from "dh" and "dc", which they update. dy (T, B, R): None for zeros.

        Their gradients end in "dgates_x" (row-steps, G*H), in "dgates_h" if the cell splits the sides, and under
        projection in "dprojected" (row-steps, R).
        """
        raise NotImplementedError

    def hidden_operands(self, chunk: Chunk, states: SavedStates) -> Iterator[tuple[Matrix, int, int]]:
        """What W_hh was multiplied by in a chunk whose steps have just run, (N, R), each for the gates [first, end)."""
        for number, (_, first, end) in enumerate(self.p.cell.products):
            yield self.array(states.operand if number else states.h_prev).at(chunk.n0), first, end


Launchers = Callable[[Arena, "Array | None"], BackwardLauncher]  # of an arena and a `packing_table`


def backward_buffers(p: Problem) -> dict[str, int]:
    """Bytes of the buffers that `BackwardPass` and `launcher.Launcher` use."""
    s = p.storage_bytes
    c = p.compute_bytes
    sizes = {"dgates_x": p.chunk_rows * p.GH * s, "dh": p.B * p.R * c}
    if p.cell.splits_sides:
        sizes["dgates_h"] = p.chunk_rows * p.GH * s
    if p.projected:
        sizes["dprojected"] = p.chunk_rows * p.R * s
    if p.ahead_steps is not None:
        sizes |= {_next(name): sizes[name] for name in GRADIENTS if name in sizes}
    if p.cell.n_cell_states:
        sizes["dc"] = p.cell.n_cell_states * p.B * p.H * c
    return sizes | weight_sum_buffers(p) | recompute_buffers(p)


def _next(name: str) -> str:
    """The second of two buffers that alternate."""
    return f"{name}_next"


class BackwardPass:
    """The backward of one layer, a chunk at a time, the last one first. After `join`, `end` gives its gradients.

    Where the problem has `ahead_steps`, the steps run on the arena's lane, and the products on its stream: those of a
    chunk beside the steps of the chunk that follows. There are two sets of the buffers between steps and products. The
    steps of a chunk wait until the products of two chunks before have read its buffers, and the products wait for their
    steps. Every array of the pass belongs to the arena's stream, which waits for all work of the lane before the pass
    ends, so its memory is not used again too early.

    Gates that are computed again are computed on the arena's stream, those of the next chunk before the products of
    this one. The next steps wait for them, and so for the products of the chunk before this one.

    above: the layer whose dx is this one's dy, a chunk ahead of it. feeds: whether another layer takes dx of this one
    in the same way; mask (T, B, I): what dx is multiplied by for it, or None.
    """

    def __init__(
        self,
        p: Problem,
        call: BackwardCall,
        launcher_of: Launchers,
        arena: Arena,
        above: BackwardPass | None = None,
        feeds: bool = False,
        mask: Array | None = None,
    ) -> None:
        import cupy

        self.p = p
        self.arena = arena
        self.above = above
        self.feeds = feeds
        self.mask = mask
        self.saved = call.saved
        self.dstate_n = contiguous(call.dstate_n)
        self.weights = Weights(*contiguous(call.weights))
        self.into = None if call.cache is None else call.cache.grads
        self.wants_dweights = call.wants_dweights
        self.dx = cupy.empty((p.T, p.B, p.I), p.dtype.storage) if call.wants_dx else None
        self.chunks = 0  # that have been launched
        if not p.N:
            return
        self.dy = units_aligned(call.dy) if above is None else above.dx
        self.dx_packed = cupy.empty((p.N, p.I), p.dtype.storage) if call.wants_dx and p.ragged else self.dx
        self.launcher = launcher_of(arena, self.saved.packing_table)
        self.sums = WeightSums(self.launcher, self.weights, self.into) if call.wants_dweights else None
        self.gates = _recomputation(self.launcher, self.weights) if p.recomputes else None
        self.launcher.backward_begin(self.dstate_n, self.weights)
        if p.ahead_steps is not None:
            self.following = p.chunks(backward=True)
            self.prepared = self._prepared()
            arena.stream.record(arena.lane.ready[0])  # which the first steps wait for

    def run(self, chunk: Chunk) -> None:
        """Launches the steps of a chunk and its products. The next chunk of `Problem.chunks` must follow."""
        if self.p.ahead_steps is None:
            saved = self._with_gates(chunk)
            self.launcher.backward_chunk(chunk, self.weights, saved.states, self.dy)
            self._gradient_of_x(chunk)
            self._gradients_of_weights(chunk, saved)
            return
        here = self.arena.stream
        lane = self.arena.lane
        parity = self.chunks % 2
        if self.gates is not None or self.chunks != 1:  # whose buffers nothing has used
            lane.stream.wait_event(lane.ready[parity])
        if self.above is not None:
            lane.stream.wait_event(self.above.arena.lane.given[parity])
        self.chunks += 1
        saved = self.prepared
        with lane.stream:
            self.launcher.backward_chunk(chunk, self.weights, saved.states, self.dy)
        if self.gates is not None:
            self.prepared = self._prepared()
            here.record(lane.ready[1 - parity])
        here.wait_event(lane.stream.record(lane.done[parity]))
        self._gradient_of_x(chunk)
        here.record(lane.given[parity])
        self._gradients_of_weights(chunk, saved)
        if self.gates is None:
            here.record(lane.ready[parity])
        for name in GRADIENTS:
            if name in self.launcher:
                self.launcher.swap(name, _next(name))

    def _with_gates(self, chunk: Chunk) -> Saved:
        """What was saved, with the gates of a chunk, which are computed now if they were not saved."""
        if self.gates is None:
            return self.saved
        return self.saved._replace(states=self.gates.run(chunk, self.saved))

    def _prepared(self) -> Saved:
        """`_with_gates` of the chunk that follows, if there is one."""
        chunk = next(self.following, None)
        return self.saved if chunk is None else self._with_gates(chunk)

    def _gradient_of_x(self, chunk: Chunk) -> None:
        """dx of the chunk's row-steps; as the layer below reads it, if one does."""
        if self.dx is None:
            return
        p = self.p
        launcher = self.launcher
        dgates = launcher.storage_matrix("dgates_x", p.GH)
        rows = launcher.array(self.dx_packed).at(chunk.n0)
        launcher.products.rows_through(dgates, launcher.array(self.weights.w_ih), rows, chunk.N, p.I, p.GH)
        if not self.feeds:
            return
        if p.ragged:
            launcher.unpack_chunk(self.dx, self.dx_packed, chunk)
        if self.mask is not None:
            steps = slice(chunk.t0, chunk.t0 + chunk.T)
            dx = self.dx[steps]
            dx *= self.mask[steps]

    def _gradients_of_weights(self, chunk: Chunk, saved: Saved) -> None:
        if self.sums is not None:
            self.sums.add(chunk, saved)

    def join(self) -> None:
        """Makes the arena's stream wait for the steps, also of a pass that failed."""
        if self.chunks:
            lane = self.arena.lane
            self.arena.stream.wait_event(lane.stream.record(lane.done[0]))

    def end(self) -> Gradients:
        """The gradients; dx of a pass that feeds another one is as that one has read it."""
        import cupy

        p = self.p
        if not p.N:
            if self.dx is not None:
                self.dx.fill(0)
            nothing = self.into is not None or not self.wants_dweights
            weights = (None if w is None or nothing else cupy.zeros_like(w) for w in self.weights)
            return Gradients(self.dx, tuple(d.copy() for d in self.dstate_n), Weights(*weights))
        if self.dx is not None and p.ragged and not self.feeds:
            self.launcher.unpack(self.dx, self.dx_packed)
        dstate0 = tuple(cupy.empty_like(d) for d in self.dstate_n)
        self.launcher.backward_end(dstate0)
        return Gradients(self.dx, dstate0, NO_DWEIGHTS if self.sums is None else self.sums.finished())


def _recomputation(launcher: BackwardLauncher, weights: Weights) -> Recomputation:
    from rnnkit.backends.cupy.recompute import Recomputation  # which imports this file

    return Recomputation(launcher, weights)


def backward(p: Problem, call: BackwardCall, launcher_of: Launchers) -> Gradients:
    """The gradients of one forward; call.saved is its `Saved`."""
    one = BackwardPass(p, call, launcher_of, arenas.current())
    try:
        for chunk in p.chunks(backward=True):
            one.run(chunk)
    finally:
        one.join()
    return one.end()


def backward_stack(
    problems: Sequence[Problem],
    calls: Sequence[BackwardCall],
    masks: Sequence[Array | None],
    launchers: Sequence[Launchers],
) -> list[Gradients]:
    """The layers of a stack at once, the last layer first, as a wavefront: each runs a chunk behind the one above it.

    dy of a call but the first is dx of the call before it, which is multiplied by that call's mask unless it is None.
    Products run on the current stream, the steps of each layer on a lane of its own.
    """
    passes: list[BackwardPass] = []
    last = len(calls) - 1
    try:
        for number, arena in enumerate(arenas.current().parts(len(calls))):
            above = passes[-1] if passes else None
            given = (problems[number], calls[number], launchers[number], arena, above)
            passes.append(BackwardPass(*given, number < last, masks[number]))
        chunks = list(problems[0].chunks(backward=True))
        for front in range(len(chunks) + last):
            for number, one in enumerate(passes):
                if 0 <= front - number < len(chunks):
                    one.run(chunks[front - number])
    finally:
        for one in passes:
            one.join()
    return [one.end() for one in passes]
