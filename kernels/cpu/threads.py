"""Worker threads in native code. A job is a compiled function that each thread of the job calls with its own rank.

    run_job(state, threads, function, block)   calls function(block, rank) for each rank in [0, threads), rank 0 on the
                                               calling thread; returns when all calls have returned
    serve(state, index, seen)                  the loop of worker `index`; returns after a long idle time, to sleep
    reserve(state, threads, timeout_ns)        before run_job: keeps the awake workers awake, and returns how many
                                               threads are ready, or that some workers sleep and must be woken
    barrier(counter, goal)                     a barrier between the threads of one job

Workers poll for the next job for 200 to 400 us before they sleep, because the calls of a training loop or of a stack of
layers follow each other closely: a polling worker takes over within a microsecond, and waking one takes 90. After the
first polls a worker yields its core between polls. Sleeping and waking happen in Python (rnnkit/core/thread_pool.py).

A worker without a core, for example because another library's thread spins on it, would delay every barrier. So a
worker takes part in a job only after it has answered a ready check, and each thread records it if it was preempted
during a job.

`state` is the address of zeroed memory, in which words that different threads write are on separate cache lines. POSTED
holds a sequence number, the number of threads asked for, and whether this is a ready check or a job. `reserve` gives
each worker that answered a ready check its rank for the job that follows. The rank names the ready check that it
belongs to. A worker without a rank for a job must not read that job, since the words may already belong to a later one.
"""

from __future__ import annotations

from rnnkit.kernels.cpu.jit import INTEGER, inner, native
from rnnkit.kernels.cpu.memory import atomic_add, atomic_exchange, atomic_load, call_address, load_word, store_word
from rnnkit.kernels.cpu.system import (
    JOB_MODE,
    clock_ns,
    current_core,
    float_mode,
    move_off_cores,
    pause,
    set_float_mode,
    yield_core,
)

LINE = 64  # bytes of a cache line

# Offsets in `state`, in bytes.
POSTED = 0
RESERVED = LINE  # how many threads must stay awake
FINISHED = 2 * LINE  # how many workers have finished the job
JOB = 3 * LINE  # the job's function, then its argument block
ASLEEP = 4 * LINE  # from here on one line per thread; the line's first word is 1 while the worker sleeps
# Offsets in a thread's line.
WAKE = 8  # 1 while the worker must be woken
ANSWERED = 16  # what was posted for the last ready check that the worker answered
PREEMPTED = 24  # nanoseconds off-CPU in a job, until the pool reads them
RANK = 32  # the worker's rank in the next job, plus what was posted for the ready check
CORE = 40  # 1 + the number of the core that the thread was on

# What is posted: a sequence number, shifted by COUNT_BITS, plus READY_CHECK or 0, plus a number of threads.
COUNT_BITS = 16
READY_CHECK = 1 << 15
# Results of `reserve` besides the number of ready threads.
SOME_ASLEEP = -1
ONE_PREEMPTED = 1 << 20  # added once per preempted thread
# A thread counts as preempted if it was off-CPU for more than this in a job of P threads, and for more than 1/P of the
# job. Interrupts take about 10 us, time slices a few ms. P - 1 threads would then have been as fast: the work W takes
# W / P plus the time lost, or W / (P - 1).
PREEMPTED_NS = 200_000
IDLE_PAUSES = 1500  # polls with a pause instruction, 10 to 40 ns each, before a worker yields its core at each poll
IDLE_POLLS = 2000  # all polls before a worker sleeps; one that yields takes about 300 ns
BARRIER_PAUSES = 4000  # the same at a barrier: more, since a yielded core may be available only after a time slice
POLL_NS = 30  # the estimated time of a poll, where the system has no clock


def state_bytes(workers: int) -> int:
    """The size of `state` for this many workers and the calling thread."""
    return ASLEEP + LINE * (workers + 1)


@inner
def wait_for_count(counter, goal):
    """Waits until the word at `counter` has reached `goal`."""
    spins = 0
    while atomic_load(counter) < goal:
        spins += 1
        if spins < BARRIER_PAUSES:
            pause()
        else:
            yield_core()


@inner
def barrier(counter, goal):
    """Adds 1 to the counter, then waits until it has reached `goal`: n * P at the n-th barrier of P threads."""
    atomic_add(counter, 1)
    wait_for_count(counter, goal)


@inner
def note_preemption(own, start, cpu_start, threads):
    """Records a preemption in the job that began at `start`. cpu_start: the thread's CPU time then."""
    elapsed = clock_ns(False) - start
    if elapsed > PREEMPTED_NS:
        lost = elapsed - (clock_ns(True) - cpu_start)
        if lost > PREEMPTED_NS and lost * threads > elapsed:
            atomic_exchange(own + PREEMPTED, lost)


@inner
def note_own_core(state, index):
    """Records which core this thread is on. Leaves that core if a thread of a lower number is on it too.

    Linux may put a woken worker on the core of the thread that woke it, and leave it there for tens of milliseconds
    while other cores are idle.
    """
    first = state + ASLEEP + CORE
    here = current_core() + 1
    shared = False
    for k in range(index):
        shared |= here > 0 and load_word(first + LINE * k) == here
    if shared:
        move_off_cores(first, LINE, index)
        here = current_core() + 1
    store_word(first + LINE * index, here)


@inner
def call_in_job_mode(function, block, rank):
    """Calls function(block, rank) in the floating-point mode of jobs, so that results do not depend on the thread's.

    The call goes through an address, so the compiler cannot move the job's arithmetic out of it.
    """
    before = float_mode()
    set_float_mode(JOB_MODE)
    call_address(function, block, rank)
    set_float_mode(before)


@native(("serve",), (INTEGER, INTEGER, INTEGER))
def serve(state, index, seen):
    """Runs this worker's part of every job after the one posted as `seen`. Returns what was posted last, to sleep."""
    own = state + ASLEEP + LINE * index
    idle = 0
    start = 0
    cpu_start = 0
    while True:
        posted = atomic_load(state + POSTED)
        if posted != seen:
            before = seen
            seen = posted
            if posted & READY_CHECK:
                if index < posted & (READY_CHECK - 1):
                    idle = 0
                    atomic_exchange(own + ANSWERED, posted)
                    note_own_core(state, index)
                    start = clock_ns(False)
                    cpu_start = clock_ns(True)
                continue
            follows = before & READY_CHECK and posted >> COUNT_BITS == (before >> COUNT_BITS) + 1
            rank = load_word(own + RANK) - before if follows else 0
            if 0 < rank < posted & (READY_CHECK - 1):
                idle = 0
                call_in_job_mode(load_word(state + JOB), load_word(state + JOB + 8), rank)
                atomic_add(state + FINISHED, 1)
                note_preemption(own, start, cpu_start, posted & (READY_CHECK - 1))
        elif idle < IDLE_PAUSES:
            idle += 1
            pause()
        elif idle < IDLE_POLLS or atomic_load(state + RESERVED) > index:
            idle += 1
            yield_core()
        else:
            # The worker writes ASLEEP before it reads RESERVED, and a caller writes RESERVED before it reads ASLEEP. So
            # one of the two sees the other.
            store_word(own + CORE, 0)
            atomic_exchange(own, 1)
            if atomic_load(state + RESERVED) <= index or not atomic_exchange(own, 0):
                return seen
            idle = 0


@inner
def post(state, count):
    """Posts the next sequence number with `count`: a number of threads, plus READY_CHECK. Returns what was posted."""
    posted = (((load_word(state + POSTED) >> COUNT_BITS) + 1) << COUNT_BITS) | count
    atomic_exchange(state + POSTED, posted)
    return posted


@inner
def check_ready(state, threads, timeout_ns):
    """Posts a ready check and waits for the answers, at most `timeout_ns`. Gives each worker that answered its rank.

    Returns the number of ready threads, the caller included, plus ONE_PREEMPTED for each thread that was preempted in
    an earlier job.
    """
    began = clock_ns(False)
    spins = 0
    note_own_core(state, 0)
    posted = post(state, threads | READY_CHECK)
    while True:
        ready = 1
        for k in range(1, threads):
            ready += atomic_load(state + ASLEEP + LINE * k + ANSWERED) == posted
        if ready == threads:
            break
        spins += 1
        if spins < IDLE_PAUSES:
            pause()
        else:
            yield_core()
        if spins % 16 == 0:
            waited = clock_ns(False) - began if began else POLL_NS * spins
            if waited > timeout_ns:
                break
    ready = 1
    preempted = ONE_PREEMPTED * (load_word(state + ASLEEP + PREEMPTED) != 0)
    for k in range(1, threads):
        own = state + ASLEEP + LINE * k
        preempted += ONE_PREEMPTED * (load_word(own + PREEMPTED) != 0)
        if atomic_load(own + ANSWERED) == posted:
            store_word(own + RANK, posted + ready)
            ready += 1
    return ready + preempted


@native(("reserve",), (INTEGER, INTEGER, INTEGER))
def reserve(state, threads, timeout_ns):
    """The result of `check_ready`, or SOME_ASLEEP without a ready check.

    A sleeping worker counts as awake from here on, and its WAKE word asks for it to be woken. The word stays set until
    that is done, so a caller that is interrupted before leaves the waking to the next one.
    """
    atomic_exchange(state + RESERVED, threads)
    asleep = 0
    for k in range(1, threads):
        own = state + ASLEEP + LINE * k
        if atomic_exchange(own, 0):
            store_word(own + WAKE, 1)
        asleep += load_word(own + WAKE)
    return SOME_ASLEEP if asleep else check_ready(state, threads, timeout_ns)


@inner
def run_job(state, threads, function, block):
    """See the module's docstring. The workers have answered the ready check before it."""
    if threads < 2:
        call_in_job_mode(function, block, 0)
        return
    start = clock_ns(False)
    store_word(state + JOB, function)
    store_word(state + JOB + 8, block)
    store_word(state + FINISHED, 0)
    post(state, threads)
    cpu_start = clock_ns(True)
    call_in_job_mode(function, block, 0)
    wait_for_count(state + FINISHED, threads - 1)
    atomic_exchange(state + RESERVED, 0)
    note_preemption(state + ASLEEP, start, cpu_start, threads)
