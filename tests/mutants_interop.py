"""INTEROP_MUTANTS: planted bugs of devices, foreign arrays and waiting, one row each. See `tests.mutation`."""

from __future__ import annotations

from tests.mutation import Edit, Mutant

DEVICE, CHECKS, MODULE = "rnnkit/core/devices.py", "rnnkit/core/checks.py", "rnnkit/nn/module.py"
EMBEDDING, LOSSES, OPTIMIZERS, OPS = (
    "rnnkit/nn/embedding.py",
    "rnnkit/nn/losses.py",
    "rnnkit/optim/base.py",
    "rnnkit/functional/direction.py",
)


def _row(name: str, file: str, old: str, new: str, pick: str) -> Mutant:
    return Mutant(f"CUDA: {name}", (Edit(file, old, new),), "tests/test_interop.py tests/test_devices.py", pick)


INTEROP_MUTANTS = (
    _row(
        "a layer runs on whatever device is current",
        DEVICE,
        "        with current(module._device):\n            return method(",
        "        with current('cpu'):\n            return method(",
        "a_layer_runs_on_its_own_device",
    ),
    _row(
        "the functional form runs on whatever device is current",
        OPS,
        "    with current(device):\n        x = xp",
        "    with current('cpu'):\n        x = xp",
        "functional_form",
    ),
    _row(
        "an optimizer runs on whatever device is current",
        OPTIMIZERS,
        "            with devices.current(devices.device_of(p)):\n                self._step_of(",
        "            with devices.current('cpu'):\n                self._step_of(",
        "every_module_runs_on_its_own_device",
    ),
    _row(
        "backward answers for a call on another device",
        MODULE,
        "                module._thread_slots = ThreadSlots()",
        "                pass",
        "to_moves_everything or back_and_forth",
    ),
    _row(
        "an optimizer's state stays behind",
        OPTIMIZERS,
        "            state[slot] = devices.to_device(array, devices.device_of(p))\n",
        "            state[slot] = held\n",
        "to_moves_everything",
    ),
    _row(
        "a foreign array is downloaded",
        DEVICE,
        "        return cupy.from_dlpack(value)\n",
        "        return cupy.asarray(cupy.from_dlpack(value).get())\n",
        "taken_without_a_copy",
    ),
    _row(
        "Embedding reads its indices",
        EMBEDDING,
        '        if self.device == "cpu":\n            check_range("indices", indices, N)\n',
        '        check_range("indices", indices, N)\n',
        "nothing_waits",
    ),
    _row(
        "Embedding wraps an index round",
        EMBEDDING,
        "inside = (flat >= 0) & (flat < N)",
        "inside = flat < N",
        "gives_nan",
    ),
    _row(
        "a row's sum leaves out its last round",
        EMBEDDING,
        "    while step < rows.size:\n",
        "    while step < rows.size // 2:\n",
        "sums_of_rows",
    ),
    _row(
        "cross_entropy takes a target outside the classes",
        LOSSES,
        "outside = (picked < 0) | (picked >= K)",
        "outside = picked < 0",
        "target_outside",
    ),
    _row(
        "clip_grad_norm waits once a gradient",
        "rnnkit/optim/clipping.py",
        "sums[device] + squares if device in sums else squares",
        "sums[device] + float(squares) if device in sums else squares",
        "nothing_waits",
    ),
    _row(
        "a layer on the host takes a CuPy array",
        CHECKS,
        "    if actual != device:\n",
        "    if actual != device and device != 'cpu':\n",
        "wrong_side",
    ),
)
