"""Mutation tests: planted bugs, each of which must make chosen tests fail.

    python -m tests.tools.mutants [word of a name]...

A mutant is a row of a table: an edit of the source (`planting.Edit`), and the smallest set of tests that must fail.
There is about one mutant per promise of the library. `planting` edits copies of the repository and runs the tests.
"""

from __future__ import annotations

from tests.tools import emulator, greenlets
from tests.tools.mutants.backends import BACKEND_MUTANTS
from tests.tools.mutants.cell_options import OPTION_MUTANTS
from tests.tools.mutants.chunks import CHUNK_MUTANTS
from tests.tools.mutants.cluster import CLUSTER_MUTANTS
from tests.tools.mutants.compressed import COMPRESSED_MUTANTS
from tests.tools.mutants.modules import MODULE_MUTANTS
from tests.tools.mutants.normalised_cells import NORM_MUTANTS, TORCH_NORM_MUTANTS
from tests.tools.mutants.overlap import OVERLAP_MUTANTS
from tests.tools.mutants.planting import Mutant
from tests.tools.mutants.random_masks import RANDOM_MASK_MUTANTS
from tests.tools.mutants.recompute import RECOMPUTE_MUTANTS
from tests.tools.mutants.resident_backward import RESIDENT_BACKWARD_MUTANTS
from tests.tools.mutants.resident_forward import RESIDENT_FORWARD_MUTANTS
from tests.tools.mutants.segments import SEGMENT_MUTANTS
from tests.tools.mutants.slstm import SLSTM_MUTANTS, TORCH_SLSTM_MUTANTS
from tests.tools.mutants.steps import STEP_MUTANTS
from tests.tools.mutants.tools import TOOL_MUTANTS
from tests.tools.mutants.torch_layers import TORCH_MUTANTS
from tests.tools.mutants.torch_layers import problem as torch_problem
from tests.tools.mutants.torch_modules import TORCH_MODULE_MUTANTS
from tests.tools.mutants.wanted import TORCH_WANTED_MUTANTS, WANTED_MUTANTS

TABLES: tuple[tuple[Mutant, ...], ...] = (
    MODULE_MUTANTS,
    SEGMENT_MUTANTS,
    CHUNK_MUTANTS,
    OPTION_MUTANTS,
    STEP_MUTANTS,
    RANDOM_MASK_MUTANTS,
    COMPRESSED_MUTANTS,
    TOOL_MUTANTS,
    BACKEND_MUTANTS,
    NORM_MUTANTS,
    SLSTM_MUTANTS,
    RESIDENT_FORWARD_MUTANTS,
    RESIDENT_BACKWARD_MUTANTS,
    OVERLAP_MUTANTS,
    CLUSTER_MUTANTS,
    WANTED_MUTANTS,
    RECOMPUTE_MUTANTS,
    TORCH_MUTANTS,
    TORCH_MODULE_MUTANTS,
    TORCH_NORM_MUTANTS,
    TORCH_SLSTM_MUTANTS,
    TORCH_WANTED_MUTANTS,
)
MUTANTS: tuple[Mutant, ...] = tuple(mutant for table in TABLES for mutant in table)


def problem_of(mutant: Mutant) -> str | None:
    """Why the tests of `mutant` cannot run on this machine, or None if they can."""
    if mutant in (
        *TORCH_MUTANTS,
        *TORCH_MODULE_MUTANTS,
        *TORCH_NORM_MUTANTS,
        *TORCH_SLSTM_MUTANTS,
        *TORCH_WANTED_MUTANTS,
    ):
        return torch_problem()
    if "test_cupy_" in mutant.files:
        return emulator.available()
    return greenlets.available() if "test_numba_cuda" in mutant.files else None
