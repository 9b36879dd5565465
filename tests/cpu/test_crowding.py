"""A thread without a core gets no share: what a roll call finds, and what becomes of the next calls."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np
import pytest

import rnnkit
from rnnkit.backends.numba import layer as backend
from rnnkit.core import thread_pool
from rnnkit.kernels.cpu import threads as kernels
from rnnkit.kernels.cpu.frame import Shape
from rnnkit.kernels.cpu.jit import entry
from rnnkit.kernels.cpu.memory import set_word
from rnnkit.kernels.cpu.system import core, nanoseconds
from tests.helpers import share_everything

WORD, SHAPE = 8, Shape._fields


@entry(("test", "ends"))
def ends(own, took, lost, members):
    """A job of so many nanoseconds ends, in which its thread had no core for so many."""
    now, worked = nanoseconds(False), nanoseconds(True)
    kernels.note_if_robbed(own, now - took, worked - (took - lost), members)


@entry(("test", "meets"))
def meets(state):
    """The core this thread was on, and the one it is on once it found that the caller is noted there."""
    before = core()
    set_word(state + kernels.ASLEEP + kernels.CORE, before + 1)
    kernels.note_core(state, 1)
    return before, core()


@pytest.fixture
def team(monkeypatch: pytest.MonkeyPatch) -> Iterator[thread_pool.Team]:
    """A team of its own for this test, of three threads that are waited for."""
    share_everything(monkeypatch, 3)
    team = thread_pool.Team()
    monkeypatch.setattr(thread_pool, "_team", team)
    yield team
    team.end()


def rob(team: thread_pool.Team, *threads: int) -> None:
    """As the threads note it who lost their core in a job."""
    for k in threads:
        team._state[(kernels.ASLEEP + kernels.LINE * k + kernels.ROBBED) // WORD] = 1


def dismiss(team: thread_pool.Team) -> None:
    """What `run` does after a job."""
    team.booked[0] = 0
    team.dismissed = time.monotonic()


def gathered(team: thread_pool.Team, threads: int = 3) -> int:
    found = team.gather("call", threads, 1e4)
    if found > 1:
        dismiss(team)
    team.claims.clear()
    return found


def unanswered(members: int) -> tuple[int, np.ndarray]:
    """The state of a team whose threads are awake but never come, and its address."""
    state = np.zeros(kernels.state_bytes(members) // WORD + kernels.LINE // WORD, np.int64)
    return int(-(-state.ctypes.data // kernels.LINE) * kernels.LINE), state


def test_who_does_not_answer_is_not_there():
    address, _room = unanswered(4)
    assert kernels.book(address, 4, 5000) == 1
    assert kernels.book(address, 4, 0) == 1


def test_only_this_roll_calls_answers_count():
    address, room = unanswered(4)
    words = room[(address - room.ctypes.data) // WORD :]
    line = [(kernels.ASLEEP + kernels.LINE * k) // WORD for k in range(4)]
    heard, place = kernels.HEARD // WORD, kernels.PLACE // WORD
    following = ((int(words[0]) >> kernels.MEMBER_BITS) + 1) << kernels.MEMBER_BITS | kernels.ROLL_CALL | 4
    words[line[1] + heard] = words[line[3] + heard] = following
    assert kernels.book(address, 4, 1000) == 3
    places = [int(words[k + place]) - following for k in line]
    assert (places[1], places[3]) == (1, 2)  # numbered without who is missing
    assert places[2] < 0
    assert kernels.book(address, 4, 1000) == 1  # an answer to the roll call before


def test_all_come_and_some_are_woken(team):
    for pause in (0.0, 0.0, 0.3):  # the last from sleep
        time.sleep(pause)
        assert gathered(team) == 3


def test_a_robbed_thread_is_left_out_for_a_spell(team, monkeypatch):
    monkeypatch.setattr(thread_pool, "SPELLS", (50.0, 150.0))
    assert gathered(team) == 3
    rob(team, 2)
    assert gathered(team) == 2
    assert (gathered(team), team._spell) == (2, 50)
    rob(team, 1)
    assert (gathered(team), team._spell) == (1, 100)
    assert gathered(team, 2) == 1
    rob(team, 1, 2)
    assert gathered(team) == 1  # alone: nobody is asked
    team._spell_ends = 0.0
    assert (gathered(team), team._spell) == (1, 150)  # all were asked again, and two had been robbed
    team._spell_ends = 0.0
    assert (gathered(team), team._spell) == (3, 75)  # all there
    assert (gathered(team), team._spell) == (3, 37.5)
    assert (gathered(team), team._spell) == (3, 0)


@pytest.mark.slow
def test_results_are_the_same_in_a_crowd(team, monkeypatch):
    monkeypatch.setattr(thread_pool, "SPELLS", (0.01, 0.02))
    layer = rnnkit.LSTM(16, 64, backend="numba", rng=0)
    x = np.random.default_rng(0).standard_normal((20, 3, 16)).astype(np.float32)
    want, want_dx = layer(x)[0], layer.backward(np.ones((20, 3, 64), np.float32))[0]
    for robbed in ((1,), (), (2,), (1, 2), (), ()):
        rob(team, *robbed)
        np.testing.assert_array_equal(layer(x)[0], want)
        np.testing.assert_array_equal(layer.backward(np.ones((20, 3, 64), np.float32))[0], want_dx)


def test_what_was_lost_decides_the_spell(team, monkeypatch):
    monkeypatch.setattr(thread_pool, "SPELLS", (0.5, 100.0))
    assert gathered(team) == 3
    rob(team, 0)  # the caller itself
    assert (gathered(team), team._spell) == (2, 0.5)
    team._state[(kernels.ASLEEP + kernels.LINE + kernels.ROBBED) // WORD] = 2_000_000_000
    assert (gathered(team), team._spell) == (1, 4.0)


def test_what_was_lost_long_ago_is_no_reason(team, monkeypatch):
    monkeypatch.setattr(thread_pool, "SPELLS", (0.05, 100.0))
    assert gathered(team) == 3
    rob(team, 2)
    time.sleep(0.1)
    assert (gathered(team), team._spell) == (3, 0.05)  # that core has come back, or will be missed again
    rob(team, 2)
    assert (gathered(team), team._spell) == (2, 0.1)


def test_small_calls_do_not_end_a_spell(team, monkeypatch):
    monkeypatch.setattr(thread_pool, "SPELLS", (50.0, 150.0))
    assert gathered(team) == 3
    rob(team, 2)
    for asked in (3, 2, 2, 2):
        assert (gathered(team, asked), team._spell) == (2, 50)


def test_who_is_missing_is_left_out_and_the_others_work(team, monkeypatch):
    """A thread that hears nothing any more: those after it take its place."""
    assert gathered(team) == 3
    layer = rnnkit.LSTM(16, 64, backend="numba", rng=0)
    x = np.random.default_rng(0).standard_normal((20, 6, 16)).astype(np.float32)
    want = layer(x)[0]
    until = time.monotonic() + 60
    while not all(team._state[(kernels.ASLEEP + kernels.LINE * k) // WORD] for k in (1, 2)):
        assert time.monotonic() < until, "they do not go to sleep"
        time.sleep(0.01)
    team._losses()  # what was lost to other programs just now is not what this is about
    team._spell = 0.0
    rouse = team._rouse
    monkeypatch.setattr(team, "_rouse", lambda k: None if k == 1 else rouse(k))
    for name in ("AWAITED", "AWAITED_WOKEN"):
        monkeypatch.setattr(thread_pool, name, 2e5)
    monkeypatch.setattr(thread_pool, "SPELLS", (50.0, 150.0))
    present = []
    launch = backend.launch_forward

    def counted(state, job, words, *rest):
        present.append(int(words[SHAPE.index("groups")] * words[SHAPE.index("members")]))
        return launch(state, job, words, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(backend, "launch_forward", counted)
        np.testing.assert_array_equal(layer(x)[0], want)
    monkeypatch.undo()
    team._rouse(1)
    assert present == [2]
    assert team._fewer == 2


@pytest.mark.parametrize(
    ("took_ms", "lost_ms", "members", "noted"),
    [(900, 600, 2, True), (900, 300, 2, False), (900, 300, 4, True), (900, 150, 4, False)],
)
def test_a_core_is_lost_where_one_thread_fewer_would_be_as_fast(took_ms, lost_ms, members, noted):
    address, room = unanswered(1)
    ends(address, int(1e6 * took_ms), int(1e6 * lost_ms), members)
    told = int(room[(address - room.ctypes.data + kernels.ROBBED) // WORD])
    assert (told > 0) == noted
    assert not noted or told == pytest.approx(1e6 * lost_ms, rel=0.5)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs threads bound to a core")
def test_a_thread_notices_that_its_core_was_taken(team):
    """All on one core: in a long job each has it for a part of the time, and the workers say so."""
    layer = rnnkit.LSTM(64, 256, backend="numba", rng=0)
    x = np.ones((200, 30, 64), np.float32)
    want = layer(x)[0]
    cores = os.sched_getaffinity(0)
    tasks = [int(task) for task in os.listdir("/proc/self/task")]
    try:
        for task in tasks:
            os.sched_setaffinity(task, {min(cores)})
        np.testing.assert_array_equal(layer(x)[0], want)
        robbed = [team._state[(kernels.ASLEEP + kernels.LINE * k + kernels.ROBBED) // WORD] for k in (0, 1, 2)]
    finally:
        for task in tasks:
            os.sched_setaffinity(task, cores)
    assert max(robbed) > kernels.ROBBED_NS


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs the numbers of cores")
def test_a_thread_leaves_a_core_that_another_member_is_on():
    address, room = unanswered(2)
    noted = (address - room.ctypes.data + kernels.ASLEEP + kernels.LINE + kernels.CORE) // WORD
    usable = os.sched_getaffinity(0)
    parted = 0
    for _ in range(20):
        before, after = meets(address)
        assert room[noted] > 0
        parted += before != after
    assert os.sched_getaffinity(0) == usable  # it may go back there
    assert parted > 15 or len(usable) == 1
    os.sched_setaffinity(0, {min(usable)})
    try:
        assert meets(address) == (min(usable), min(usable))
        assert os.sched_getaffinity(0) == {min(usable)}
        assert room[noted] == min(usable) + 1
    finally:
        os.sched_setaffinity(0, usable)
