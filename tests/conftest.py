"""Common settings and fixtures: thread counts, hypothesis profiles, CPU backends, seeded generators, poison."""

import os

# Before NumPy is imported: BLAS uses one thread, to avoid oversubscribed cores. The compiled path does not use Numba's
# threads but rnnkit.core.thread_pool. OMP_NUM_THREADS would limit that pool too, so RNNKIT_NUM_THREADS sets one thread
# per core. tests/cpu/test_sharing.py uses more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("RNNKIT_NUM_THREADS", str(len(getattr(os, "sched_getaffinity", lambda _: "1")(0))))
os.environ.setdefault("RNNKIT_QUIET", "1")  # keeps notices out of the standard error of child processes

import gc
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from rnnkit.testing import Case
from tests.helpers import CPU_BACKENDS

_usual = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "max_examples": 60}
settings.register_profile("dev", **_usual)
settings.register_profile("ci", derandomize=True, database=None, **_usual)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


PEERS = tuple(Path(__file__).parent / name for name in ("peers", "torch"))  # every test in these is marked


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out the peers' folders if no test of theirs can run: importing PyTorch, Keras and JAX takes seconds."""
    return True if collection_path in PEERS and "not peers" in config.option.markexpr else None


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the tests of every cell, `make test` runs those of the sLSTM on the oracle alone.

    Its kernels take seconds to compile; tests/cpu/test_slstm.py has a test of each promise.
    """
    for item in items:
        params = getattr(item, "callspec", None)
        values = [] if params is None else list(params.params.values())
        is_slstm = any(isinstance(v, str | Case) and getattr(v, "cell", v) == "slstm" for v in values)
        if is_slstm and "numpy" not in [v for v in values if isinstance(v, str)] and "oracle" not in item.path.parts:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(params=CPU_BACKENDS)
def cpu_backend(request: pytest.FixtureRequest) -> str:
    """The name of each CPU backend."""
    return request.param


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the name of the test: the same numbers in any order of tests, and for every backend."""
    return np.random.default_rng(zlib.crc32(request.node.originalname.encode()))


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    """For tests of exceptions from signal handlers: CPython drops those raised in a callback of the collector.

    Hypothesis has such a callback, and Numba has one for every compiled function that is collected.
    """
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """`with poison():` np.empty and np.empty_like return NaN, to expose reads of uninitialised memory."""

    def poisoned(original: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        def fill(*args: Any, **kwargs: Any) -> np.ndarray:
            array = original(*args, **kwargs)
            if array.dtype.kind == "f":
                array.fill(np.nan)
            return array

        return fill

    @contextmanager
    def inside() -> Iterator[None]:
        with monkeypatch.context() as patch:
            for name in ("empty", "empty_like"):
                patch.setattr(np, name, poisoned(getattr(np, name)))
            yield

    return inside
