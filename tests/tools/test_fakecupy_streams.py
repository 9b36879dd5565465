"""Streams of the stand-in for CuPy: counted synchronisations, captures and graphs, and unsynchronised work."""

import gc

import numpy as np
import pytest

from tests.tools import fakecupy
from tests.tools.fakecupy import _state


@pytest.fixture
def cp():
    with fakecupy.installed(devices=2) as module:
        yield module


def capture(cp, stream, work):
    """The graph of `work()` on a stream."""
    with stream:
        stream.begin_capture()
        work()
        return stream.end_capture()


def test_only_synchronisations_are_counted_as_such(cp):
    x = cp.asarray(np.arange(6.0))
    waits = [
        ("get", x.get),
        ("get", lambda: float(x[0])),
        ("get", lambda: int(x[1])),
        ("get", lambda: bool(x[1] > 0)),
        ("get", x.sum().item),
        ("get", lambda: repr(x)),
        ("nonzero", lambda: cp.flatnonzero(x)),
        ("nonzero", lambda: cp.where(x > 0)),
        ("mask", lambda: x[x > 2]),
        ("stream", cp.cuda.get_current_stream().synchronize),
        ("device", cp.cuda.Device().synchronize),
        ("event", cp.cuda.get_current_stream().record().synchronize),
    ]
    for kind, wait in waits:
        with cp.fake.counting() as counts:
            wait()
        assert counts.synchronisations == {kind: 1}, kind

    with cp.fake.counting() as counts:
        cp.asarray(np.ones(3))
        x += 1
        x[x > 2] = 0
        x[cp.asarray([0, 1])] = 5
        x[1:] = x[:-1] * 2
        (x @ x, x.sum(), x.max(), x.argsort(), cp.concatenate((x, x)), x.astype(np.float32), x.reshape(2, 3).T)
        cp.empty(0).get()
    assert not counts.synchronisations


def test_counts_of_work(cp):
    x = cp.ones((4, 4))
    with cp.fake.counting() as counts:
        y = x @ x
        y *= 2
        z = cp.zeros((2, 2))
        z[...] = y[:2, :2]
        y.copy()
        host = np.ones((4, 4))
        cp.asarray(host)
    assert (counts.gemms, counts.memsets, counts.allocations, counts.allocated_bytes) == (1, 1, 4, 3 * 128 + 32)
    assert counts.operations == {"multiply": 1, "copy": 1}
    assert counts.memcpys == {"device to device": 1, "host to device": 1}
    before = cp.fake.counts.allocations
    with cp.fake.counting() as outer, cp.fake.counting() as inner:
        cp.ones(1)
    assert outer.allocations == inner.allocations == cp.fake.counts.allocations - before == 1


def test_the_pool_reuses_blocks_that_were_freed_on_the_same_stream(cp):
    cp.empty(100)
    with cp.fake.counting() as counts:
        cp.empty(100)
        with cp.cuda.Stream():
            cp.empty(100)
    assert (counts.allocations, counts.device_mallocs) == (2, 1)


def test_a_capture_records_and_a_graph_replays(cp):
    x, y, total = cp.ones(4), cp.zeros(4), cp.zeros(())
    stream = cp.cuda.Stream(non_blocking=True)

    def work():
        assert stream.is_capturing()
        cp.multiply(x, 3, out=y)
        total[...] = y.sum()

    with cp.fake.counting() as counts:
        graph = capture(cp, stream, work)
    assert y.get().tolist() == [0, 0, 0, 0], "recorded and not run"
    assert counts.captured == {"multiply": 1, "sum": 1, "memcpy": 1}
    assert (counts.captures, counts.graph_launches) == (1, 0)
    assert not counts.operations
    # The sum went to a temporary array of the capture, which is freed.
    with pytest.raises(fakecupy.FakeError, match="freed memory"):
        graph.launch(stream)

    sums = cp.zeros(())
    graph = capture(cp, stream, lambda: (cp.multiply(x, 3, out=y), cp.sum(y, out=sums)))
    with cp.fake.counting() as counts:
        x += 1
        graph.launch(stream)
        x += 1
        graph.launch()
    assert (y.get().tolist(), float(sums)) == ([9, 9, 9, 9], 36), "with the values that arrays have at the launch"
    assert counts.graph_launches == 2
    assert counts.replayed == {"multiply": 2, "sum": 2}


def test_operations_that_a_capture_refuses(cp):
    x, stream = cp.ones((3, 3)), cp.cuda.Stream(non_blocking=True)
    error = cp.cuda.runtime.CUDARuntimeError
    refused = [
        x.get,
        lambda: float(x[0, 0]),
        lambda: x[x > 0],
        lambda: cp.flatnonzero(x),
        stream.synchronize,
        lambda: stream.done,
        cp.cuda.Device().synchronize,
        lambda: cp.asarray(np.ones(3)),
        lambda: x[[0, 1]],
        lambda: stream.record().synchronize(),
    ]
    for wait in refused:
        with stream:
            stream.begin_capture()
            with pytest.raises(error, match=r"StreamCaptureUnsupported|CapturedEvent"):
                wait()
            with pytest.raises(error, match="StreamCaptureInvalidated"):
                stream.end_capture()
        assert not stream.is_capturing()
    with stream:
        stream.begin_capture()
        with pytest.raises(NotImplementedError, match="calling cuBLAS API during stream capture"):
            x @ x
        stream.end_capture()
    with pytest.raises(RuntimeError, match="legacy"):
        cp.cuda.Stream.null.begin_capture()
    with pytest.raises(error, match="InvalidValue"):
        stream.end_capture()
    with pytest.raises(NotImplementedError):
        cp.cuda.Graph()


def test_the_null_stream_is_refused_during_the_capture_of_a_blocking_stream(cp):
    x = cp.ones(3)
    blocking, free = cp.cuda.Stream(), cp.cuda.Stream(non_blocking=True)
    free.begin_capture()
    x += 1
    free.end_capture()
    blocking.begin_capture()
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="StreamCaptureImplicit"):
        x += 1
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="Invalidated"):
        blocking.end_capture()


def test_allocating_in_a_capture(cp):
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()  # relaxed, CuPy's default
        cp.empty(7)
        stream.end_capture()
        stream.begin_capture(cp.cuda.runtime.streamCaptureModeGlobal)
        cp.empty(7)  # from the pool
        with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="cudaMalloc"):
            cp.empty(70000)
        with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="Invalidated"):
            stream.end_capture()


def test_a_second_stream_joins_a_capture_by_events_and_must_be_joined_again(cp):
    x, y = cp.ones(3), cp.zeros(3)
    first, second = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)

    def fork(join):
        first.begin_capture()
        with first:
            second.wait_event(first.record())
        with second:
            cp.add(x, 1, out=y)
        if join:
            first.wait_event(second.record())
        return first.end_capture()

    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="Unjoined"):
        fork(join=False)
    fork(join=True).launch()
    assert y.get().tolist() == [2, 2, 2]


def test_streams_belong_to_their_device(cp):
    stream = cp.cuda.Stream()
    with cp.cuda.Device(1):
        with pytest.raises(RuntimeError, match="does not match with the current device"), stream:
            pass
        with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="InvalidResourceHandle"):
            cp.zeros(3).data.memset_async(0, 24, stream)
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="InvalidDevice"):
        cp.cuda.Device(2).use()


def test_unsynchronised_work_runs_late_with_lazy_streams():
    with fakecupy.installed(lazy_streams=True) as cp:
        x = cp.asarray(np.arange(3.0))
        one, two = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)
        one.wait_event(cp.cuda.Stream.null.record())
        y, z = cp.zeros(3), cp.zeros(3)
        two.wait_event(cp.cuda.Stream.null.record())

        with one:
            cp.add(x, 1, out=y)
        with two:
            cp.multiply(y, 10, out=z)
            assert z.get().tolist() == [0, 0, 0], "`two` was not ordered after `one`"
            two.wait_event(one.record())
            cp.multiply(y, 10, out=z)
            assert z.get().tolist() == [10, 20, 30]
        # A blocking stream and the null stream are ordered implicitly.
        blocking = cp.cuda.Stream()
        with blocking:
            y += 5
        y *= 2
        assert y.get().tolist() == [12, 14, 16]


def test_early_streams_show_a_missing_event_where_late_ones_do_not():
    """A stream that is waited for needs an event from the current one, which has written what it reads."""
    for order, told, want in (("late", False, [1, 1, 1]), ("early", False, [0, 0, 0]), ("early", True, [1, 1, 1])):
        with fakecupy.installed(lazy_streams=order) as cp:
            here, there = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)
            x, y = cp.zeros(3), cp.zeros(3)
            cp.cuda.Device().synchronize()
            with here:
                x += 1
                if told:
                    there.wait_event(here.record())
                with there:
                    cp.multiply(x, 1, out=y)
                here.wait_event(there.record())
                assert y.get().tolist() == want, order


def test_cooperative_launches_that_may_run_at_once_must_fit_together():
    with fakecupy.installed(attributes={"MultiProcessorCount": 10}) as cp:
        streams = _state.machine().streams
        one, two, three = (cp.cuda.Stream(non_blocking=True) for _ in range(3))
        streams.gang(one.ptr, 6)
        streams.gang(one.ptr, 10)
        with pytest.raises(
            fakecupy.FakeError, match=r"launches of 10 \+ 6 blocks may run at once, and the card holds 10"
        ):
            streams.gang(two.ptr, 6)
        two.wait_event(one.record())
        streams.gang(two.ptr, 6)
        three.wait_event(one.record())
        streams.gang(three.ptr, 4)
        with pytest.raises(fakecupy.FakeError, match="card holds 10"):
            streams.gang(three.ptr, 5)
        two.synchronize()
        streams.gang(three.ptr, 10)


def test_temporaries_outlive_queued_work_only_of_their_stream():
    with fakecupy.installed(lazy_streams=True) as cp:
        stream = cp.cuda.Stream(non_blocking=True)
        out = cp.empty(4)
        with stream:
            scratch = cp.full(4, 7.0)
            address = scratch.data.ptr
            cp.cuda.runtime.memcpyAsync(out.data.ptr, address, 32, 3, stream.ptr)
            del scratch
            gc.collect()
            assert out.get().tolist() == [7, 7, 7, 7], "the pool frees in stream order"
            stream.synchronize()
        with pytest.raises(fakecupy.FakeError, match="freed memory"):
            cp.cuda.runtime.memcpyAsync(out.data.ptr, address, 32, 3, stream.ptr)


def test_a_stream_is_current_inside_with_and_after_use(cp):
    stream, other = cp.cuda.Stream(), cp.cuda.Stream(non_blocking=True)
    current = cp.cuda.get_current_stream
    with stream:
        with other:
            assert current() == other
        assert current() == stream
    assert current() == cp.cuda.Stream.null
    other.use()
    assert current() is other
    with cp.cuda.Device(1):
        assert current().ptr == 0
    cp.cuda.Stream.null.use()
    assert stream.ptr != other.ptr
    assert (stream.is_non_blocking, other.is_non_blocking) == (False, True)
    assert cp.cuda.Stream.from_external(stream) == stream


def test_events(cp):
    first, last = cp.cuda.Event(), cp.cuda.Event()
    first.record()
    last.record()
    assert first.done
    assert cp.cuda.get_elapsed_time(first, last) >= 0
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError):
        cp.cuda.get_elapsed_time(cp.cuda.Event(disable_timing=True), last)
