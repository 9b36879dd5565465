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


OVERLAP_MUTANTS: tuple[Mutant, ...] = (
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
        "_measured",
        "known is not None or len(serving) < 2",
        "len(serving) < 2",
        "used_and_said",
    ),
    _tuned("other sizes share a result", TUNED, "key_of", "B={B}", "B=", "used_and_said"),
    _tuned(
        "the card is not part of the file's name", TUNED, "__init__", "{slug(card.name)}", "card", "belongs_to_a_card"
    ),
    _tuned(
        "measuring adds gradients",
        LAYER,
        "_measured",
        "saved, y, state_n, call.weights)",
        "saved, y, state_n, call.weights, call.cache)",
        "adds_no_gradients",
    ),
)
