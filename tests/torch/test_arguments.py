"""Bad arguments: torch.nn's types of errors, with the argument, what it was and what it should be.

torch.nn raises AttributeError or IndexError where it meets something that is no tensor or no pair: here TypeError and
RuntimeError, which say so. What torch.nn computes on, or fails at by accident, is in `test_refused_here`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch.nn.utils.rnn import pack_padded_sequence  # noqa: E402

import rnnkit.torch  # noqa: E402
from tests.torch.pairs import CELLS, LAYERS  # noqa: E402
from tests.torch.releases import needs  # noqa: E402

pytestmark = pytest.mark.peers

CLEARER: dict[type, type] = {AttributeError: TypeError, IndexError: RuntimeError}


def error_of(call: Callable[[], Any]) -> Exception:
    """The error that a call raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception) as caught:
            call()
    return caught.value


def same_error(ours: Callable[[], Any], theirs: Callable[[], Any], *said: str) -> None:
    """Both calls raise errors of one type, and ours says what is in `said`."""
    mine, other = error_of(ours), error_of(theirs)
    expected = CLEARER.get(type(other), type(other))
    assert type(mine) is expected, f"{type(mine).__name__} ({mine}), torch.nn: {type(other).__name__} ({other})"
    missing = [word for word in said if word not in str(mine)]
    assert not missing, f"the message does not say {missing}: {mine}"


CONSTRUCTION: tuple[tuple[tuple[Any, ...], dict[str, Any], tuple[str, ...]], ...] = (
    ((), {}, ("input_size",)),
    ((4,), {}, ("hidden_size",)),
    ((0, 6), {}, ("input_size", "greater than zero", "got 0")),
    ((-1, 6), {}, ("input_size", "greater than zero", "got -1")),
    ((4, 0), {}, ("hidden_size", "greater than zero", "got 0")),
    ((4.0, 6), {}, ("input_size", "int", "float 4.0")),
    ((4, "6"), {}, ("hidden_size", "int", "str '6'")),
    ((4, np.int64(6)), {}, ("hidden_size", "int", "int64")),
    ((4, 6, 0), {}, ("num_layers", "greater than zero", "got 0")),
    ((4, 6, 1.5), {}, ("num_layers", "int", "float 1.5")),
    ((4, 6), {"num_layers": None}, ("num_layers", "int", "NoneType")),
    ((4, 6), {"num_layers": "2"}, ("num_layers", "int", "'2'")),
    ((4, 6), {"bias": 1}, ("bias", "bool", "int 1")),
    ((4, 6), {"bias": None}, ("bias", "bool", "NoneType")),
    ((4, 6), {"batch_first": "False"}, ("batch_first", "bool", "'False'")),
    ((4, 6), {"dropout": 1.5}, ("dropout", "[0, 1]", "float 1.5")),
    ((4, 6), {"dropout": -0.1}, ("dropout", "[0, 1]", "-0.1")),
    ((4, 6), {"dropout": float("nan")}, ("dropout", "[0, 1]", "nan")),
    ((4, 6), {"dropout": True}, ("dropout", "[0, 1]", "bool True")),
    ((4, 6), {"dropout": "0.5"}, ("dropout", "[0, 1]", "str '0.5'")),
    ((4, 6), {"dropout": "half"}, ("dropout", "[0, 1]", "str 'half'")),
    ((4, 6), {"dropout": None}, ("dropout", "[0, 1]", "NoneType")),
    ((4, 6), {"nope": 1}, ("nope",)),
    ((4, 6), {"input_size": 4}, ("input_size",)),
    ((4, 6), {"device": "nowhere"}, ("nowhere",)),
    ((4, 6), {"dtype": "float32"}, ("dtype",)),
)
ONLY: dict[str, tuple[tuple[tuple[Any, ...], dict[str, Any], tuple[str, ...]], ...]] = {
    "RNN": (
        ((4, 6), {"nonlinearity": "sigmoid"}, ("nonlinearity", "'tanh' or 'relu'", "sigmoid")),
        ((4, 6, 1, None), {}, ("nonlinearity", "'tanh' or 'relu'", "None")),
        ((4, 6), {"proj_size": 2}, ("proj_size", "LSTM")),
    ),
    "GRU": (((4, 6), {"proj_size": 2}, ("proj_size", "LSTM")),),
    "LSTM": (
        ((4, 6), {"proj_size": -1}, ("proj_size", "positive integer or zero", "-1")),
        ((4, 6), {"proj_size": 6}, ("proj_size", "smaller than hidden_size = 6", "got 6")),
        ((4, 6), {"proj_size": 1.5}, ("proj_size", "int", "1.5")),
    ),
}


@needs("checks of torch.nn's constructors")
@pytest.mark.parametrize("kind", LAYERS)
def test_construction_of_layers(kind: str) -> None:
    for arguments, options, said in (*CONSTRUCTION, *ONLY[kind]):
        same_error(
            lambda: getattr(rnnkit.torch, kind)(*arguments, **options),  # noqa: B023
            lambda: getattr(torch.nn, kind)(*arguments, **options),  # noqa: B023
            *said,
        )


@pytest.mark.parametrize("kind", CELLS)
def test_construction_of_cells(kind: str) -> None:
    for arguments, options in (((), {}), ((4,), {}), ((4.5, 6), {}), ((4, 6), {"nope": 1}), ((4, -6), {})):
        same_error(
            lambda: getattr(rnnkit.torch, kind)(*arguments, **options),  # noqa: B023
            lambda: getattr(torch.nn, kind)(*arguments, **options),  # noqa: B023
        )


def test_own_arguments() -> None:
    for kind in ("GRU", "GRUCell"):
        assert "reset_after must be True or False, got 1" in str(
            error_of(lambda: getattr(rnnkit.torch, kind)(4, 6, reset_after=1))  # noqa: B023
        )
    for lengths, said in (
        ([5, 2], ("lengths", "(3,)", "(2,)")),
        ([5, 2, 6], ("lengths", "between 0 and T = 5", "6 in row 2")),
        ([5, 2, -1], ("lengths", "between 0 and T = 5", "-1 in row 2")),
        (torch.tensor([5.0, 2.5, 1.0]), ("lengths", "whole numbers", "float")),
    ):
        error = error_of(lambda: rnnkit.torch.GRU(4, 6)(torch.zeros(5, 3, 4), lengths=lengths))  # noqa: B023
        assert isinstance(error, (TypeError, ValueError))
        assert all(word in str(error) for word in said), error
    packed = pack_padded_sequence(torch.zeros(5, 3, 4), [5, 2, 1])
    with pytest.raises(ValueError, match="lengths must be None for a PackedSequence"):
        rnnkit.torch.GRU(4, 6)(packed, lengths=[5, 2, 1])


def zeros(*shape: int, **options: Any) -> Any:
    return torch.zeros(*shape, **options)


def inputs_of(kind: str) -> dict[str, tuple[tuple[Any, ...], tuple[str, ...]]]:
    """Bad calls of a layer (I, H = 4, 6), and what the message must say."""

    def hx(first: Any, second: Any = None) -> Any:
        return (first, first if second is None else second) if kind == "LSTM" else first

    x = zeros(5, 3, 4)
    h = zeros(1, 3, 6)
    packed = pack_padded_sequence(x, [5, 3, 2])
    return {
        "no tensor": ((x.numpy(),), ("input", "Tensor", "ndarray")),
        "None": ((None,), ("input", "Tensor", "NoneType")),
        "1-D": ((zeros(4),), ("input", "2D or 3D", "1D")),
        "4-D": ((zeros(1, 5, 3, 4),), ("input", "2D or 3D", "4D")),
        "features": ((zeros(5, 3, 7),), ("input_size", "4", "7")),
        "features, unbatched": ((zeros(5, 7),), ("input_size", "4", "7")),
        "dtype": ((x.double(),), ("input", "float32", "float64")),
        "integers": ((x.long(),), ("input", "float32", "int64")),
        "meta": ((x.to("meta"),), ("weights", "input", "meta", "cpu")),
        "hx no tensor": ((x, 3), ("hx", "tensor", "int")) if kind == "LSTM" else ((x, 3), ("hx", "Tensor", "int")),
        "hx array": ((x, hx(h.numpy())), ("hx", "Tensor", "ndarray")),
        "hx 2-D": ((x, hx(h[0])), ("hx", "3-D", "2-D")),
        "hx 4-D": ((x, hx(h[None])), ("hx", "3-D", "4-D")),
        "hx width": ((x, hx(zeros(1, 3, 5))), ("hidden", "(1, 3, 6)", "[1, 3, 5]")),
        "hx rows": ((x, hx(zeros(1, 4, 6))), ("hidden", "(1, 3, 6)", "[1, 4, 6]")),
        "hx layers": ((x, hx(zeros(2, 3, 6))), ("hidden", "(1, 3, 6)", "[2, 3, 6]")),
        "hx dtype": ((x, hx(h.double())), ("hx", "float32", "float64")),
        "hx integers": ((x, hx(h.long())), ("hx", "float32", "int64")),
        "hx half": ((x, hx(h.half())), ("hx", "float32", "float16")),
        "hx meta": ((x, hx(h.to("meta"))), ("hx", "cpu", "meta")),
        "hx unbatched 3-D": ((zeros(5, 4), hx(zeros(1, 1, 6))), ("hx", "2-D", "3-D")),
        "hx unbatched width": ((zeros(5, 4), hx(zeros(1, 5))), ("hidden", "(1, 1, 6)", "[1, 1, 5]")),
        "packed hx rows": ((packed, hx(zeros(1, 4, 6))), ("hidden", "(1, 3, 6)", "[1, 4, 6]")),
        "packed hx 2-D": ((packed, hx(zeros(1, 6))), ("hidden", "(1, 3, 6)", "[1, 6]")),
        "packed hx dtype": ((packed, hx(h.double())), ("hx", "float32", "float64")),
        "packed features": ((pack_padded_sequence(zeros(5, 3, 7), [5, 3, 2]),), ("input_size", "4", "7")),
        "too many": ((x, None, 1, 2), ("positional",)),
    }


@pytest.mark.parametrize("kind", LAYERS)
def test_calls_of_layers(kind: str) -> None:
    for name, (arguments, said) in inputs_of(kind).items():
        ours, theirs = getattr(rnnkit.torch, kind)(4, 6), getattr(torch.nn, kind)(4, 6)
        try:
            same_error(lambda: ours(*arguments), lambda: theirs(*arguments), *said)  # noqa: B023
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def test_pairs_of_states() -> None:
    ours, theirs = rnnkit.torch.LSTM(4, 6), torch.nn.LSTM(4, 6)
    x, h = zeros(5, 3, 4), zeros(1, 3, 6)
    for hx, said in (
        (h, "pair (h_0, c_0)"),
        (torch.stack([h, h]), "pair (h_0, c_0)"),
        ((h,), "pair (h_0, c_0)"),
        ((h, h, h), "pair (h_0, c_0)"),
        ((), "pair (h_0, c_0)"),
        ((None, None), "hx[0]"),
        ((h, zeros(1, 3, 7)), "[1] size (1, 3, 6), got [1, 3, 7]"),
        ((h, h[0]), "(3-D, 2-D)"),
    ):
        same_error(lambda: ours(x, hx), lambda: theirs(x, hx), said)  # noqa: B023
    both = torch.randn(2, 1, 6)  # torch.nn takes one tensor for both unbatched states
    assert torch.allclose(ours(zeros(5, 4), both)[0], ours(zeros(5, 4), (both[0], both[1]))[0])


@pytest.mark.parametrize("kind", CELLS)
def test_calls_of_cells(kind: str) -> None:
    def hx(first: Any, second: Any = None) -> Any:
        return (first, first if second is None else second) if kind == "LSTMCell" else first

    x = zeros(3, 4)
    for arguments, said in (
        ((x.numpy(),), ("input", "Tensor", "ndarray")),
        ((zeros(1, 3, 4),), ("input", "1D or 2D", "3D")),
        ((zeros(3, 5),), ("input_size", "got 5", "4")),
        ((x.double(),), ("float64", "float32")),
        ((x.long(),), ("int64", "float32")),
        ((x, hx(zeros(1, 3, 6))), ("1D or 2D", "3D")),
        ((x, hx(zeros(3, 5))), ("hidden", "5", "6")),
        ((x, hx(zeros(2, 6))), ("hidden", "2", "3")),
        ((x, hx(zeros(6))), ("hidden0", "(3, 6)", "(6,)")),
        ((x, hx(zeros(3, 6).double())), ("hx", "float32", "float64")),
        ((x, hx(zeros(3, 6).long())), ("hx", "float32", "int64")),
        ((x, hx(zeros(3, 6, device="meta"))), ("hx", "cpu", "meta")),
        ((zeros(4), hx(zeros(5))), ("hidden", "5", "6")),
        ((x, "hidden"), ("hx", "tensor", "str") if kind == "LSTMCell" else ("hx", "Tensor", "str")),
        ((x, (zeros(3, 6),) * 3), ("hx",)),
        ((x, (zeros(3, 6),)), ("hx",)),
    ):
        ours, theirs = getattr(rnnkit.torch, kind)(4, 6), getattr(torch.nn, kind)(4, 6)
        same_error(lambda: ours(*arguments), lambda: theirs(*arguments), *said)  # noqa: B023


def test_unknown_nonlinearity_of_a_cell() -> None:
    same_error(
        lambda: rnnkit.torch.RNNCell(4, 6, nonlinearity="gelu")(zeros(3, 4)),
        lambda: torch.nn.RNNCell(4, 6, nonlinearity="gelu")(zeros(3, 4)),
        "nonlinearity",
        "gelu",
        "'tanh' or 'relu'",
    )


def test_refused_here() -> None:
    """What torch.nn computes on and rnnkit does not: a packed input, or c, in a dtype of its own."""
    packed = pack_padded_sequence(zeros(5, 3, 4).double(), [5, 3, 2])
    with pytest.raises(ValueError, match=r"input .*float") as caught:
        rnnkit.torch.LSTM(4, 6)(packed)
    assert "float64" in str(caught.value)  # the words are torch.nn's, and changed between releases
    assert "float32" in str(caught.value)
    with pytest.raises(RuntimeError, match=r"hx\[1\] must have the dtype and device of input, torch.float32 on cpu"):
        rnnkit.torch.LSTMCell(4, 6)(zeros(3, 4), (zeros(3, 6), zeros(3, 6).double()))
