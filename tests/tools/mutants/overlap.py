"""OVERLAP_MUTANTS: bugs in what runs beside the steps of a resident schedule."""

from __future__ import annotations

from tests.tools.mutants.planting import Mutant, row

PASSES = "rnnkit/backends/cupy/passes.py"
STACK = "rnnkit/functional/stack.py"
ANY_ORDER = "any_order and GRU-grid"
FIT = "fit_the_card_together"


def _overlap(name: str, file: str, at: str, old: str, new: str, pick: str = ANY_ORDER) -> Mutant:
    return row(f"overlap: {name}", file, at, old, new, "tests/cuda/test_cupy_overlap.py", pick)


LAYER = "rnnkit/backends/cupy/layer.py"
TUNED = "rnnkit/backends/cupy/tuned.py"


def _tuned(name: str, file: str, at: str, old: str, new: str, pick: str) -> Mutant:
    return row(f"autotune: {name}", file, at, old, new, "tests/cuda/test_cupy_tuned.py", pick)


BACKWARD = "rnnkit/backends/cupy/backward_pass.py"
STACK_BACKWARD = "rnnkit/functional/stack_backward.py"


def _backward(name: str, file: str, at: str, old: str, new: str, pick: str = ANY_ORDER) -> Mutant:
    files = "tests/cuda/test_cupy_overlap.py tests/cuda/test_cupy_backward_overlap.py"
    return row(f"overlap in backward: {name}", file, at, old, new, files, pick)


_BACKWARD: tuple[Mutant, ...] = (
    _backward(
        "products do not wait for their steps",
        BACKWARD,
        "run",
        "here.wait_event(lane.stream.record(lane.done[parity]))",
        "lane.stream.record(lane.done[parity])",
    ),
    _backward(
        "steps do not wait for the products that read their buffers",
        BACKWARD,
        "run",
        "self.chunks != 1:",
        "not self.chunks:",
    ),
    _backward(
        "the first steps do not wait for what begins the pass",
        BACKWARD,
        "run",
        "self.chunks != 1:",
        "self.chunks > 1:",
    ),
    _backward(
        "steps wait for the products of the chunk before",
        BACKWARD,
        "run",
        "lane.stream.wait_event(lane.ready[parity])",
        "lane.stream.wait_event(lane.ready[1 - parity if self.chunks else 0])",
        "run_ahead",
    ),
    _backward(
        "both chunks have one set of buffers",
        BACKWARD,
        "run",
        "self.launcher.swap(name, next_of(name))",
        "pass",
    ),
    _backward(
        "a layer does not wait for dx of the one above it",
        BACKWARD,
        "run",
        "lane.stream.wait_event(self.above.arena.lane.given[parity])",
        "pass",
    ),
    _backward(
        "a layer waits for dx of another chunk",
        BACKWARD,
        "run",
        "self.above.arena.lane.given[parity]",
        "self.above.arena.lane.given[1 - parity]",
        "begins_when or any_order and GRU-grid",
    ),
    _backward(
        "a layer waits for the weights' gradients of the one above",
        BACKWARD,
        "run",
        "self.above.arena.lane.given[parity]",
        "self.above.arena.lane.ready[parity]",
        "begins_when",
    ),
    _backward(
        "chunks run in the order of the forward pass",
        BACKWARD,
        "backward_stack",
        "problems[0].chunks(backward=True)",
        "problems[0].chunks()",
    ),
    _backward(
        "chunks of one layer run in the order of the forward pass",
        BACKWARD,
        "backward",
        "p.chunks(backward=True)",
        "p.chunks()",
        "same_bits and GRU",
    ),
    _backward(
        "dx of every chunk is that of the first row-steps",
        BACKWARD,
        "_gradient_of_x",
        "launcher.array(self.dx_packed).at(chunk.n0)",
        "launcher.array(self.dx_packed).at(0)",
    ),
    _backward(
        "ragged rows for the layer below are unpacked from the first step",
        "rnnkit/backends/cupy/launcher.py",
        "unpack_chunk",
        "self.offsets + 8 * chunk.t0",
        "self.offsets",
    ),
    _backward(
        "ragged rows for the layer below are unpacked to the first step",
        "rnnkit/backends/cupy/launcher.py",
        "unpack_chunk",
        "dx.data.ptr + chunk.t0 * B * I * dx.itemsize",
        "dx.data.ptr",
    ),
    _backward(
        "dropout between layers at once is left out", BACKWARD, "_gradient_of_x", "dx *= self.mask[steps]", "pass"
    ),
    _backward(
        "the mask of another layer",
        STACK_BACKWARD,
        "_run_backward_at_once",
        "saved.masks[layer - 1] if",
        "saved.masks[-layer] if",
    ),
    _backward(
        "each of the layers at once takes the whole card",
        "rnnkit/backends/cupy/grid_backward.py",
        "BackwardGridLauncher",
        "// p.share",
        "",
        FIT,
    ),
    _backward(
        "nothing waits for the steps of a failed pass",
        BACKWARD,
        "join",
        "self.arena.stream.wait_event(lane.stream.record(lane.done[0]))",
        "lane.stream.record(lane.done[0])",
        "failed_pass",
    ),
    _backward(
        "layers with masks on x run at once",
        STACK_BACKWARD,
        "_backward_at_once",
        "or saved.noise is not None",
        "",
        "masks_on_x",
    ),
    _backward(
        "layers with masks on x run at once forward",
        STACK,
        "StackCall.at_once",
        "or self.noise is not None",
        "",
        "masks_on_x",
    ),
    _backward(
        "a stack has the schedule of one layer",
        "rnnkit/functional/stack.py",
        "forward",
        "call = call.as_it_runs(measures=True)",
        "pass",
        "runs_by_its_schedule",
    ),
    _backward(
        "the slowest schedule of a stack",
        "rnnkit/backends/cupy/choice.py",
        "_of_stack",
        "best = min(",
        "best = max(",
        "least_time",
    ),
    _backward(
        "work runs beside the steps inside a capture",
        "rnnkit/backends/cupy/side_by_side.py",
        "backward_layers_at_once",
        "or choice.captured()",
        "",
        "inside_a_capture",
    ),
)


OVERLAP_MUTANTS: tuple[Mutant, ...] = (
    *_BACKWARD,
    _overlap(
        "a product does not wait for the steps that read its buffer", PASSES, "run", "if self.chunks >= 2:", "if False:"
    ),
    _overlap(
        "the steps do not wait for their product",
        PASSES,
        "run",
        "lane.stream.wait_event(here.record(lane.ready[parity]))",
        "here.record(lane.ready[parity])",
    ),
    _overlap(
        "a product waits for the steps of the chunk before",
        PASSES,
        "run",
        "here.wait_event(lane.done[parity])",
        "here.wait_event(lane.done[1 - parity])",
        "runs_ahead",
    ),
    _overlap("both chunks have one buffer", PASSES, "run", 'self.launcher.swap("gates", "gates_next")', "pass"),
    _overlap(
        "a layer does not wait for the one below it",
        PASSES,
        "run",
        "here.wait_event(self.below.arena.lane.done[parity])",
        "pass",
    ),
    _overlap(
        "the steps wait for the product of the chunk before",
        PASSES,
        "run",
        "lane.stream.wait_event(here.record(lane.ready[parity]))",
        "here.record(lane.ready[parity]); lane.stream.wait_event(lane.ready[1 - parity])",
    ),
    _overlap(
        "nothing waits for the last steps",
        PASSES,
        "join",
        "self.arena.stream.wait_event(lane.stream.record(lane.done[0]))",
        "lane.stream.record(lane.done[0])",
    ),
    _overlap("dropout between layers at once is left out", PASSES, "_take_from_below", "x *= self.mask[steps]", "pass"),
    _overlap(
        "ragged rows of a layer above are packed from the first step",
        "rnnkit/backends/cupy/launcher.py",
        "pack_chunk",
        "self.offsets + 8 * chunk.t0",
        "self.offsets",
    ),
    _overlap(
        "layers at once have one workspace",
        "rnnkit/backends/cupy/arena.py",
        "parts",
        "self._parts.append(Part(self))",
        "self._parts.append(self)",
    ),
    _overlap(
        "each of the layers at once takes the whole card",
        "rnnkit/backends/cupy/grid.py",
        "_division",
        "card.multiprocessors // p.share",
        "card.multiprocessors",
        FIT,
    ),
    _overlap(
        "directions run at once on a card that does not hold them",
        "rnnkit/backends/cupy/overlap.py",
        "fit_beside",
        "not schedule.waits or",
        "True or",
        FIT,
    ),
    _overlap(
        "the mask of another layer", STACK, "run_at_once", "self.dropout(layer - 1, x)", "self.dropout(layer, x) * 2"
    ),
    _tuned("the slowest schedule is used", TUNED, "fastest", "return min(", "return max(", "used_and_said"),
    _tuned(
        "every call measures",
        LAYER,
        "measured",
        "known is not None or len(serving) < 2",
        "len(serving) < 2",
        "used_and_said",
    ),
    _tuned("other sizes share a result", TUNED, "key_of", "B={B}", "B=", "used_and_said"),
    _tuned(
        "the card is not part of the file's name", TUNED, "__init__", "{slug(card.name)}", "card", "belongs_to_a_card"
    ),
    _tuned(
        "a stack has the times of one layer",
        TUNED,
        "key_of",
        'f" {layers} layers" if layers > 1 else ""',
        '""',
        "chosen_as_a_whole",
    ),
    _tuned(
        "a stack is not measured",
        "rnnkit/functional/stack.py",
        "forward",
        "measures=True",
        "measures=False",
        "chosen_as_a_whole",
    ),
    _tuned(
        "measuring a stack adds gradients",
        "rnnkit/functional/stack.py",
        "run_once",
        "LayerCache(cache.weights, None)",
        "cache",
        "chosen_as_a_whole",
    ),
    _tuned(
        "measuring adds gradients",
        LAYER,
        "measured",
        "saved, y, state_n, call.weights)",
        "saved, y, state_n, call.weights, call.cache)",
        "adds_no_gradients",
    ),
)
