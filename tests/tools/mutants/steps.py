"""STEP_MUTANTS: bugs in Cells with options, and in `rnnkit.trajectory`."""

from __future__ import annotations

from tests.tools.mutants.planting import Mutant, row

CELLS, TRAJECTORY = "rnnkit/nn/step_cell.py", "rnnkit/nn/trajectory.py"
EVERY_STEP = "rnnkit/functional/trajectory.py"
OPTIONS, STEPS = "tests/api/test_step_options.py", "tests/api/test_trajectory.py"
ON_CUDA = "tests/cuda/test_trajectory_on_device.py"

STEP_MUTANTS: tuple[Mutant, ...] = (
    row(
        "Cells: zoneout draws in evaluation mode",
        CELLS,
        "StepCell._step",
        "if noise is not None and self.training:",
        "if noise is not None:",
        OPTIONS,
        "their_share and rnn",
    ),
    row(
        "Cells: zoneout draws the same in every call",
        CELLS,
        "StepCell._step",
        "noise.rates.noise(True, self.rng)",
        "noise._replace(seed=7)",
        OPTIONS,
        "their_share and rnn",
    ),
    row(
        "Cells: gradients of the weights per unit are lost",
        CELLS,
        "StepCell.backward",
        "if grad is not None:",
        "if grad is not None and name.startswith(('weight_ih', 'weight_hh', 'bias')):",
        OPTIONS,
        "the_bits and numpy and haste",
    ),
    row(
        "Cells: masks of sequences are accepted",
        "rnnkit/core/regularisation.py",
        "refuse_unknown",
        "for name in unknown:",
        "for name in set(unknown) - set(OF_SEQUENCES):",
        OPTIONS,
        "bad_arguments",
    ),
    row(
        "trajectory: zoneout is left out",
        TRAJECTORY,
        "_trajectory",
        "None if rates is None else rates.noise(False, layer.rng)",
        "None",
        STEPS,
        "options and numpy and zoneout",
    ),
    row(
        "trajectory: a gate below the clip has the value above it",
        "rnnkit/core/option_steps.py",
        "gates_at_limits",
        "xp.where(a > 0, a.dtype.type(most), a.dtype.type(least))",
        "a.dtype.type(most)",
        STEPS,
        "both_limits",
    ),
    row(
        "trajectory: at the clip a candidate has the value of a gate",
        "rnnkit/core/option_steps.py",
        "gates_at_limits",
        '"g" if name in _CANDIDATES else "f"',
        '"f"',
        STEPS,
        "both_limits",
    ),
    row(
        "trajectory: gates at the clip stay infinite",
        EVERY_STEP,
        "_of_call",
        "gates_at_limits(cell, call.constants, {name: values[name] for name in gates})",
        "{name: values[name] for name in gates}",
        ON_CUDA,
        "test_numba_cuda and clip and coupled",
    ),
    row(
        "trajectory: masked steps carry states across a reset",
        EVERY_STEP,
        "_carry",
        "nearest[reset[t + direction]] = -1",
        "pass",
        STEPS,
        "resets_and_masks and numpy",
    ),
    row(
        "trajectory: masked steps before the first live one have no reset state",
        EVERY_STEP,
        "_carry",
        "restarted |= reset[t + direction]",
        "pass",
        STEPS,
        "resets_and_masks and numpy",
    ),
    row(
        "trajectory: masked steps past a row's end have states",
        EVERY_STEP,
        "_carry",
        "xp.where(xp.asarray(inside[:, :, None]), carried, after)",
        "carried",
        STEPS,
        "resets_and_masks and numpy",
    ),
    row(
        "trajectory: the last state of ragged rows is zero",
        EVERY_STEP,
        "_after",
        "times == last - 1",
        "times == T - 1",
        STEPS,
        "single_steps and numpy",
    ),
    row(
        "trajectory: cupy gives the rows in the order of their lengths",
        "rnnkit/backends/cupy/every_step.py",
        "saved_steps",
        "p.packing.places()",
        "sorted(p.packing.places())",
        ON_CUDA,
        "cupy",
    ),
    row(
        "trajectory: numba_cuda gives the first gate for all",
        "rnnkit/backends/numba_cuda/layer.py",
        "saved_steps",
        "steps[:, :, number * H : (number + 1) * H]",
        "steps[:, :, :H]",
        ON_CUDA,
        "test_numba_cuda",
    ),
)
