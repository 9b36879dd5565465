"""With this folder on PYTHONPATH, every Python process gets the simulated CuPy: `make gpu` can run without a GPU.

    PYTHONPATH=tests/tools/fakecard:. python -m bench.gpu --out FOLDER --parts smoke parity

Python imports a module of this name at startup.
"""

import sys

from tests.tools import fakecupy

sys.modules["numba_cuda"] = None  # type: ignore[assignment]  # importing it searches for a driver

_card = fakecupy.installed(attributes={"MultiProcessorCount": 4})
_card.__enter__()
