"""Numba CUDA kernels run as plain Python, with no device: a greenlet stands for a thread of a block.

    with installed(seed=1, watch=True) as launches:
        …                                        # whatever calls kernel[blocks, threads, stream](*arrays)

`installed` replaces what of Numba needs a driver: the launch of a kernel, `cuda.external_stream` and
`cuda.as_cuda_array`. So the library's own launch code runs, on arrays whose `__cuda_array_interface__` points to host
memory; `launches` tells what it launched. The kernels are the very functions Numba compiles, with `cuda`, `math` and
Numba's types replaced: see clone.py.

A thread runs until its barrier or its end, then the next one does, in an order that `seed` draws anew after every
barrier; blocks run one after the other, in an order drawn too. Found, as KernelError: threads that have ended, or wait
elsewhere, while others are at a barrier; sizes no card takes; and with `watch`, indices out of bounds (NumPy takes
negative ones) and data races, in this order of threads or in any other: see watch.py.
"""

from __future__ import annotations

from tests.tools.greenlets.block import KernelError
from tests.tools.greenlets.host import Launch, available, installed

__all__ = ["KernelError", "Launch", "available", "installed"]
