"""What runs beside the steps of a resident schedule: products of another chunk, and other layers of a stack.

A launch of steps keeps its multiprocessors until its chunk ends, so other work runs on the rest of the card: in a
forward pass the product of x of the next chunk, in a backward pass dx and the weights' gradients of the chunk before.
Layers at once get an equal share of the card each: launches whose blocks wait for each other must all be resident, or
each could hold multiprocessors that another one waits for. The plan is chosen by predicted time, from the model of
`cost`.
"""

from __future__ import annotations

from typing import NamedTuple

from rnnkit.backends.cupy import cost
from rnnkit.backends.cupy.card import CardFacts
from rnnkit.backends.cupy.cost import Rates
from rnnkit.backends.cupy.problem import Problem
from rnnkit.backends.cupy.recompute_buffers import rows_at_once
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

    def words(self, backward: bool = False) -> str:
        """For `explain`; empty where nothing runs beside the steps."""
        if self.steps is None:
            return ""
        way = "backward" if backward else "forward"
        about = f"; {way} in launches of {self.steps} steps: "
        if self.layers > 1:
            other = "above" if backward else "below"
            return f"{about}{self.layers} layers at once, each a launch behind the one {other}, on streams of their own"
        if backward:
            return about + "dx and the weights' gradients of a launch on another stream beside the next one"
        return about + "x W_ih^T of the next launch on another stream beside them"


ALONE = Plan()

# For `explain` inside a capture that is not rnnkit's.
CAPTURED = "; inside a capture nothing runs beside the steps: a stream of the call would end before the capture does"


class Products(NamedTuple):
    """The products of x, or those of the gradients, of one layer.

    seconds  of all row-steps on the whole card
    chunk    seconds that a chunk takes however few its steps are
    """

    seconds: float
    chunk: float = 0.0


def plan(
    schedule: Schedule,
    work: Work,
    card: CardFacts,
    rates: Rates,
    layers: int = 1,
    together: bool = False,
    backward: bool = False,
) -> Plan:
    """The plan of least predicted time for a forward pass, or for a backward pass. Pure.

    work: one layer of `layers` equal ones in one direction, each of which reads the one below it. together: all of them
    at once, whatever it gains, which the caller knows to fit.
    """
    work = work._replace(keep=backward)
    if not schedule.resident or not work.sizes.N or schedule.problem(work, card) is not None:
        return ALONE
    if not schedule.load().blocks(work, card, backward):
        return ALONE  # another schedule runs the backward pass
    best = float("inf") if together else (1 - LEAST_GAIN) * _seconds_alone(schedule, work, card, rates, layers)
    found = ALONE
    for at_once in range(layers if together else 1, min(layers, MOST_LAYERS) + 1):
        part = card._replace(multiprocessors=card.multiprocessors // at_once)
        if not part.multiprocessors or schedule.problem(work, part) is not None:
            break
        if not schedule.load().blocks(work, part, backward):
            break
        for one in _plans(work, at_once):
            took = _seconds_of(one, schedule, work, card, rates, layers)
            if took < best:
                best, found = took, one
    return found


def pass_seconds(
    schedule: Schedule, work: Work, card: CardFacts, rates: Rates, layers: int, backward: bool = False
) -> float:
    """The predicted time of a pass of a stack by a schedule that serves it, with its plan. As `plan`."""
    found = plan(schedule, work, card, rates, layers, backward=backward)
    work = work._replace(keep=backward)
    if found == ALONE:
        return _seconds_alone(schedule, work, card, rates, layers)
    return _seconds_of(found, schedule, work, card, rates, layers)


def _seconds_alone(schedule: Schedule, work: Work, card: CardFacts, rates: Rates, layers: int) -> float:
    """The predicted time of a pass in which all work follows on one stream."""
    p = Problem.of_sizes(work.cell, work.dtype, work.sizes)
    products = _products(work, card)
    chunks = -(-p.T // p.chunk_steps)
    of_chunk = products.chunk + (CHUNK_SECONDS if schedule.resident else 0.0)
    return layers * (products.seconds + _steps_seconds(schedule, work, card, rates) + chunks * of_chunk)


def _seconds_of(one: Plan, schedule: Schedule, work: Work, card: CardFacts, rates: Rates, layers: int) -> float:
    """The predicted time of a pass with a plan that fits the card."""
    at_once, steps = one
    assert steps is not None
    part = card._replace(multiprocessors=card.multiprocessors // at_once)
    products = _products(work, card)
    share = steps / work.sizes.T
    of_chunk = products.chunk + products.seconds * share
    scan = _steps_seconds(schedule, work, part, rates) * share + CHUNK_SECONDS
    free = card.multiprocessors - at_once * schedule.load().blocks(work, part, work.keep)
    if free > 0:  # products run on the rest of the card
        slower = card.multiprocessors / free
        each = max(scan, at_once * (products.chunk + products.seconds * share * slower))
    else:
        each = scan + at_once * of_chunk
    count = -(-work.sizes.T // steps)
    groups = -(-layers // at_once)
    lag = (at_once - 1) * of_chunk if work.keep else 0.0  # in backward a layer waits for dx of the one above
    return groups * ((count + at_once - 1) * each + lag + at_once * of_chunk)


def _plans(work: Work, at_once: int) -> list[Plan]:
    """By the steps of a chunk: powers of two, whose two buffers of products take no more than one does alone."""
    p = Problem.of_sizes(work.cell, work.dtype, work.sizes)
    found = []
    steps = FEWEST_STEPS
    while 2 * steps <= p.chunk_steps:
        found.append(Plan(at_once, steps))
        steps *= 2
    return found


def _steps_seconds(schedule: Schedule, work: Work, card: CardFacts, rates: Rates) -> float:
    """Predicted seconds of the steps of the forward pass, or of the backward pass if the work keeps."""
    forward = schedule.seconds(work._replace(keep=False), card, rates)
    return schedule.seconds(work, card, rates) - forward if work.keep else forward


def _products(work: Work, card: CardFacts) -> Products:
    """x W_ih^T, or if the work keeps those of the gradients."""
    return _gradient_products(work, card) if work.keep else _input_products(work, card)


def _input_products(work: Work, card: CardFacts) -> Products:
    """x W_ih^T."""
    _, _, I, H, _, N = work.sizes
    flop = 2.0 * N * I * work.cell.n_gates * H
    return Products(flop / (cost.flop_rate(card, work.dtype) * card.multiprocessors))


def _gradient_products(work: Work, card: CardFacts) -> Products:
    """dx, dW_ih, dW_hh, dW_hr, and the sums of the biases.

    A chunk takes the least duration of its launches, and adds its part of the weights' gradients to that of the others:
    `weight_sums`.
    """
    _, _, I, H, R, N = work.sizes
    p = Problem.of_sizes(work.cell, work.dtype, work.sizes)
    GH = work.cell.n_gates * H
    elements = GH * (I + R) + (R * H if work.projected else 0)
    flop = 2.0 * N * (elements + I * GH)
    again = _recomputation(work, card) if work.recomputes else Products(0.0)
    matrices = (3 if work.projected else 2) + len(work.cell.products) - 1
    sums = 2 * (2 if work.cell.splits_sides else 1) + (0 if p.sums_in_place else matrices)
    moved = elements * p.compute_bytes * (2 if p.sums_in_place else 6)
    rate = cost.l2_rate(card) if moved < 0.8 * card.l2_bytes else card.bandwidth
    chunk = (1 + matrices) * cost.PRODUCT_SECONDS + sums * cost.POINTWISE_SECONDS + moved / rate
    seconds = flop / (cost.flop_rate(card, work.dtype) * card.multiprocessors)
    return Products(seconds + again.seconds, chunk + again.chunk)


def _recomputation(work: Work, card: CardFacts) -> Products:
    """The gates, computed again: pre-activations of both sides, which are written and read, and the saved values."""
    _, _, I, H, R, N = work.sizes
    cell, dtype = work.cell, work.dtype
    GH = cell.n_gates * H
    flop = 2.0 * N * GH * (I + R)
    p = Problem.of_sizes(cell, dtype, work.sizes)
    moved = N * H * (4.0 * cell.n_gates * dtype.compute.itemsize + cell.n_saved * dtype.storage.itemsize)
    at_once = 2 * rows_at_once(p) * GH * dtype.compute.itemsize
    rate = cost.l2_rate(card) if at_once < 0.8 * card.l2_bytes else card.bandwidth
    seconds = flop / (cost.flop_rate(card, dtype) * card.multiprocessors) + moved / rate
    launches = len(cell.products)
    return Products(seconds, (1 + launches) * cost.PRODUCT_SECONDS + (2 + launches) * cost.POINTWISE_SECONDS)


def evenly(layers: int, most: int) -> int:
    """How many of `layers` layers run at once: as few groups of up to `most` as there can be, of like sizes."""
    groups = -(-layers // most)
    return -(-layers // groups)


def fit_beside(schedule: Schedule, work: Work, card: CardFacts, backward: bool = False) -> bool:
    """Whether two launches of steps may run at once: their blocks do not wait, or the card holds those of both."""
    return not schedule.waits or 2 * schedule.load().blocks(work, card, backward) <= card.multiprocessors
