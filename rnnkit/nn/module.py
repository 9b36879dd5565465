"""Module: what every rnnkit layer is. Named parameters, named gradients, train and eval, state dicts, devices.

A leaf layer fills `self.params` by `_add_param`; a container lists its children, whose parameters it shows under
`<child>.<name>`. Arrays are written in place; only `to`, `freeze` and `unfreeze` replace them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from rnnkit.core import checks, devices
from rnnkit.core.dtypes import DType, resolve_dtype
from rnnkit.core.grad_mode import grad_enabled, no_grad, set_grad_enabled
from rnnkit.core.read_only import check_writable, constant, is_constant, writable
from rnnkit.nn.calls import Call, Memory, Remembers, new_lock
from rnnkit.nn.conventions import check_meaning
from rnnkit.nn.named_arrays import Params, StateDict

__all__ = ["Array", "Call", "Module", "StateDict", "grad_enabled", "make_rng", "no_grad", "set_grad_enabled"]

Array = Any


def make_rng(rng: Any) -> np.random.Generator:
    """A Generator from a Generator, a seed, or None (fresh entropy)."""
    if isinstance(rng, np.random.Generator):
        return rng
    seeds = (int, np.integer, np.random.SeedSequence)
    if rng is not None and (isinstance(rng, checks.NO_NUMBERS) or not isinstance(rng, seeds)):
        raise TypeError(f"rng must be None, a seed or a numpy.random.Generator, got {type(rng).__name__}")
    if isinstance(rng, (int, np.integer)) and rng < 0:
        raise ValueError(f"rng must be None, a seed of at least 0 or a numpy.random.Generator, got {rng}")
    return np.random.default_rng(rng)


class LoadedKeys(NamedTuple):
    """What `load_state_dict` with strict=False passed over: the module's names not given, and names not the module's.

    As what PyTorch's gives back; both empty with strict.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module(Remembers):
    """Base of layers and containers.

    params, grads: dict name -> array of one shape and dtype, NumPy's, or on a CUDA device CuPy's. `backward` adds into
    grads; `zero_grad` clears them.
    training: True after `train()` (the start), False after `eval()`, which turns dropout off and nothing else.
    takes_lengths: whether a call takes `lengths`, as the recurrent layers' do; a Sequential hands them on by it.

    Threads may share a module. What a call keeps for `backward` belongs to the thread and the call, and gradients are
    added under a lock of the module (see docs/sharing.md). A module of your own keeps what its backward needs in
    `self._saved`, set once per call (None under `no_grad()`), reads it by `self._recalled(call)`, and adds gradients
    by `self._add_grad`.
    """

    takes_lengths = False
    _held: Any = None  # what is made of the parameters' arrays once, until others take their place

    def __init__(self, dtype: Any = "float32", device: Any = None) -> None:
        super().__init__()
        self._dtype: DType = resolve_dtype(dtype)
        self._device = devices.resolve_device(device)
        self._adding = new_lock()  # held while gradients are added
        self._params, self._grads = Params(), Params()
        self.training = True

    # What a subclass says of itself

    def children(self) -> dict[str, Module]:
        """The layers a container holds, by name; a leaf holds none."""
        return {}

    def _family(self) -> Iterator[Module]:
        """The module and all that it holds, outermost first."""
        yield self
        for child in self.children().values():
            yield from child._family()

    def _add_param(self, name: str, value: np.ndarray) -> None:
        value = np.ascontiguousarray(value, dtype=self._dtype.storage)
        self._params._add(name, devices.to_device(value, self._device))
        self._grads._add(name, devices.to_device(np.zeros_like(value), self._device))
        self._held = None

    def _add_grad(self, name: str, value: Array) -> None:
        """Adds into a gradient, in place; `value` may be of the wider dtype that it was computed in."""
        grad = self._grads[name]
        with self._adding:
            grad += value

    def __call__(self, x: Array, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{type(self).__name__} defines no forward")

    def backward(self, dy: Any, *args: Any, **kwargs: Any) -> Any:
        """Gradient of the input of this thread's last call; adds the parameters' gradients into `grads`."""
        raise TypeError(f"{type(self).__name__} defines no backward")

    def __getstate__(self) -> dict[str, Any]:
        """For copy and pickle: all but what calls keep. A shallow copy shares arrays until one is moved or frozen."""
        own = {"_held": None, "_params": self._params._shallow(), "_grads": self._grads._shallow()}
        state = super().__getstate__() | own
        state.pop("_adding", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._adding = new_lock()

    # Parameters

    @property
    def dtype(self) -> np.dtype:
        """dtype of the parameters, and of every array the layer takes and gives."""
        return self._dtype.storage

    @property
    def device(self) -> str:
        """'cpu' or 'cuda:<index>'."""
        return self._device

    @property
    def params(self) -> MutableMapping[str, Array]:
        """name -> parameter. Writing a name copies into its array (a leaf's; a container's view is read-only)."""
        return self._gathered("params", self._params)

    @property
    def grads(self) -> MutableMapping[str, Array]:
        """name -> gradient, of its parameter's shape and dtype."""
        return self._gathered("grads", self._grads)

    def _gathered(self, which: str, own: Mapping[str, Any]) -> Any:
        children = self.children()
        if not children:
            return own
        held = {f"{c}.{k}": v for c, child in children.items() for k, v in getattr(child, which).items()}
        return MappingProxyType({**own, **held})

    def zero_grad(self) -> None:
        """Sets every gradient to zero, in place.

        Calls that this thread made before are no longer pending: see `backward`.
        """
        self._begin_pass()
        for grad in self.grads.values():
            if type(grad) is np.ndarray:
                grad.fill(0)
            else:
                with devices.current(devices.device_of(grad)):
                    grad[...] = 0

    def _begin_pass(self) -> None:
        self._memory.slot.resolve()
        for child in self.children().values():
            child._begin_pass()

    def train(self, mode: bool = True) -> Module:
        """Turns dropout on (or off, with mode=False) here and in every child. Returns the module."""
        self.training = checks.flag("mode", mode)
        for child in self.children().values():
            child.train(mode)
        return self

    def eval(self) -> Module:
        """Turns dropout off. Calls still keep what backward needs; `no_grad()` is what drops it."""
        return self.train(False)

    def to(self, device: Any) -> Module:
        """Moves parameters and gradients to a device ('cpu', 'cuda', 'cuda:<index>'). Returns the module.

        An optimizer's state follows at its next step. What the last call kept for `backward` does not: call the module
        anew. Raises ValueError or RuntimeError for a device that is none or cannot be used.
        """
        target = devices.resolve_device(device)
        for module in self._family():
            module._check_device(target)
        # Everything is copied before anything is replaced: a device that is full leaves all where it was.
        stores = [store for module in self._family() for store in (module._params, module._grads)]
        moved = [{name: devices.to_device(held, target) for name, held in store.items()} for store in stores]
        for module in self._family():
            if target != module.device:
                module._memory = Memory()  # of every thread: what was kept is on the other device
            module._device = target
        for store, arrays in zip(stores, moved, strict=True):
            for name, array in arrays.items():
                store._add(name, array)
        for module in self._family():
            module._held = None
        return self

    def freeze(self) -> Module:
        """Makes every parameter read-only, for inference: a copy that nothing can write to takes its place.

        Where the compiled CPU path keeps weights packed, under `no_grad()`, it then need not read them at each call to
        see that they are what was packed. Until `unfreeze()` writing to a parameter, `load_state_dict` and an
        optimizer's step raise ValueError (none passes over them); `backward` works as before. What was taken from
        `params` before belongs to the module no more; a deep copy, an unpickled module and one moved to a CUDA device
        are not frozen. No call of the module may be running. Returns the module. Raises ValueError for a module on a
        CUDA device, whose arrays cannot be made read-only.
        """
        for module in self._family():
            if module.device != "cpu":
                raise ValueError(f"freeze needs parameters on 'cpu', got {type(module).__name__} on {module.device!r}")
        self._replace_params(lambda p: p if is_constant(p) else constant(p))
        return self

    def unfreeze(self) -> Module:
        """Makes parameters that were frozen writable again: copies take their place. Returns the module."""
        self._replace_params(writable)
        return self

    @property
    def frozen(self) -> bool:
        """Whether the module has parameters and all are frozen."""
        params = self.params
        return bool(params) and all(map(is_constant, params.values()))

    def _replace_params(self, by: Callable[[Array], Array]) -> None:
        # All are made before any takes its place, as in `to`.
        made = [(module, {name: by(p) for name, p in module._params.items()}) for module in self._family()]
        for module, arrays in made:
            for name, array in arrays.items():
                module._params._add(name, array)
            module._held = None

    def _check_device(self, device: str) -> None:
        """Raises ValueError where the module, by the backend it names, could not run on `device`."""

    # State dicts

    @property
    def cells(self) -> Mapping[str, str]:
        """Prefix of parameter names -> name in CELLS of the cell they belong to, for every recurrent layer inside."""
        cell = getattr(self, "cell", None)
        return self._gathered("cells", {} if cell is None else {"": cell.name})

    def state_dict(self) -> StateDict:
        """name -> a NumPy copy of each parameter, under PyTorch's names and in its layout; and each layer's cell."""
        arrays = {name: np.array(devices.to_numpy(p)) for name, p in self.params.items()}
        return StateDict(arrays, self._meanings)

    @property
    def _meanings(self) -> Mapping[str, dict[str, Any]]:
        """Prefix of parameter names -> what names and shapes do not say of the arrays: "cell", "merge"."""
        cell = getattr(self, "cell", None)
        return self._gathered("_meanings", {} if cell is None else {"": {"cell": cell.name}})

    def load_state_dict(
        self,
        mapping: Mapping[str, Any],
        strict: bool = True,
        *,
        cells: str | Mapping[str, str] | None = None,
    ) -> LoadedKeys:
        """Copies parameters from a mapping of NumPy, CuPy or torch arrays, cast to this layer's dtype.

        The two GRUs have the same names and shapes and are different functions, and so have the tanh and the relu RNN.
        A `StateDict` (of `state_dict`, `rnnkit.load`, `from_keras`) says whose weights it holds, and those of another
        cell, or of a Bidirectional with another merge, are refused. Any other mapping, as torch's, is taken to hold the
        weights of a cell that PyTorch has; a GRU with `reset_after=False` takes it where the cell is named, as in
        cells="gru_reset_before", or cells={"1": "gru_reset_before"} by the layer's name (see docs/weights.md).

        Returns the names passed over, (missing_keys, unexpected_keys): without strict there may be some.
        Everything is checked before anything is written. Raises KeyError for missing or extra names (unless strict is
        False), ValueError for a frozen parameter, a wrong shape, numbers too large for the dtype, another cell's
        weights or a cell that must be named, TypeError for values that are no real numbers.
        """
        keys, write = self._checked_load(mapping, strict, cells)
        write()
        return keys

    def _checked_load(
        self, mapping: Mapping[str, Any], strict: bool, cells: str | Mapping[str, str] | None = None
    ) -> tuple[LoadedKeys, Callable[[], None]]:
        """`load_state_dict` up to its writing, which is done by calling what is returned."""
        if not isinstance(mapping, Mapping):
            raise TypeError(f"mapping must be a mapping of names to arrays, got {type(mapping).__name__}")
        strict = checks.flag("strict", strict)
        params = self.params
        check_meaning(mapping, self._meanings, cells, params)
        missing = [n for n in params if n not in mapping]
        extra = [n for n in mapping if n not in params]
        if strict and (missing or extra):
            raise KeyError(f"state dict does not fit: missing {missing or 'nothing'}, extra {extra or 'nothing'}")
        arrays = {name: devices.to_numpy(mapping[name]) for name in params if name in mapping}
        for name, value in arrays.items():
            if value.shape != tuple(params[name].shape):
                raise ValueError(f"{name} must have shape {tuple(params[name].shape)}, got {value.shape}")
            if value.dtype.kind not in "fiu" and value.dtype.name != "bfloat16":
                raise TypeError(f"{name} must hold real numbers, got dtype {value.dtype}")
            check_writable(name, params[name])
        # Copy all before writing any: a cast may still fail, and then nothing has changed; and the mapping may hold
        # this layer's own arrays under other names.
        cast = {name: _cast(name, value, params[name].dtype) for name, value in arrays.items()}
        placed = {name: devices.to_device(host, devices.device_of(params[name])) for name, host in cast.items()}

        def write() -> None:
            for name, value in placed.items():
                with devices.current(devices.device_of(value)):
                    params[name][...] = value

        return LoadedKeys(missing, extra), write


def _cast(name: str, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A copy of `value` in `dtype`. Raises ValueError where a finite number is none there."""
    with np.errstate(over="ignore"):  # said below
        cast = np.array(value, dtype=dtype, order="C")
    lost = ~np.isfinite(cast)
    if lost.any():
        lost &= np.isfinite(value)
        if lost.any():
            raise ValueError(f"{name} must fit dtype {dtype}, got {value[lost][0]}")
    return cast
