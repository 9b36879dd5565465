"""Threads in native code: a job is a compiled function that each thread of a team calls with its own number.

    run(state, members, function, block)    calls function(block, k) for k in [0, members), 0 here; back when all are
    serve(state, index, seen)               what the thread `index` does: jobs as they come; back when idle too long
    book(state, members, patience)          before run: who is awake stays so; how many of them are there, or that some
                                            are asleep and must be woken
    wait(counter, goal)                     a barrier between the threads of one job

Threads that have just worked look for the next job for 200 to 400 us before they sleep, so that the calls of a training
loop or of a stack of layers hand over within a microsecond, where waking a thread takes ninety. They give their core
away between looks after the first few, for whoever else wants it. Sleeping and waking is Python's
(rnnkit/core/thread_pool.py).

A thread that has no core, because another library's thread spins on it, would be waited for at every barrier. So none
gets a share before it has answered a roll call, and each notes when its core was taken from it while it worked.

`state` is the address of zeros, one cache line a word that different threads write. What is posted is a number and the
members it is for in one word, and whether it is a roll call. Who answered a roll call is numbered for the job after it,
by a word that names that roll call: a thread without such a number must not look at the job, which may be a later one.
"""

from __future__ import annotations

from rnnkit.kernels.cpu.jit import entry, inner
from rnnkit.kernels.cpu.memory import add, call, exchange, look, set_word, word
from rnnkit.kernels.cpu.system import (
    JOB_MODE,
    core,
    float_mode,
    give_way,
    leave_cores,
    nanoseconds,
    pause,
    set_float_mode,
)

LINE = 64
# Offsets of words. From ASLEEP on a thread has a line: whether it is asleep, whether it is to be woken, the number of
# the last roll call it heard, for how many nanoseconds its core was taken from it, until that is dealt with, its place
# among those who answered a roll call, added to what was posted for that, and one more than the core it was on.
POSTED, BOOKED, FINISHED, JOB, ASLEEP = 0, LINE, 2 * LINE, 3 * LINE, 4 * LINE
WAKE, HEARD, ROBBED, PLACE, CORE = 8, 16, 24, 32, 40
MEMBER_BITS, ROLL_CALL = 16, 1 << 15
# What is found beside how many are there.
SOME_ASLEEP, CROWDED = -1, 1 << 20
# A core was taken where its thread had none for so many nanoseconds of a job (interrupts take some ten microseconds,
# time slices a few milliseconds), and for more of it than one part in as many as it has members. Then members - 1
# would have been as fast: work W takes W / members and what was lost, or W / (members - 1).
ROBBED_NS = 200_000
# Looks before giving the core away, and before going to sleep. A look is a pause instruction (10 to 40 ns), or later a
# system call of about 300 ns. A job's threads wait longer for each other: a core given to a thread that spins comes
# back after a time slice.
SPINS, PATIENCE, SPINS_AT_WORK = 1500, 2000, 4000
LOOK_NS = 30  # where there is no clock


def state_bytes(workers: int) -> int:
    """Size of `state` for so many threads besides the caller's."""
    return ASLEEP + LINE * (workers + 1)


@inner
def await_count(counter, goal):
    """Until the word at `counter` has reached `goal`."""
    spins = 0
    while look(counter) < goal:
        spins += 1
        if spins < SPINS_AT_WORK:
            pause()
        else:
            give_way()


@inner
def wait(counter, goal):
    """Adds one to the counter, then waits for `goal`: with P threads the n-th meeting's is n * P. It only grows."""
    add(counter, 1)
    await_count(counter, goal)


@inner
def note_if_robbed(own, since, worked, members):
    """Where this thread had no core for much of the job that began at `since`, when it had `worked` so long."""
    took = nanoseconds(False) - since
    if took > ROBBED_NS:
        lost = took - (nanoseconds(True) - worked)
        if lost > ROBBED_NS and lost * members > took:
            exchange(own + ROBBED, lost)


@inner
def note_core(state, index):
    """Notes which core this thread is on, and leaves it where a member numbered lower is on it too.

    A woken thread may be put on the core of who woke it, and stay there for tens of milliseconds beside idle ones.
    """
    here, first = core() + 1, state + ASLEEP + CORE
    shared = False
    for k in range(index):
        shared |= here > 0 and word(first + LINE * k) == here
    if shared:
        leave_cores(first, LINE, index)
        here = core() + 1
    set_word(first + LINE * index, here)


@inner
def call_in_job_mode(function, block, index):
    """call(function, block, index) in the floating-point mode of jobs, so that no bit depends on the thread's own.

    A job is called by its address, so none of its arithmetic can be moved out of here by the compiler.
    """
    before = float_mode()
    set_float_mode(JOB_MODE)
    call(function, block, index)
    set_float_mode(before)


@entry(("serve",))
def serve(state, index, seen):
    """Does this thread's share of every job after the one numbered `seen`. Returns the last one's number, to sleep."""
    own, idle, since, worked = state + ASLEEP + LINE * index, 0, 0, 0
    while True:
        posted = look(state + POSTED)
        if posted != seen:
            before, seen = seen, posted
            if posted & ROLL_CALL:
                if index < posted & (ROLL_CALL - 1):
                    idle = 0
                    exchange(own + HEARD, posted)
                    note_core(state, index)
                    since, worked = nanoseconds(False), nanoseconds(True)
                continue
            follows = before & ROLL_CALL and posted >> MEMBER_BITS == (before >> MEMBER_BITS) + 1
            place = word(own + PLACE) - before if follows else 0
            if 0 < place < posted & (ROLL_CALL - 1):
                idle = 0
                call_in_job_mode(word(state + JOB), word(state + JOB + 8), place)
                add(state + FINISHED, 1)
                note_if_robbed(own, since, worked, posted & (ROLL_CALL - 1))
        elif idle < SPINS:
            idle += 1
            pause()
        elif idle < PATIENCE or look(state + BOOKED) > index:
            idle += 1
            give_way()
        else:
            # Said before BOOKED is read, as a caller says BOOKED before it reads this: one of the two sees the other.
            set_word(own + CORE, 0)
            exchange(own, 1)
            if look(state + BOOKED) <= index or not exchange(own, 0):
                return seen
            idle = 0


@inner
def post(state, members):
    """Posts the next number for so many, and whether it is a roll call. Returns what was posted."""
    posted = (((word(state + POSTED) >> MEMBER_BITS) + 1) << MEMBER_BITS) | members
    exchange(state + POSTED, posted)
    return posted


@inner
def answers(state, members, patience):
    """Calls the roll. After at most so many nanoseconds: how many are there with the caller, each with its place.

    Plus CROWDED for each that had lost its core in an earlier job.
    """
    began, spins = nanoseconds(False), 0
    note_core(state, 0)
    posted = post(state, members | ROLL_CALL)
    while True:
        present = 1
        for k in range(1, members):
            present += look(state + ASLEEP + LINE * k + HEARD) == posted
        if present == members:
            break
        spins += 1
        if spins < SPINS:
            pause()
        else:
            give_way()
        if spins % 16 == 0:
            waited = nanoseconds(False) - began if began else LOOK_NS * spins
            if waited > patience:
                break
    present, crowded = 1, CROWDED * (word(state + ASLEEP + ROBBED) != 0)
    for k in range(1, members):
        own = state + ASLEEP + LINE * k
        crowded += CROWDED * (word(own + ROBBED) != 0)
        if look(own + HEARD) == posted:
            set_word(own + PLACE, posted + present)
            present += 1
    return present + crowded


@entry(("book",))
def book(state, members, patience):
    """The members' answers, or SOME_ASLEEP without calling the roll.

    Those asleep count as awake now, and the word after theirs says: wake me. It says so until that is done: who is
    interrupted before leaves it to the next caller.
    """
    exchange(state + BOOKED, members)
    asleep = 0
    for k in range(1, members):
        own = state + ASLEEP + LINE * k
        if exchange(own, 0):
            set_word(own + WAKE, 1)
        asleep += word(own + WAKE)
    return SOME_ASLEEP if asleep else answers(state, members, patience)


@inner
def run(state, members, function, block):
    """See the module's docstring. The members have answered the roll call before it."""
    if members < 2:
        call_in_job_mode(function, block, 0)
        return
    since = nanoseconds(False)
    set_word(state + JOB, function)
    set_word(state + JOB + 8, block)
    set_word(state + FINISHED, 0)
    post(state, members)
    worked = nanoseconds(True)
    call_in_job_mode(function, block, 0)
    await_count(state + FINISHED, members - 1)
    exchange(state + BOOKED, 0)
    note_if_robbed(state + ASLEEP, since, worked, members)
