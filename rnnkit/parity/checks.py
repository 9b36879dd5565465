"""Check, Plan and plan(): which comparisons with the oracle this machine can run, and why it cannot run the others."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from rnnkit.backends import Sizes, backend_row, pinned_names
from rnnkit.core.cells import CELLS, cell_of
from rnnkit.core.devices import cuda_problem, current, resolve_device
from rnnkit.core.dtypes import DTYPES, resolve_dtype
from rnnkit.errors import UnsupportedDeviceError
from rnnkit.testing import CASES, Case

ORACLE = ("numpy", "float64")


@dataclass(frozen=True)
class Check:
    """One comparison of a case with the oracle.

    Attributes:
        backend: a name of `rnnkit.backends.pinned_names()`, such as "cupy:stepwise", or of BACKENDS, such as "cupy".
        dtype: a name in DTYPES.
        case: the case.
        device: "cpu" or "cuda:<index>".

    Examples:
        >>> from rnnkit.parity import Check
        >>> from rnnkit.testing import Case
        >>> str(Check("numba", "float32", Case("gru"), "cpu"))
        'numba float32 gru-T5-B3-I4-H6 cpu'
    """

    backend: str
    dtype: str
    case: Case
    device: str

    def __str__(self) -> str:
        return f"{self.backend} {self.dtype} {self.case} {self.device}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON object.

        Returns:
            A dict of the fields, with those of the case under "case".

        Examples:
            >>> from rnnkit.parity import Check
            >>> from rnnkit.testing import Case
            >>> Check("numba", "float32", Case("gru"), "cpu").to_dict()["case"]["cell"]
            'gru'
        """
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Check:
        """The check that `to_dict` converted.

        Args:
            fields: the result of `to_dict`.

        Returns:
            An equal Check.

        Examples:
            >>> from rnnkit.parity import Check
            >>> from rnnkit.testing import Case
            >>> check = Check("numba", "float32", Case("gru"), "cpu")
            >>> Check.from_dict(check.to_dict()) == check
            True
        """
        case = fields["case"]
        constants = tuple(case.get("constants", ()))  # a list in JSON
        return cls(fields["backend"], fields["dtype"], Case(**{**case, "constants": constants}), fields["device"])


@dataclass(frozen=True)
class LayerCheck:
    """One comparison of a user's layer with the oracle.

    Attributes:
        backend: name of the backend that ran the layer.
        dtype: name of its row in DTYPES.
        layer: repr of the layer.
        device: "cpu" or "cuda:<index>".
        T: number of steps of the call.
        B: number of rows of the call.
        ragged: whether the call had lengths.

    Examples:
        >>> from rnnkit.parity import LayerCheck
        >>> str(LayerCheck("numba", "float32", "GRU(4, 6)", "cpu", T=5, B=3, ragged=True))
        'numba GRU(4, 6) T5-B3-ragged cpu'
    """

    backend: str
    dtype: str
    layer: str
    device: str
    T: int
    B: int
    ragged: bool

    def __str__(self) -> str:
        sizes = f"T{self.T}-B{self.B}" + ("-ragged" if self.ragged else "")
        return f"{self.backend} {self.layer} {sizes} {self.device}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON object.

        Returns:
            A dict of the fields.

        Examples:
            >>> from rnnkit.parity import LayerCheck
            >>> LayerCheck("numba", "float32", "GRU(4, 6)", "cpu", 5, 3, False).to_dict()["T"]
            5
        """
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> LayerCheck:
        """The check that `to_dict` converted.

        Args:
            fields: the result of `to_dict`.

        Returns:
            An equal LayerCheck.

        Examples:
            >>> from rnnkit.parity import LayerCheck
            >>> check = LayerCheck("numba", "float32", "GRU(4, 6)", "cpu", 5, 3, False)
            >>> LayerCheck.from_dict(check.to_dict()) == check
            True
        """
        return cls(**fields)


@dataclass(frozen=True)
class Plan:
    """What can be checked here, and why the rest cannot.

    Attributes:
        checks: the checks. Those of one case and dtype are adjacent, so that the oracle runs once for them.
        unavailable: backend, dtype, device or combination of them -> why it cannot be checked here.
        missing: the keys of `unavailable` that were requested by name.

    Examples:
        >>> from rnnkit.parity import plan
        >>> plan(["numpy"], ["float32"], ["gru"]).unavailable
        {}
    """

    checks: tuple[Check, ...]
    unavailable: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


def plan(
    backends: Iterable[str] | None = None,
    dtypes: Iterable[Any] | None = None,
    cells: Iterable[str] | None = None,
    devices: Iterable[str] | None = None,
    cases: Collection[Case] = CASES,
) -> Plan:
    """Lists every (case, dtype, device, backend) that exists and can run here. None stands for all names.

    float64 on the NumPy backend is the oracle itself: the plan contains it only if both are requested by name.

    Args:
        backends: names as in `Check`; by default every schedule of every backend.
        dtypes: names in DTYPES or NumPy dtypes.
        cells: names in CELLS.
        devices: "cpu", "cuda" or "cuda:<index>"; by default the CPU and every CUDA device.
        cases: the cases to check.

    Returns:
        A Plan.

    Raises:
        TypeError: an argument is not a list of names.
        ValueError: a name does not exist.

    Examples:
        >>> from rnnkit.parity import plan
        >>> checks = plan(["numpy"], ["float32"], ["gru"]).checks
        >>> str(checks[0])
        'numpy float32 gru-T5-B3-I4-H6 cpu'
    """
    unavailable: dict[str, str] = {}
    named = {
        "backend": None if backends is None else _backend_names(backends),
        "dtype": None if dtypes is None else _dtype_names(dtypes),
        "cell": None if cells is None else _cell_names(cells),
        "device": None if devices is None else _device_names(devices, unavailable),
    }
    requested = {
        "backend": named["backend"] or pinned_names(),
        "dtype": named["dtype"] or tuple(DTYPES),
        "cell": named["cell"] or tuple(CELLS),
        "device": named["device"] or _all_devices(),
    }
    usable = dict(requested)
    usable["device"] = tuple(d for d in requested["device"] if d not in unavailable)
    usable["backend"] = tuple(b for b in requested["backend"] if _backend_runs(b, unavailable))
    usable["dtype"] = tuple(d for d in requested["dtype"] if _dtype_exists(d, unavailable))
    oracle_named = all(name in (named[kind] or ()) for kind, name in zip(("backend", "dtype"), ORACLE, strict=True))
    combinations = [
        (dtype, device, backend)
        for dtype in sorted(usable["dtype"], key=lambda name: DTYPES[name].stored)
        for device in usable["device"]
        for backend in usable["backend"]
        if _serves(backend, dtype, device) and (oracle_named or (backend, dtype) != ORACLE)
    ]
    selected = [case for case in cases if cell_of(case.cell).name in usable["cell"]]
    checks, refused = _divide(selected, combinations)
    missing = [name for name in unavailable if any(name in (names or ()) for names in named.values())]
    for (dtype, device, backend), reasons in refused.items():
        key = f"{backend} {dtype} on {device}"
        if len(reasons) < len(selected):
            key = f"{len(reasons)} of {len(selected)} cases of {key}"
        elif named["dtype"] and (named["backend"] or named["device"]):
            missing.append(key)
        unavailable[key] = reasons[0]
    missing += _unserved(named, usable, checks, unavailable)
    return Plan(tuple(checks), unavailable, tuple(dict.fromkeys(missing)))


# The names


def _listed(argument: str, names: Iterable[Any]) -> tuple[Any, ...]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f"{argument} must be None or a list of names, got {names!r}")
    unique = tuple(dict.fromkeys(names))
    if not unique:
        raise ValueError(f"{argument} must be None or at least one name, got none")
    return unique


def _backend_names(backends: Iterable[str]) -> tuple[str, ...]:
    names = _listed("backends", backends)
    for name in names:
        backend_row(name)
    return names


def _dtype_names(dtypes: Iterable[Any]) -> tuple[str, ...]:
    # Names of rows are not resolved: resolve_dtype raises if the package ml_dtypes is missing.
    names = [d if isinstance(d, str) and d in DTYPES else resolve_dtype(d).name for d in _listed("dtypes", dtypes)]
    return tuple(dict.fromkeys(names))


def _cell_names(cells: Iterable[str]) -> tuple[str, ...]:
    names = _listed("cells", cells)
    for name in names:
        if name not in CELLS:
            raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {name!r}")
    return names


def _device_names(devices: Iterable[str], unavailable: dict[str, str]) -> tuple[str, ...]:
    names = []
    for device in _listed("devices", devices):
        try:
            names.append(resolve_device(device))
        except RuntimeError as problem:
            names.append(device)
            unavailable[device] = str(problem).partition("cannot be used: ")[2] or str(problem)
    return tuple(dict.fromkeys(names))


def _all_devices() -> tuple[str, ...]:
    """The CPU, and every CUDA device that CuPy can use."""
    if cuda_problem() is not None:
        return ("cpu",)
    import cupy

    return ("cpu", *(f"cuda:{k}" for k in range(cupy.cuda.runtime.getDeviceCount())))


# Availability


def _backend_runs(name: str, unavailable: dict[str, str]) -> bool:
    problem = backend_row(name)[0].problem()
    if problem:
        unavailable[name] = problem
    return problem is None


def _dtype_exists(name: str, unavailable: dict[str, str]) -> bool:
    if DTYPES[name].stored == "bfloat16" and importlib.util.find_spec("ml_dtypes") is None:
        unavailable[name] = "needs the package ml_dtypes (pip install ml_dtypes)"
    return name not in unavailable


def _serves(backend: str, dtype: str, device: str) -> bool:
    row = backend_row(backend)[0]
    return dtype in row.dtypes and (row.arrays == "numpy") == (device == "cpu")


Combination = tuple[str, str, str]


def _divide(cases: list[Case], combinations: list[Combination]) -> tuple[list[Check], dict[Combination, list[str]]]:
    """The checks that can run, and for each (dtype, device, backend) the reasons of those that the device refuses."""
    checks: list[Check] = []
    refused: dict[Combination, list[str]] = {}
    for case in cases:
        for dtype, device, backend in combinations:
            check = Check(backend, dtype, case, device)
            reason = _refusal(check)
            if reason is None:
                checks.append(check)
            else:
                refused.setdefault((dtype, device, backend), []).append(reason)
    return checks, refused


def _refusal(check: Check) -> str | None:
    """Why the backend, the device or the named schedule does not serve the check; None if it does."""
    case = check.case
    row, schedule = backend_row(check.backend)
    cell = cell_of(case.cell)
    if cell.name not in row.cells():
        return f"does not serve the cell {case.cell}"
    if check.device == "cpu":
        return None
    sizes = Sizes(case.T, case.B, case.I, case.H, case.P or case.H, case.T * case.B)
    try:
        with current(check.device):
            row.load(schedule).describe(cell, DTYPES[check.dtype], sizes, True)
    except UnsupportedDeviceError as problem:
        return str(problem)
    except (
        Exception
    ):  # the backend cannot describe the call: the check stays in the plan, and `run` reports the failure
        return None
    return None


def _unserved(
    named: dict[str, tuple[str, ...] | None],
    usable: dict[str, tuple[str, ...]],
    checks: list[Check],
    unavailable: dict[str, str],
) -> list[str]:
    """The requested names without any check; adds the reasons to `unavailable`."""
    served = {
        "backend": {check.backend for check in checks},
        "dtype": {check.dtype for check in checks},
        "cell": {cell_of(check.case.cell).name for check in checks},
        "device": {check.device for check in checks},
    }
    unserved = []
    for kind, names in named.items():
        for name in names or ():
            if name not in served[kind]:
                unserved.append(name)
                unavailable.setdefault(name, _why_unserved(kind, name, usable))
    return unserved


def _why_unserved(kind: str, name: str, usable: dict[str, tuple[str, ...]]) -> str:
    devices, backends, dtypes = (", ".join(usable[k]) or "none" for k in ("device", "backend", "dtype"))
    if kind == "backend":
        row = backend_row(name)[0]
        takes = f"takes {row.arrays} arrays in {', '.join(row.dtypes)}"
        return f"{takes}; of the requested devices {devices} can be used, of the requested dtypes {dtypes}"
    if kind == "cell":
        return "no case of this cell can be checked with the requested backends, dtypes and devices"
    return f"no backend serves it; of the requested backends {backends} can be used, of the requested devices {devices}"
