"""Whether the gates are saved or computed again, from the memory of cards that are not here."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from rnnkit.backends import cupy as backend
from rnnkit.backends.cupy import overlap, schedules
from rnnkit.backends.cupy.cost import PREDICTED
from rnnkit.backends.cupy.schedules import Work
from rnnkit.backends.interface import Sizes
from rnnkit.core.cells import CELLS, cell_of
from rnnkit.core.dtypes import DTYPES
from rnnkit.functional.gates import Decision, Needs, decide, may_be_large, needs_of
from tests.cuda.cuda_helpers import CELLS as SERVED
from tests.tools.cards import CARDS

GB = 10**9

# I, H, P, layers, directions.
SHAPES = ((1, 1, 0, 1, 1), (700, 8, 0, 3, 2), (2, 64, 32, 2, 2), (900, 900, 0, 1, 1))


def needs(cell: str, dtype: str, T: int, B: int, H: int, layers: int = 1, directions: int = 1, P: int = 0) -> Needs:
    sizes = Sizes(T, B, H, H, P or H, T * B)
    return needs_of(backend, backend.recomputing(), cell_of(cell), DTYPES[dtype], sizes, layers, directions)


@pytest.mark.parametrize(
    ("cell", "dtype", "P", "saving", "recomputing"),
    [
        ("lstm", "float16", 0, 4 * 2 + 2 + 4, 2 + 4),
        ("lstm", "float32", 0, 4 * 4 + 4 + 4, 4 + 4),
        ("lstm", "float16", 512, 4 * 2 + 1 + 4 + 2, 1 + 4),
        ("gru", "bfloat16", 0, 4 * 2 + 2, 2),
        ("gru_reset_before", "float16", 0, 3 * 2 + 2 + 2, 2),
        ("rnn_tanh", "float64", 0, 8 + 8, 8),
    ],
)
def test_bytes_per_unit_and_row_step(cell: str, dtype: str, P: int, saving: int, recomputing: int) -> None:
    found = needs(cell, dtype, 10, 64, 1024, P=P)
    assert found[:2] == (saving * 10 * 64 * 1024, recomputing * 10 * 64 * 1024)


def test_every_cell_saves_less_without_its_gates() -> None:
    for name in SERVED:
        for dtype in DTYPES:
            found = needs(name, dtype, 8, 8, 64)
            assert found.recomputing < found.saving
            assert found.recomputing == 8 * 8 * 64 * (
                DTYPES[dtype].storage.itemsize + CELLS[name].n_cell_states * DTYPES[dtype].compute.itemsize
            )


def test_gates_are_saved_where_that_fits() -> None:
    """Memory that is left on a card with these gigabytes. LSTM in 16 bits, 1024 units, 256 rows, six layers."""
    chosen = {}
    for T in (256, 1024, 2048, 8192):
        need = needs("lstm", "float16", T, 256, 1024, layers=6)
        chosen[T] = [
            card
            for card, memory in (("T4", 15), ("A100", 39), ("H100", 79), ("B200", 179))
            if decide(need, free=memory * GB).recomputes
        ]
    assert chosen == {
        256: [],
        1024: ["T4"],
        2048: ["T4", "A100"],
        8192: ["T4", "A100", "H100", "B200"],
    }
    ragged = needs_of(backend, backend.recomputing(), CELLS["gru"], DTYPES["float16"], Sizes(8, 4, 3, 16, 16, 20), 1, 1)
    assert ragged.recomputing == 20 * 16 * 2 + 128, "of live steps alone, and their x without padding"
    assert ragged.saving - ragged.recomputing == 20 * 4 * 16 * 2


def test_the_choice() -> None:
    need = Needs(saving=100, recomputing=40, beside=30)

    def found(**given: Any) -> Decision:
        return decide(need, **given)

    assert not found().recomputes, "nothing was asked"
    assert not found(free=130).recomputes
    assert found(free=129).recomputes
    assert found(free=1).recomputes, "neither fits"
    assert not found(most=100).recomputes
    assert found(most=99).recomputes
    assert found(most=40).recomputes
    assert not found(most=39).recomputes, "chunks run again instead"
    assert found(asked=True, most=1000).recomputes
    assert not found(asked=False, free=1).recomputes
    assert not decide(Needs(40, 40), free=1).recomputes, "it would gain nothing"
    assert "100 bytes with the gates, 40 without, of 99 that max_saved_bytes allows" in found(most=99).words
    assert "neither fits, so the call runs in chunks" in found(most=39).words
    assert "and 30 beside them; the device has 129 left" in found(free=129).words
    assert "as recompute_gates=True says" in found(asked=True).words


def test_a_plan_counts_the_recomputation() -> None:
    """Its products run beside the steps as those of the gradients do, so less of the card may be left for them."""
    for name in ("NVIDIA H200", "NVIDIA A100-SXM4-80GB"):
        card = CARDS[name]
        saved = Work(CELLS["lstm"], DTYPES["bfloat16"], Sizes(512, 32, 512, 512, 512, 512 * 32), keep=True)
        (grid,) = (row for row in schedules.SCHEDULES if row.name == "grid")
        both = (saved, saved._replace(recomputes=True))
        times = [overlap.pass_seconds(grid, work, card, PREDICTED, 1, backward=True) for work in both]
        assert times[0] < times[1] < 2 * times[0]


def test_a_call_that_is_not_looked_at_saves_little() -> None:
    """The quick bound on what a call saves is never below what it saves."""
    for name in SERVED:
        for dtype in ("float16", "float64"):
            for I, H, P, layers, directions in (
                (1, 1, 0, 1, 1),
                (700, 8, 0, 3, 2),
                (2, 64, 32, 2, 2),
                (900, 900, 0, 1, 1),
            ):
                if P and not CELLS[name].projects:
                    continue
                sizes = Sizes(7, 3, I, H, P or H, 20)
                saved = needs_of(backend, backend.recomputing(), CELLS[name], DTYPES[dtype], sizes, layers, directions)
                choice = mock.Mock()
                may_be_large(choice, CELLS[name], 7, 3, I, H, layers, directions)
                (_, bound) = choice.backend.free_bytes.call_args.args
                assert bound >= saved.saving
