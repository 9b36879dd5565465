"""On PYTHONPATH, gives every Python process the stand-in CuPy: a rehearsal of `make gpu` where there is no card.

    PYTHONPATH=tests/tools/fakecard:. python -m bench.gpu --out FOLDER --parts smoke parity

Python imports a module of this name at its start, before the program.
"""

import sys

from tests.tools import fakecupy

sys.modules["numba_cuda"] = None  # type: ignore[assignment]  # which would look for a driver

_card = fakecupy.installed(attributes={"MultiProcessorCount": 4})
_card.__enter__()
