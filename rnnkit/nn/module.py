"""Module: the base class of every rnnkit layer. Named parameters and gradients, modes, state dicts, devices.

A layer without children registers its parameters by `_add_param`. A container lists its children, and shows their
parameters as `<child>.<name>`. Arrays are written in place; only `to`, `freeze` and `unfreeze` replace them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from types import MappingProxyType
from typing import Any

import numpy as np

from rnnkit.core import checks, devices
from rnnkit.core.dtypes import DType, resolve_dtype
from rnnkit.core.grad_mode import grad_enabled, no_grad, set_grad_enabled
from rnnkit.core.read_only import constant, is_constant, writable
from rnnkit.nn.calls import Call, SavesCalls, ThreadSlots, new_lock, not_trainable
from rnnkit.nn.loading import LoadedKeys, checked_load
from rnnkit.nn.named_arrays import Params, StateDict

__all__ = [
    "Array",
    "Call",
    "LoadedKeys",
    "Module",
    "StateDict",
    "grad_enabled",
    "make_rng",
    "no_grad",
    "set_grad_enabled",
]

Array = Any


def make_rng(rng: Any) -> np.random.Generator:
    """A Generator from a Generator, from a seed, or from the system's entropy if `rng` is None."""
    if isinstance(rng, np.random.Generator):
        return rng
    seeds = (int, np.integer, np.random.SeedSequence)
    if rng is not None and (isinstance(rng, checks.NOT_NUMBERS) or not isinstance(rng, seeds)):
        raise TypeError(f"rng must be None, a seed or a numpy.random.Generator, got {type(rng).__name__}")
    if isinstance(rng, (int, np.integer)) and rng < 0:
        raise ValueError(f"rng must be None, a seed of at least 0 or a numpy.random.Generator, got {rng}")
    return np.random.default_rng(rng)


class Module(SavesCalls):
    """Base class of layers and containers; subclass it to write a layer.

    A subclass that calls other modules lists them in `children`. Its `__call__` assigns to `self._saved`, once per
    call, what its `backward` needs (None under `no_grad()`); its `backward` reads it by `self._recalled(call)` and adds
    parameter gradients by `self._add_grad`. A subclass with parameters of its own calls `self._add_param`.

    Threads may share a module. What a call saves for backward belongs to that thread and call, and gradients are added
    under a lock of the module (see docs/sharing.md).

    Args:
        dtype: dtype of the parameters: a name in `rnnkit.core.dtypes.DTYPES` or a NumPy dtype.
        device: "cpu", "cuda" or "cuda:<index>"; None for the CPU.

    Attributes:
        training: True after construction and after `train()`, False after `eval()`. It only affects dropout.
        takes_lengths: whether a call takes `lengths`, as recurrent layers do. A Sequential passes them on if so.
        takes_dx: whether `backward` takes `dx`, as recurrent layers do. A Sequential passes it to its first module if
            so. False in a subclass whose own `backward` has no such argument.

    Raises:
        ValueError: unknown dtype or device.
        RuntimeError: the device cannot be used here.

    Examples:
        >>> import numpy as np, rnnkit
        >>> class Scale(rnnkit.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self._add_param("factor", np.ones(1))
        ...     def __call__(self, x):
        ...         self._saved = x if rnnkit.grad_enabled() else None
        ...         return self.params["factor"] * x
        ...     def backward(self, dy, *, call=None):
        ...         x = self._recalled(call)
        ...         self._add_grad("factor", (dy * x).sum(keepdims=True))
        ...         return self.params["factor"] * dy
        >>> layer = Scale()
        >>> layer(np.float32([1, 2]))
        array([1., 2.], dtype=float32)
        >>> layer.backward(np.float32([1, 1]))
        array([1., 1.], dtype=float32)
        >>> layer.grads["factor"]
        array([3.], dtype=float32)
    """

    takes_lengths = False
    takes_dx = False
    _cached_weights: Any = None  # built once from the parameters' arrays; None after an array was replaced
    _matrices: Mapping[str, Any] = MappingProxyType({})  # of a layer with compressed weights, by name

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = vars(cls).get("backward")
        if own is not None and "takes_dx" not in vars(cls) and cls.takes_dx:
            parameters = inspect.signature(own).parameters
            cls.takes_dx = "dx" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def __init__(self, dtype: Any = "float32", device: Any = None) -> None:
        super().__init__()
        self._dtype: DType = resolve_dtype(dtype)
        self._device = devices.resolve_device(device)
        self._adding = new_lock()  # held while gradients are added
        self._params = Params()
        self._grads = Params()
        self.training = True

    # For subclasses

    def children(self) -> dict[str, Module]:
        """The modules that this module calls, by name; a subclass with children overrides it.

        Returns:
            A dict of names to modules; empty for a module without children.

        Examples:
            >>> import rnnkit
            >>> rnnkit.Linear(3, 2).children()
            {}
        """
        return {}

    def _walk(self) -> Iterator[Module]:
        """The module and all its descendants, parents before children."""
        yield self
        for child in self.children().values():
            yield from child._walk()

    def _add_param(self, name: str, value: np.ndarray) -> None:
        value = np.ascontiguousarray(value, dtype=self._dtype.storage)
        self._params._add(name, devices.to_device(value, self._device))
        self._grads._add(name, devices.to_device(np.zeros_like(value), self._device))
        self._cached_weights = None

    def _add_grad(self, name: str, value: Array) -> None:
        """Adds `value` to a gradient in place. `value` may have the wider dtype that it was computed in."""
        grad = self._grads[name]
        with self._adding:
            grad += value

    def __call__(self, x: Array, *args: Any, **kwargs: Any) -> Any:
        """Runs the forward pass; a subclass overrides it.

        Args:
            x: the input array.
            *args: further positional arguments of the subclass.
            **kwargs: further keyword arguments of the subclass.

        Returns:
            The output of the subclass.

        Raises:
            TypeError: the subclass defines no forward pass.

        Examples:
            >>> import numpy as np, rnnkit
            >>> rnnkit.Linear(3, 2)(np.ones((4, 3), np.float32)).shape
            (4, 2)
        """
        raise TypeError(f"{type(self).__name__} defines no forward")

    def backward(self, dy: Any, *args: Any, **kwargs: Any) -> Any:
        """Differentiates this thread's most recent call; adds parameter gradients to `grads`.

        Args:
            dy: gradient of the output.
            *args: further positional arguments of the subclass.
            **kwargs: further keyword arguments of the subclass.

        Returns:
            The gradient of the input.

        Raises:
            TypeError: the subclass defines no backward pass.

        Examples:
            >>> import numpy as np, rnnkit
            >>> layer = rnnkit.Linear(3, 2)
            >>> y = layer(np.ones((4, 3), np.float32))
            >>> layer.backward(np.ones_like(y)).shape
            (4, 3)
        """
        raise TypeError(f"{type(self).__name__} defines no backward")

    def __getstate__(self) -> dict[str, Any]:
        """For copy and pickle: everything except what calls saved.

        A shallow copy shares its arrays with the original until either is moved or frozen.
        """
        own = {"_cached_weights": None, "_params": self._params._shallow(), "_grads": self._grads._shallow()}
        state = super().__getstate__() | own
        state.pop("_adding", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._adding = new_lock()
        if self._matrices:
            from rnnkit.nn.compressed import show_matrices  # which imports this file

            show_matrices(self)  # copies of the parameters do not share the matrices' memory

    # Parameters

    @property
    def dtype(self) -> np.dtype:
        """NumPy dtype of the parameters and of every floating-point array that the module takes and returns."""
        return self._dtype.storage

    @property
    def device(self) -> str:
        """Device of the parameters: 'cpu' or 'cuda:<index>'."""
        return self._device

    @property
    def params(self) -> MutableMapping[str, Array]:
        """Parameters by name: NumPy arrays, or CuPy arrays on a CUDA device.

        Assigning to a name copies into the array of that name. The mapping of a container is read-only.
        """
        return self._gathered("params", self._params)

    @property
    def grads(self) -> MutableMapping[str, Array]:
        """Gradients by name, each with its parameter's shape, dtype and device. `backward` adds to them."""
        return self._gathered("grads", self._grads)

    def _gathered(self, attribute: str, own: Mapping[str, Any]) -> Any:
        """The mapping `own` and the same attribute of each child, with the child's name as prefix."""
        children = self.children()
        if not children:
            return own
        inherited = {f"{c}.{k}": v for c, child in children.items() for k, v in getattr(child, attribute).items()}
        return MappingProxyType({**own, **inherited})

    def zero_grad(self) -> None:
        """Sets every gradient to zero, in place.

        It also resets the count of pending calls of this thread: a `backward` without `call` differentiates the most
        recent call after it.

        Examples:
            >>> import rnnkit
            >>> layer = rnnkit.Linear(3, 2)
            >>> layer.grads["bias"] += 1
            >>> layer.zero_grad()
            >>> layer.grads["bias"]
            array([0., 0.], dtype=float32)
        """
        self._resolve_pending()
        for grad in self.grads.values():
            if type(grad) is np.ndarray:
                grad.fill(0)
            else:
                with devices.current(devices.device_of(grad)):
                    grad[...] = 0

    def _resolve_pending(self) -> None:
        self._thread_slots.slot.resolve()
        for child in self.children().values():
            child._resolve_pending()

    def train(self, mode: bool = True) -> Module:
        """Turns dropout on or off, in this module and all its descendants.

        Args:
            mode: True turns dropout on, False turns it off.

        Returns:
            The module.

        Raises:
            TypeError: mode is not a bool.
            RuntimeError: mode is True and the module has compressed weights.

        Examples:
            >>> import rnnkit
            >>> rnnkit.LSTM(3, 4, num_layers=2, dropout=0.5).train(False).training
            False
        """
        if checks.flag("mode", mode):
            self._check_trainable("train(True)")
        self.training = mode
        for child in self.children().values():
            child.train(mode)
        return self

    def eval(self) -> Module:
        """Turns dropout off. Calls still save what backward needs; only `no_grad()` prevents that.

        Returns:
            The module.

        Examples:
            >>> import rnnkit
            >>> rnnkit.LSTM(3, 4).eval().training
            False
        """
        return self.train(False)

    def to(self, device: Any) -> Module:
        """Moves parameters and gradients to a device.

        The state of an optimizer follows at its next step. What earlier calls saved for backward is dropped: call the
        module again before `backward`.

        Args:
            device: "cpu", "cuda" (the current CUDA device) or "cuda:<index>"; None for the CPU.

        Returns:
            The module.

        Raises:
            ValueError: the device does not exist, or the module's backend cannot run on it.
            RuntimeError: the device cannot be used here.
            DeviceMemoryError: the device's memory is full. Nothing is moved then.

        Examples:
            >>> import rnnkit
            >>> rnnkit.Linear(3, 2).to("cpu").device
            'cpu'
        """
        target = devices.resolve_device(device)
        for module in self._walk():
            module._check_device(target)
        # All arrays are copied before any is replaced: if the device's memory is full, nothing has moved.
        stores = [store for module in self._walk() for store in (module._params, module._grads)]
        moved = [{name: devices.to_device(array, target) for name, array in store.items()} for store in stores]
        for module in self._walk():
            if target != module.device:
                module._thread_slots = ThreadSlots()  # of every thread: what calls saved is on the old device
            module._device = target
        for store, arrays in zip(stores, moved, strict=True):
            for name, array in arrays.items():
                store._add(name, array)
        for module in self._walk():
            module._cached_weights = None
        return self

    def freeze(self) -> Module:
        """Makes every parameter read-only, for inference; a copy that nothing can write to replaces it.

        Under `no_grad()`, the compiled CPU backend caches packed weights. With read-only parameters a call can skip
        checking whether the cached weights are stale. Until `unfreeze()`, writing to a parameter, `load_state_dict` and
        an optimizer's step raise ValueError; `backward` works as before. Arrays taken from `params` before no longer
        belong to the module. A deep copy, an unpickled module and a module moved to a CUDA device are not frozen. No
        call of the module may be running.

        Returns:
            The module.

        Raises:
            ValueError: a parameter is on a CUDA device, where arrays cannot be made read-only.

        Examples:
            >>> import rnnkit
            >>> rnnkit.Linear(3, 2).freeze().frozen
            True
        """
        for module in self._walk():
            if module.device != "cpu":
                raise ValueError(f"freeze needs parameters on 'cpu', got {type(module).__name__} on {module.device!r}")
        self._replace_params(lambda p: p if is_constant(p) else constant(p))
        return self

    def unfreeze(self) -> Module:
        """Makes frozen parameters writable again; writable copies replace them.

        Returns:
            The module.

        Raises:
            RuntimeError: the module has compressed weights.

        Examples:
            >>> import rnnkit
            >>> rnnkit.Linear(3, 2).freeze().unfreeze().frozen
            False
        """
        self._check_trainable("unfreeze")
        self._replace_params(writable)
        return self

    def _check_trainable(self, what: str) -> None:
        """Raises RuntimeError if there are compressed weights inside. what: what would train or write to them."""
        for module in self._walk():
            if module._matrices:
                raise RuntimeError(not_trainable(what, module))

    @property
    def frozen(self) -> bool:
        """Whether the module has parameters and all of them are frozen."""
        params = self.params
        return bool(params) and all(map(is_constant, params.values()))

    def _replace_params(self, convert: Callable[[Array], Array]) -> None:
        # All new arrays exist before any parameter is replaced, as in `to`.
        converted = [(module, {name: convert(p) for name, p in module._params.items()}) for module in self._walk()]
        for module, arrays in converted:
            for name, array in arrays.items():
                module._params._add(name, array)
            module._cached_weights = None

    def _check_device(self, device: str) -> None:
        """Raises ValueError if the backend that the module names cannot run on `device`."""

    def _weight(self, name: str) -> Any:
        """A parameter as backends take it, or None: an array, or a CompressedMatrix."""
        matrix = self._matrices.get(name)
        return self._params.get(name) if matrix is None else matrix

    # State dicts

    @property
    def cells(self) -> Mapping[str, str]:
        """Prefix of parameter names -> name in CELLS of their cell, for every recurrent layer inside."""
        cell = getattr(self, "cell", None)
        return self._gathered("cells", {} if cell is None else {"": cell.name})

    def state_dict(self) -> StateDict:
        """Copies the parameters to the host, under PyTorch's names and in PyTorch's layout.

        Returns:
            A StateDict: name -> NumPy array, and in its `layers` the cell of each recurrent layer.

        Examples:
            >>> import rnnkit
            >>> list(rnnkit.Linear(3, 2).state_dict())
            ['weight', 'bias']
        """
        arrays = {name: np.array(devices.to_numpy(p)) for name, p in self.params.items()}
        return StateDict(arrays, self._meanings)

    @property
    def _meanings(self) -> Mapping[str, dict[str, Any]]:
        """Prefix of parameter names -> what names and shapes do not determine: "cell", "merge"."""
        cell = getattr(self, "cell", None)
        own = {} if cell is None else {"cell": cell.name}
        if self._matrices:
            own["weights"] = self._dtype.weights
        return self._gathered("_meanings", {"": own} if own else {})

    def load_state_dict(
        self,
        mapping: Mapping[str, Any],
        strict: bool = True,
        *,
        cells: str | Mapping[str, str] | None = None,
    ) -> LoadedKeys:
        """Copies parameters from a mapping of names to arrays, cast to this module's dtype.

        The two GRU variants (`reset_after` True or False) have equal names and shapes but are different functions, and
        so are the tanh and the relu RNN. A `StateDict` (from `state_dict`, `rnnkit.load` or `from_keras`) records the
        cell of its weights; weights of another cell, or of a Bidirectional with another merge, are refused. Any other
        mapping, such as torch's, is assumed to hold the weights of a cell that PyTorch has. To load one into a GRU with
        `reset_after=False`, name the cell (see docs/weights.md). Everything is checked before anything is written.

        Args:
            mapping: name -> NumPy, CuPy or torch array, each with its parameter's shape.
            strict: whether missing and extra names are errors.
            cells: the cell of the weights, for mappings that do not record it: a name such as "gru_reset_before", or
                a mapping of layer names to such, as {"1": "gru_reset_before"}.

        Returns:
            The names that were not matched, (missing_keys, unexpected_keys).

        Raises:
            KeyError: missing or extra names, if strict.
            ValueError: a frozen parameter, a wrong shape, a number too large for the dtype, weights of another cell,
                or a cell that must be named.
            TypeError: values that are not real numbers.

        Examples:
            >>> import numpy as np, rnnkit
            >>> a = rnnkit.GRU(3, 4, rng=0)
            >>> b = rnnkit.GRU(3, 4, rng=1)
            >>> b.load_state_dict(a.state_dict())
            LoadedKeys(missing_keys=[], unexpected_keys=[])
            >>> all(np.array_equal(b.params[name], p) for name, p in a.params.items())
            True
        """
        keys, write = checked_load(self, mapping, strict, cells)
        write()
        return keys
