"""A backward pass as all schedules run it: steps by chunks, then the products over the row-steps of each chunk.

Per chunk, dx, dW_ih, dW_hh and the biases' gradients follow its steps, so the workspace does not grow with T. All
products of a layer run on one stream, chunk by chunk, so a sum is added up in the same order whatever runs beside it.
What the call does not want is not launched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rnnkit.backends.cupy import arena as arenas
from rnnkit.backends.cupy.arena import Arena
from rnnkit.backends.cupy.backward_launcher import GRADIENTS, BackwardLauncher, next_of
from rnnkit.backends.cupy.launcher import contiguous, units_aligned
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.backends.cupy.recompute import Recomputation
from rnnkit.backends.cupy.saved import Saved
from rnnkit.backends.cupy.weight_sums import WeightSums
from rnnkit.backends.interface import NO_DWEIGHTS, BackwardCall, Gradients
from rnnkit.core.cells import Array, Weights

Launchers = Callable[[Arena, "Array | None"], BackwardLauncher]  # of an arena and a `packing_table`


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
        self.gates = Recomputation(self.launcher, self.weights) if p.recomputes else None
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
                self.launcher.swap(name, next_of(name))

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
