"""Check, Plan and plan(): what can be compared with the oracle on this machine, and the reasons why the rest cannot."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from rnnkit.backends import Sizes, backend_row, pinned_names
from rnnkit.core.cells import CELLS
from rnnkit.core.devices import cuda_problem, current, resolve_device
from rnnkit.core.dtypes import DTYPES, resolve_dtype
from rnnkit.errors import UnsupportedDeviceError
from rnnkit.testing import CASES, Case

ORACLE = ("numpy", "float64")


@dataclass(frozen=True)
class Check:
    """One comparison with the oracle.

    backend: a name of `rnnkit.backends.pinned_names()` as "cupy:stepwise", or of BACKENDS as "cupy". dtype: a name of
    DTYPES. device: "cpu" or "cuda:<index>".
    """

    backend: str
    dtype: str
    case: Case
    device: str

    def __str__(self) -> str:
        return f"{self.backend} {self.dtype} {self.case} {self.device}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the fields, those of the case under "case"."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Check:
        """The check that `to_dict` wrote."""
        return cls(fields["backend"], fields["dtype"], Case(**fields["case"]), fields["device"])


@dataclass(frozen=True)
class LayerCheck:
    """One comparison of a layer of a user: its repr, where it ran, and the sizes of the call. T steps, B rows."""

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
        """For JSON: the fields."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> LayerCheck:
        """The check that `to_dict` wrote."""
        return cls(**fields)


@dataclass(frozen=True)
class Plan:
    """What to run, and what cannot be run here.

    checks       those that share a case and its numbers come one after another
    unavailable  a backend, dtype, device or combination of them -> why nothing of it can be checked here
    missing      the keys of `unavailable` that were asked for by name
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
    """Every (case, dtype, device, backend) that exists and can run here; None asks for all that there are.

    backends: as in `Check`; by default every schedule of every backend. devices: "cpu", "cuda" or "cuda:<index>"; by
    default the CPU and every CUDA device. float64 on the NumPy backend is the oracle itself: it is in the plan only
    where both are named. Raises ValueError or TypeError for a name that does not exist.
    """
    unavailable: dict[str, str] = {}
    named = {
        "backend": None if backends is None else _backend_names(backends),
        "dtype": None if dtypes is None else _dtype_names(dtypes),
        "cell": None if cells is None else _cell_names(cells),
        "device": None if devices is None else _device_names(devices, unavailable),
    }
    asked = {
        "backend": named["backend"] or pinned_names(),
        "dtype": named["dtype"] or tuple(DTYPES),
        "cell": named["cell"] or tuple(CELLS),
        "device": named["device"] or _all_devices(),
    }
    usable = dict(asked)
    usable["device"] = tuple(d for d in asked["device"] if d not in unavailable)
    usable["backend"] = tuple(b for b in asked["backend"] if _backend_runs(b, unavailable))
    usable["dtype"] = tuple(d for d in asked["dtype"] if _dtype_exists(d, unavailable))
    oracle_named = all(name in (named[kind] or ()) for kind, name in zip(("backend", "dtype"), ORACLE, strict=True))
    combinations = [
        (dtype, device, backend)
        for dtype in sorted(usable["dtype"], key=lambda name: DTYPES[name].stored)
        for device in usable["device"]
        for backend in usable["backend"]
        if _serves(backend, dtype, device) and (oracle_named or (backend, dtype) != ORACLE)
    ]
    wanted = [case for case in cases if case.cell in usable["cell"]]
    checks, refused = _divide(wanted, combinations)
    missing = [name for name in unavailable if any(name in (names or ()) for names in named.values())]
    for (dtype, device, backend), reasons in refused.items():
        key = f"{backend} {dtype} on {device}"
        if len(reasons) < len(wanted):
            key = f"{len(reasons)} of {len(wanted)} cases of {key}"
        elif named["dtype"] and (named["backend"] or named["device"]):
            missing.append(key)
        unavailable[key] = reasons[0]
    missing += _unserved(named, usable, checks, unavailable)
    return Plan(tuple(checks), unavailable, tuple(dict.fromkeys(missing)))


# The names


def _listed(argument: str, names: Iterable[Any]) -> tuple[Any, ...]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f"{argument} must be None or a list of names, got {names!r}")
    found = tuple(dict.fromkeys(names))
    if not found:
        raise ValueError(f"{argument} must be None or at least one name, got none")
    return found


def _backend_names(backends: Iterable[str]) -> tuple[str, ...]:
    names = _listed("backends", backends)
    for name in names:
        backend_row(name)
    return names


def _dtype_names(dtypes: Iterable[Any]) -> tuple[str, ...]:
    # A row's name is taken as it is: resolve_dtype raises where the package of bfloat16 is missing.
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


# What can run


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
    """The checks that a device takes, and for each (dtype, device, backend) the reasons of those that it refuses."""
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
    """Why the device, or the schedule named, does not serve the check; None where it does."""
    if check.device == "cpu":
        return None
    case = check.case
    sizes = Sizes(case.T, case.B, case.I, case.H, case.P or case.H, case.T * case.B)
    row, schedule = backend_row(check.backend)
    try:
        with current(check.device):
            row.load(schedule).describe(CELLS[case.cell], DTYPES[check.dtype], sizes, True)
    except UnsupportedDeviceError as problem:
        return str(problem)
    except Exception:  # a backend that cannot even describe a call: the check stays in the plan, where `run` reports it
        return None
    return None


def _unserved(
    named: dict[str, tuple[str, ...] | None],
    usable: dict[str, tuple[str, ...]],
    checks: list[Check],
    unavailable: dict[str, str],
) -> list[str]:
    """The names asked for of which no check is left; adds the reasons to `unavailable`."""
    left = {
        "backend": {check.backend for check in checks},
        "dtype": {check.dtype for check in checks},
        "cell": {check.case.cell for check in checks},
        "device": {check.device for check in checks},
    }
    found = []
    for kind, names in named.items():
        for name in names or ():
            if name not in left[kind]:
                found.append(name)
                unavailable.setdefault(name, _why_unserved(kind, name, usable))
    return found


def _why_unserved(kind: str, name: str, usable: dict[str, tuple[str, ...]]) -> str:
    devices, backends, dtypes = (", ".join(usable[k]) or "none" for k in ("device", "backend", "dtype"))
    if kind == "backend":
        row = backend_row(name)[0]
        takes = f"takes {row.arrays} arrays in {', '.join(row.dtypes)}"
        return f"{takes}; what can be used of the devices asked for is {devices}, of the dtypes {dtypes}"
    if kind == "cell":
        return "no case of this cell can be checked with the backends, dtypes and devices asked for"
    return f"no backend serves it; what can be used of the backends asked for is {backends}, of the devices {devices}"
