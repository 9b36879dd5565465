"""Sequential and LastState: modules that call other modules, and differentiate them in reverse order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from rnnkit.core.devices import array_module, on_own_device
from rnnkit.nn.bidirectional import Bidirectional, check_gradient, merge_gradients, merged
from rnnkit.nn.calls import backward_of, dx_options
from rnnkit.nn.module import Array, Call, Module, grad_enabled
from rnnkit.nn.rnn_base import Recurrent
from rnnkit.nn.step_cell import StepCell

__all__ = ["Bidirectional", "LastState", "Sequential"]


class Sequential(Module):
    """Calls modules one after another, each on the output of the previous one; equivalent of torch.nn.Sequential.

    Only y of a recurrent module is passed on; its state is dropped. Parameters are named "<position>.<name>".

    Args:
        *modules: at least one Module. All with parameters have one dtype and one device.

    Raises:
        TypeError: an argument is not a Module, or is a cell of one step.
        ValueError: there is no module, one occurs twice (its parameters would have two names), dtypes or devices
            differ, or a module that returns a pair (a Bidirectional with merge=None) is not the last.

    Examples:
        >>> import numpy as np, rnnkit
        >>> model = rnnkit.Sequential(rnnkit.LSTM(4, 6, rng=0), rnnkit.Linear(6, 2, rng=0))
        >>> model(np.ones((5, 3, 4), np.float32)).shape
        (5, 3, 2)
        >>> list(model.params)[-2:]
        ['1.weight', '1.bias']
    """

    takes_dx = True

    def __init__(self, *modules: Module) -> None:
        _check_sequence(modules)
        self._modules = modules
        self._first_with_params = next((m for m in modules if m.params), modules[0])
        super().__init__(self._first_with_params._dtype, self._first_with_params.device)
        self.takes_lengths = any(module.takes_lengths for module in modules)
        self._latest_call_id: Any = None  # identifies the most recent call of all threads

    def __repr__(self) -> str:
        return f"Sequential({', '.join(map(repr, self._modules))})"

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, position: int) -> Module:
        return self._modules[position]

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules)

    def children(self) -> dict[str, Module]:
        """The modules by position.

        Returns:
            {"0": first module, "1": second module, ...}.

        Examples:
            >>> import rnnkit
            >>> list(rnnkit.Sequential(rnnkit.RNN(4, 6), rnnkit.Linear(6, 2)).children())
            ['0', '1']
        """
        return {str(position): module for position, module in enumerate(self._modules)}

    @property
    def device(self) -> str:
        """Device of the modules' parameters: 'cpu' or 'cuda:<index>'."""
        return self._first_with_params.device

    def __call__(self, x: Array, lengths: Any = None) -> Any:
        """Calls the modules in order.

        Args:
            x: the input of the first module.
            lengths: number of steps of each row, (B,) integers in [0, T]. They are passed to every module whose
                `takes_lengths` is True: recurrent layers, Bidirectional, LastState and a Sequential that contains one.

        Returns:
            The output of the last module.

        Raises:
            ValueError: lengths are given and no module takes them.
            Exception: whatever a module raises.

        Examples:
            >>> import numpy as np, rnnkit
            >>> model = rnnkit.Sequential(rnnkit.LastState(rnnkit.GRU(4, 6, rng=0)), rnnkit.Linear(6, 2, rng=0))
            >>> model(np.ones((5, 3, 4), np.float32), lengths=[5, 2, 3]).shape
            (3, 2)
        """
        if lengths is not None and not self.takes_lengths:
            raise ValueError("lengths must be None: no module of this Sequential is recurrent")
        self._saved = None
        by_modules = []
        for module in self._modules:
            x = module(x, lengths=lengths) if lengths is not None and module.takes_lengths else module(x)
            by_modules.append(module._saved)
            if isinstance(module, (Recurrent, Bidirectional)):
                x, _ = x
        if grad_enabled():
            call_id = object()
            self._latest_call_id = call_id
            self._saved = call_id, tuple(by_modules)
        return x

    def backward(self, dy: Any, *, call: Call | None = None, dx: bool = True) -> Array | None:
        """Differentiates a call; adds to the gradients of every module.

        Separate calls of the modules in between do not matter.

        Args:
            dy: gradient of the output, with its shape.
            call: the call to differentiate, from `last_call`; None for this thread's most recent call.
            dx: whether to compute the gradient of x, which is not needed where x is data. False goes to the first
                module, if it `takes_dx`. The modules above it need the gradients of their inputs either way.

        Returns:
            The gradient of x; None with dx=False, or if the first module is an Embedding.

        Raises:
            RuntimeError: this thread made no call, its most recent call failed or ran under `no_grad()`; without
                `call`, several calls are pending since the last backward or `zero_grad()`; or the call is not the most
                recent one and a module does not store in `_saved` what its backward needs.
            TypeError: a gradient or `call` has the wrong type or dtype.
            ValueError: a gradient has a bad shape or device, or `call` is of another module.

        Examples:
            >>> import numpy as np, rnnkit
            >>> model = rnnkit.Sequential(rnnkit.GRU(4, 6, rng=0), rnnkit.Linear(6, 2, rng=0))
            >>> y = model(np.ones((5, 3, 4), np.float32))
            >>> model.backward(np.ones_like(y)).shape
            (5, 3, 4)
        """
        of_first = dx_options(dx)
        call_id, by_modules = self._recalled(call)
        if call_id is not self._latest_call_id:
            for module, saved in zip(self._modules, by_modules, strict=True):
                if saved is None:
                    raise RuntimeError(
                        f"backward of a call that is not the most recent one needs every module to assign to "
                        f"self._saved what that call's backward needs (or ()), and {module!r} does not"
                    )
        first = self._modules[0]
        for module, saved in zip(reversed(self._modules), reversed(by_modules), strict=True):
            options = of_first if module is first else {}
            dy = backward_of(module, saved, dy, **options)
            if isinstance(module, (Recurrent, Bidirectional)):
                dy, _ = dy
        return None if of_first else dy


class LastState(Module):
    """Returns only the final hidden state of a recurrent layer, as Keras does for return_sequences=False.

    It is the state of the layer's last stacked layer after each row's own last step, with both directions concatenated.
    Parameters keep the layer's names.

    Args:
        layer: an RNN, GRU, LSTM, SLSTM or Bidirectional.

    Raises:
        TypeError: `layer` is another module.

    Examples:
        >>> import numpy as np, rnnkit
        >>> last = rnnkit.LastState(rnnkit.LSTM(4, 6, rng=0))
        >>> last(np.ones((5, 3, 4), np.float32)).shape
        (3, 6)
    """

    takes_lengths = True
    takes_dx = True

    def __init__(self, layer: Recurrent | Bidirectional) -> None:
        if not isinstance(layer, (Recurrent, Bidirectional)):
            raise TypeError(f"layer must be an RNN, GRU, LSTM, SLSTM or Bidirectional, got {type(layer).__name__}")
        self.layer = layer
        super().__init__(layer._dtype, layer.device)
        # The two last states of a layer with bidirectional=True are concatenated, as in its y.
        self.merge = layer.merge if isinstance(layer, Bidirectional) else "concat"
        self._directions = layer.num_directions if isinstance(layer, Recurrent) else 2

    def __repr__(self) -> str:
        return f"LastState({self.layer!r})"

    def children(self) -> dict[str, Module]:
        """The wrapped layer.

        Returns:
            {"layer": layer}. `params` and `grads` show the layer's names without this prefix.

        Examples:
            >>> import rnnkit
            >>> rnnkit.LastState(rnnkit.RNN(2, 3)).children()
            {'layer': RNN(2, 3, dtype=float32)}
        """
        return {"layer": self.layer}

    @property
    def device(self) -> str:
        """Device of the layer: 'cpu' or 'cuda:<index>'."""
        return self.layer.device

    def _gathered(self, attribute: str, own: Any) -> Any:
        return getattr(self.layer, attribute)

    @on_own_device
    def __call__(self, x: Array, h0: Any = None, lengths: Any = None) -> Any:
        """Runs the layer and returns its last hidden state.

        Args:
            x: as for the layer.
            h0: initial state, as for the layer.
            lengths: number of steps of each row, as for the layer.

        Returns:
            (B, D*R), or (D*R,) for unbatched x. Of a Bidirectional, the last states of both directions, merged: (B,
            2*R) for "concat", (B, R) for "sum", "mul" and "ave", a pair for None.

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: an argument has a bad shape, value or device.

        Examples:
            >>> import numpy as np, rnnkit
            >>> last = rnnkit.LastState(rnnkit.Bidirectional(rnnkit.GRU(4, 6, rng=0)))
            >>> last(np.ones((5, 3, 4), np.float32), lengths=[5, 2, 3]).shape
            (3, 12)
        """
        self._saved = None
        _, state_n = self.layer(x, h0, lengths)
        h_n, *others = state_n if isinstance(state_n, tuple) else (state_n,)
        last = tuple(h_n[-self._directions :])
        if grad_enabled():
            self._saved = _Saved(tuple(h_n.shape), len(others), last, self.layer._saved)
        return last[0] if len(last) == 1 else merged(self.merge, *last)

    @on_own_device
    def backward(self, dout: Any, *, call: Call | None = None, dx: bool = True) -> Array | None:
        """Differentiates a call; adds to the layer's gradients.

        Separate calls of the layer in between do not matter.

        Args:
            dout: gradient of the output, with its shape; None for zeros.
            call: the call to differentiate, from `last_call`; None for this thread's most recent call.
            dx: whether to compute the gradient of x, which is not needed where x is data.

        Returns:
            The gradient of x; None with dx=False.

        Raises:
            RuntimeError: this thread made no call, its most recent call ran under `no_grad()`, or, without `call`,
                several calls are pending since the last backward or `zero_grad()`.
            TypeError: `dout` or `call` has the wrong type or dtype.
            ValueError: `dout` has a bad shape or device, or `call` is of another module.

        Examples:
            >>> import numpy as np, rnnkit
            >>> last = rnnkit.LastState(rnnkit.GRU(4, 6, rng=0))
            >>> out = last(np.ones((5, 3, 4), np.float32))
            >>> last.backward(np.ones_like(out)).shape
            (5, 3, 4)
        """
        options = dx_options(dx)
        shape, others, last, by_layer = self._recalled(call)
        if len(last) == 1:
            dlast: tuple[Array | None, ...] = (check_gradient("dout", dout, last[0], last[0].shape[-1]),)
        else:
            dlast = merge_gradients("dout", dout, self.merge, *last)
        xp: Any = array_module(last[0])
        dh_n = xp.zeros(shape, self.dtype)
        for slot, d in zip(range(-len(last), 0), dlast, strict=True):
            if d is not None:
                dh_n[slot] = d
        dstate_n = (dh_n, *[None] * others) if others else dh_n
        found_dx, _ = backward_of(self.layer, by_layer, None, dstate_n, **options)
        return None if options else found_dx


class _Saved(NamedTuple):
    """What a call of LastState saves for backward: the shape of h_n, how many states there are beside h, the last
    layer's h_n per direction, and what the layer saved."""

    shape: tuple[int, ...]
    others: int
    last: tuple[Array, ...]
    by_layer: Any


def _returns_a_pair(module: Module) -> bool:
    """Whether the output is one array per direction: merge=None, also inside LastState or last in Sequential."""
    if isinstance(module, Sequential):
        return _returns_a_pair(module[-1])
    return isinstance(module, (Bidirectional, LastState)) and module.merge is None


def _check_sequence(modules: tuple[Any, ...]) -> None:
    if not modules:
        raise ValueError("modules must be at least one Module, got none")
    seen: dict[int, int] = {}
    for position, module in enumerate(modules):
        if not isinstance(module, Module):
            raise TypeError(f"modules must be Modules, got {type(module).__name__} at position {position}")
        if isinstance(module, StepCell):
            kind = type(module).__name__
            raise TypeError(f"modules must take sequences, got {kind} at position {position}: use {kind[:-4]}")
        for part in module._walk():
            if id(part) in seen:
                raise ValueError(f"modules must differ, got {part!r} at positions {seen[id(part)]} and {position}")
            seen[id(part)] = position
        if _returns_a_pair(module) and position < len(modules) - 1:
            raise ValueError(
                f"a Bidirectional with merge=None returns a pair and must be the last, got {module!r} "
                f"at position {position}"
            )
    for name in ("dtype", "device"):
        values = sorted({str(getattr(m, name)) for m in modules if m.params})
        if len(values) > 1:
            raise ValueError(f"modules must have one {name}, got {' and '.join(values)}")
