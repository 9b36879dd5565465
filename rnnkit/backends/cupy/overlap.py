"""What runs beside the steps of a resident schedule: the product of x of the next chunk, and other layers of a stack.

A launch of steps keeps its multiprocessors until its chunk ends, so other work runs on the rest of the card. Layers at
once get an equal share of the card each: launches whose blocks wait for each other must all be resident, or each could
hold multiprocessors that another one waits for. The plan is chosen by predicted time, from the model of `cost`.
"""

from __future__ import annotations

from typing import NamedTuple

from rnnkit.backends.cupy import cost
from rnnkit.backends.cupy.card import CardFacts
from rnnkit.backends.cupy.cost import Rates
from rnnkit.backends.cupy.problem import Problem
from rnnkit.backends.cupy.schedules import Schedule, Work

# The most layers at once: each has a workspace and a stream in the arena.
MOST_LAYERS = 8

# The fewest steps of a chunk.
FEWEST_STEPS = 8

# PREDICTED: a launch of a chunk, the events before and after it, and reading W_hh into registers and shared memory.
CHUNK_SECONDS = 8e-6

# The least gain for which work runs side by side.
LEAST_GAIN = 0.05


class Plan(NamedTuple):
    """layers at once, and the most steps of a chunk, or None where all work follows on one stream."""

    layers: int = 1
    steps: int | None = None

    def applied(self, p: Problem) -> Problem:
        """The problem of one of the layers."""
        return p if self.steps is None else p.ahead(self.steps, self.layers)

    @property
    def words(self) -> str:
        """For `explain`; empty where nothing runs beside the steps."""
        if self.steps is None:
            return ""
        about = f"; forward in launches of {self.steps} steps: "
        if self.layers == 1:
            return about + "x W_ih^T of the next launch on another stream beside them"
        return about + f"{self.layers} layers at once, each a launch behind the one below, on streams of their own"


ALONE = Plan()


def plan(
    schedule: Schedule, work: Work, card: CardFacts, rates: Rates, layers: int = 1, together: bool = False
) -> Plan:
    """The plan of least predicted time for a forward pass. Pure.

    work: one layer of `layers` equal ones in one direction, each of which reads the one below it. together: all of them
    at once, whatever it gains, which the caller knows to fit.
    """
    if not schedule.resident or not work.sizes.N:
        return ALONE
    p = Problem.of_sizes(work.cell, work.dtype, work.sizes)
    forward = work._replace(keep=False)
    product = _product_seconds(work, card)
    chunks = -(-p.T // p.chunk_steps)
    alone = layers * (product + schedule.seconds(forward, card, rates) + chunks * CHUNK_SECONDS)
    best = float("inf") if together else (1 - LEAST_GAIN) * alone
    found = ALONE
    for at_once in range(layers if together else 1, min(layers, MOST_LAYERS) + 1):
        part = card._replace(multiprocessors=card.multiprocessors // at_once)
        if not part.multiprocessors or schedule.problem(forward, part) is not None:
            break
        free = card.multiprocessors - at_once * schedule.load().blocks(forward, part)
        steps_seconds = schedule.seconds(forward, part, rates)
        groups = -(-layers // at_once)
        for steps in _chunks(p):
            count = -(-p.T // steps)
            of_chunk = product * steps / p.T
            scan = steps_seconds * steps / p.T + CHUNK_SECONDS
            if free > 0:  # products run on the rest of the card
                each = max(scan, at_once * of_chunk * card.multiprocessors / free)
            else:
                each = scan + at_once * of_chunk
            seconds = groups * ((count + at_once - 1) * each + at_once * of_chunk)
            if seconds < best:
                best, found = seconds, Plan(at_once, steps)
    return found


def _chunks(p: Problem) -> list[int]:
    """Numbers of steps of a chunk: powers of two, whose two buffers of products take no more than one does alone."""
    found = []
    steps = FEWEST_STEPS
    while 2 * steps <= p.chunk_steps:
        found.append(steps)
        steps *= 2
    return found


def _product_seconds(work: Work, card: CardFacts) -> float:
    """Predicted seconds of x W_ih^T of all steps, on the whole card."""
    _, _, I, H, _, N = work.sizes
    flop = 2.0 * N * I * work.cell.n_gates * H
    return flop / (cost.flop_rate(card, work.dtype) * card.multiprocessors)


def fit_beside(schedule: Schedule, work: Work, card: CardFacts, backward: bool = False) -> bool:
    """Whether two launches of steps may run at once: their blocks do not wait, or the card holds those of both."""
    return not schedule.waits or 2 * schedule.load().blocks(work, card, backward) <= card.multiprocessors
