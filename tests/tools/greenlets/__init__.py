"""Runs Numba CUDA kernels as plain Python, without a device. Each thread of a block is a greenlet.

    with installed(seed=1, watch=True) as launches:
        …                                        # any code that calls kernel[blocks, threads, stream](*arrays)

`installed` replaces the parts of Numba that need a driver: the launch of a kernel, `cuda.external_stream` and
`cuda.as_cuda_array`. The library's own launch code runs, on arrays whose `__cuda_array_interface__` points to host
memory, and `launches` lists its launches. The kernels are the same functions that Numba compiles, with `cuda`, `math`
and Numba's types replaced: see clone.py.

A thread runs until its next barrier or its end, then the next thread runs. `seed` determines the order of the threads,
which changes at each barrier, and the order of the blocks, which run one after the other. A KernelError reports threads
that end, or wait at another barrier, while others wait at one, and launch sizes that no device accepts. With `watch`,
it also reports indices out of bounds (NumPy accepts negative ones) and data races, even if this order of threads does
not expose them: see watch.py.
"""

from __future__ import annotations

from tests.tools.greenlets.block import KernelError
from tests.tools.greenlets.host import Launch, available, installed

__all__ = ["KernelError", "Launch", "available", "installed"]
