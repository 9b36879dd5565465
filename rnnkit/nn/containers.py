"""Sequential and LastState: modules made of modules, which run their children forward and, in reverse, backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from rnnkit.core.devices import array_module, on_own_device
from rnnkit.nn.bidirectional import Bidirectional, check_gradient, merge_gradients, merged
from rnnkit.nn.calls import backward_of
from rnnkit.nn.module import Array, Call, Module, grad_enabled
from rnnkit.nn.rnn_base import Recurrent
from rnnkit.nn.rnn_cells import StepCell

__all__ = ["Bidirectional", "LastState", "Sequential"]


class Sequential(Module):
    """Modules one after another, each on the output of the one before.

    A recurrent module passes its y on and its state is dropped. Parameters are named "<position>.<name>", as PyTorch's.
    Raises TypeError for what is no Module or a cell of one step; ValueError where there is none, where one occurs twice
    (each of its parameters would have two names), where dtypes or devices differ, or where a module that gives a pair,
    as a Bidirectional with merge=None, is not the last.
    """

    def __init__(self, *modules: Module) -> None:
        _check_sequence(modules)
        self._modules = modules
        self._main = next((m for m in modules if m.params), modules[0])
        super().__init__(self._main._dtype, self._main.device)
        self.takes_lengths = any(module.takes_lengths for module in modules)
        self._latest: Any = None  # a mark of the latest call, of any thread

    def __repr__(self) -> str:
        return f"Sequential({', '.join(map(repr, self._modules))})"

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, position: int) -> Module:
        return self._modules[position]

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules)

    def children(self) -> dict[str, Module]:
        """The modules by position: "0", "1", ..."""
        return {str(position): module for position, module in enumerate(self._modules)}

    @property
    def device(self) -> str:
        """'cpu' or 'cuda:<index>': that of the modules' parameters."""
        return self._main.device

    def __call__(self, x: Array, lengths: Any = None) -> Any:
        """x as the first module takes it -> the last one's output.

        lengths (B,) go to every module whose `takes_lengths` is True: RNN, GRU, LSTM, Bidirectional, LastState, a
        Sequential that holds one, and any of your own that says so.

        Raises ValueError where lengths are given and no module takes them, and what the modules raise.
        """
        if lengths is not None and not self.takes_lengths:
            raise ValueError("lengths must be None: no module of this Sequential is recurrent")
        self._saved = None
        kept = []
        for module in self._modules:
            x = module(x, lengths=lengths) if lengths is not None and module.takes_lengths else module(x)
            kept.append(module._saved)
            if isinstance(module, (Recurrent, Bidirectional)):
                x, _ = x
        if grad_enabled():
            self._latest = mark = object()
            self._saved = mark, tuple(kept)
        return x

    def backward(self, dy: Any, *, call: Call | None = None) -> Array | None:
        """dy as the output -> dx; None where the first module is an Embedding. Adds into every module's grads.

        Differentiates this thread's last call, or `call` (see `last_call`); calls of a module by itself do not
        matter. Raises RuntimeError before any call, after one that failed or ran under `no_grad()`, without `call`
        after several since the last backward or `zero_grad()`, and for another call than the latest where a module of
        your own keeps nothing in `_saved`; ValueError or TypeError for a bad `call`; what the modules raise.
        """
        mark, kept = self._recalled(call)
        if mark is not self._latest:
            for module, own in zip(self._modules, kept, strict=True):
                if own is None:
                    raise RuntimeError(
                        f"backward of a call that others came after needs every module to keep what is of that call in "
                        f"self._saved (or () where it needs nothing), and {module!r} does not"
                    )
        for module, own in zip(reversed(self._modules), reversed(kept), strict=True):
            dy = backward_of(module, own, dy)
            if isinstance(module, (Recurrent, Bidirectional)):
                dy, _ = dy
        return dy


class LastState(Module):
    """The final hidden state of a recurrent layer: of its last layer, at each row's own end, directions side by side.

    What Keras gives for return_sequences=False. layer: an RNN, GRU, LSTM or Bidirectional, whose parameters keep their
    names. Raises TypeError for another module.
    """

    takes_lengths = True

    def __init__(self, layer: Recurrent | Bidirectional) -> None:
        if not isinstance(layer, (Recurrent, Bidirectional)):
            raise TypeError(f"layer must be an RNN, GRU, LSTM or Bidirectional, got {type(layer).__name__}")
        self.layer = layer
        super().__init__(layer._dtype, layer.device)
        # A bidirectional=True layer's two last states stand side by side, as in its y.
        self.merge = layer.merge if isinstance(layer, Bidirectional) else "concat"
        self._directions = layer.num_directions if isinstance(layer, Recurrent) else 2

    def __repr__(self) -> str:
        return f"LastState({self.layer!r})"

    def children(self) -> dict[str, Module]:
        """The layer, as "layer"; `params` and `grads` show its names without that prefix."""
        return {"layer": self.layer}

    @property
    def device(self) -> str:
        """'cpu' or 'cuda:<index>': the layer's."""
        return self.layer.device

    def _gathered(self, which: str, own: Any) -> Any:
        return getattr(self.layer, which)

    @on_own_device
    def __call__(self, x: Array, h0: Any = None, lengths: Any = None) -> Any:
        """x, h0 and lengths as the layer takes them -> (B, D*R), or (D*R,) for unbatched x.

        Of a Bidirectional: both directions' last states merged, (B, 2*R) for "concat", else (B, R); the pair for None.
        """
        self._saved = None
        _, state_n = self.layer(x, h0, lengths)
        h_n = state_n[0] if isinstance(state_n, tuple) else state_n
        last = tuple(h_n[-self._directions :])
        if grad_enabled():
            self._saved = _Kept(tuple(h_n.shape), isinstance(state_n, tuple), last, self.layer._saved)
        return last[0] if len(last) == 1 else merged(self.merge, *last)

    @on_own_device
    def backward(self, dout: Any, *, call: Call | None = None) -> Array:
        """dout as the output -> dx; None stands for zeros. Adds into the layer's grads.

        Differentiates this thread's last call, or `call` (see `last_call`); calls of the layer by itself do
        not matter. Raises RuntimeError before any call, after one under `no_grad()`, and without `call` after several
        since the last backward or `zero_grad()`; ValueError or TypeError for a bad dout or `call`.
        """
        shape, paired, last, kept = self._recalled(call)
        if len(last) == 1:
            dlast: tuple[Array | None, ...] = (check_gradient("dout", dout, last[0], last[0].shape[-1]),)
        else:
            dlast = merge_gradients("dout", dout, self.merge, *last)
        xp: Any = array_module(last[0])
        dh_n = xp.zeros(shape, self.dtype)
        for slot, d in zip(range(-len(last), 0), dlast, strict=True):
            if d is not None:
                dh_n[slot] = d
        dx, _ = backward_of(self.layer, kept, None, (dh_n, None) if paired else dh_n)
        return dx


class _Kept(NamedTuple):
    """What a call of LastState keeps: h_n's shape, whether the state is a pair, the last layer's h_n per direction, and
    what the layer kept."""

    shape: tuple[int, ...]
    paired: bool
    last: tuple[Array, ...]
    kept: Any


def _gives_a_pair(module: Module) -> bool:
    """Whether its output is a pair, one a direction: merge=None, also inside a LastState or last in a Sequential."""
    if isinstance(module, Sequential):
        return _gives_a_pair(module[-1])
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
        for part in module._family():
            if id(part) in seen:
                raise ValueError(f"modules must differ, got {part!r} at positions {seen[id(part)]} and {position}")
            seen[id(part)] = position
        if _gives_a_pair(module) and position < len(modules) - 1:
            raise ValueError(
                f"a Bidirectional with merge=None gives a pair and must be the last, got {module!r} "
                f"at position {position}"
            )
    for name in ("dtype", "device"):
        found = sorted({str(getattr(m, name)) for m in modules if m.params})
        if len(found) > 1:
            raise ValueError(f"modules must have one {name}, got {' and '.join(found)}")
