"""rnnkit.torch.trajectory: the bits of rnnkit.trajectory, torch.nn.LSTMCell in a loop, and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch.nn.utils.rnn import pack_padded_sequence  # noqa: E402

import rnnkit  # noqa: E402
import rnnkit.torch as rt  # noqa: E402
from rnnkit.functional.step_flags import StepFlags  # noqa: E402
from rnnkit.functional.trajectory import Flagged  # noqa: E402
from rnnkit.testing import assert_close  # noqa: E402
from rnnkit.torch.trajectory import _trajectory  # noqa: E402
from tests.api.resets import inputs  # noqa: E402
from tests.helpers import slow_except  # noqa: E402
from tests.torch.test_cuda_path import OnCard, card  # noqa: E402, F401

pytestmark = pytest.mark.peers
I, H, T, B = 3, 5, 7, 4
LENGTHS = [4, 0, 7, 1]
F64 = torch.float64
DEEP = {"num_layers": 2, "bidirectional": True}
KEYS = {"RNN": "h", "GRU": "hrzn", "LSTM": "hcifgo", "SLSTM": "hcnmifzo"}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm projected": ("LSTM", DEEP | {"proj_size": 3, "batch_first": True, "dropout": 0.5}),
    "gru": ("GRU", DEEP),
    "reset before": ("GRU", {"reset_after": False, "bias": False}),
    "rnn": ("RNN", DEEP | {"nonlinearity": "relu"}),
    "slstm": ("SLSTM", DEEP),
    "clip": ("LSTM", {"clip": 0.1, "peephole": True, "batch_first": True}),
    "layer_norm": ("LSTM", {"layer_norm": "torch"}),
    "gru haste": ("GRU", {"layer_norm": "haste"}),
    "zoneout": ("LSTM", {"zoneout": (0.3, 0.2), "recurrent_dropout": 0.4, "input_dropout": 0.3}),
}


def both(name: str, dtype: str = "float32", backend: str | None = "numpy") -> tuple[Any, Any]:
    """A layer of rnnkit.torch in training mode and one of rnnkit, with equal weights that differ from unit to unit."""
    kind, options = CASES[name]
    torch.manual_seed(0)
    ours = getattr(rt, kind)(I, H, dtype=getattr(torch, dtype), backend=backend, **options)
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(0.3 * torch.randn_like(p))
    plain = getattr(rnnkit, kind)(I, H, dtype=dtype, backend=backend, **options)
    plain.load_state_dict({n: p.detach() for n, p in ours.named_parameters()}, cells=plain.cell.name)
    return ours, plain


def as_tensors(value: Any) -> Any:
    """Arrays as tensors, in a tuple if they are."""
    if isinstance(value, tuple):
        return tuple(map(torch.from_numpy, value))
    return None if value is None else torch.from_numpy(np.ascontiguousarray(value))


def same(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert list(got) == list(want)
    for name, value in got.items():
        assert not value.requires_grad
        np.testing.assert_array_equal(value.numpy(), want[name], err_msg=name)


@pytest.mark.parametrize("kinds", ["lengths", "resets given mask lengths", "resets", "mask"])
@pytest.mark.parametrize("name", CASES)
def test_bits_are_those_of_rnnkit(name: str, kinds: str, rng: np.random.Generator) -> None:
    """Every case with the states that hx gives, for both of the stacked layers; "h" is the layer's own y."""
    ours, plain = both(name)
    given = inputs(plain, rng, T, B, kinds)
    turn = (
        (lambda a: None if a is None else np.ascontiguousarray(a.swapaxes(0, 1))) if plain.batch_first else lambda a: a
    )
    x, flags = turn(given.x), {"resets": turn(given.resets), "mask": turn(given.mask)}
    tensors = {"hx": as_tensors(given.h0), "lengths": given.lengths, "reset_state": as_tensors(given.reset_state)}
    tensors |= {key: as_tensors(value) for key, value in flags.items()}
    for k in {0, plain.num_layers - 1}:
        want = rnnkit.trajectory(plain, x, given.h0, given.lengths, of_layer=k, reset_state=given.reset_state, **flags)
        got = rt.trajectory(ours, as_tensors(x).requires_grad_(), of_layer=k, **tensors)
        same(got, want)
        assert "".join(got) == KEYS[CASES[name][0]]
        assert all(value.shape[:2] == x.shape[:2] for value in got.values())
    assert ours.training
    y, _ = ours.eval()(as_tensors(x), **tensors, zero_output_for_mask=given.mask is not None)
    live = np.ones(x.shape[:2], bool) if flags["mask"] is None else flags["mask"]
    np.testing.assert_array_equal(np.where(live[:, :, None], got["h"], 0), y.detach())
    same(rt.trajectory(ours, as_tensors(x)), rnnkit.trajectory(plain, x))  # without hx


def test_unbatched() -> None:
    ours, plain = both("clip")
    x, resets = torch.randn(T, I), torch.arange(T) == 3
    hx = torch.randn(1, H), torch.randn(1, H)
    arrays = tuple(s.numpy() for s in hx)
    got = rt.trajectory(ours, x, hx, lengths=[6], resets=resets, reset_state=hx)
    same(got, rnnkit.trajectory(plain, x.numpy(), arrays, [6], resets=resets.numpy(), reset_state=arrays))
    assert {value.shape for value in got.values()} == {(T, H)}
    same(rt.trajectory(ours, x[:0]), rnnkit.trajectory(plain, x[:0].numpy()))


def test_steps_are_those_of_torchs_cell() -> None:
    """Both layers and directions of an LSTM in float64, beside torch.nn.LSTMCell and its gates."""
    torch.manual_seed(0)
    ours = rt.LSTM(I, H, 2, bidirectional=True, dtype=F64, backend="numpy")
    x = of_below = torch.randn(T, B, I, dtype=F64)
    h0, c0 = torch.randn(2, 4, B, H, dtype=F64)
    for k in range(2):
        got = rt.trajectory(ours, x, (h0, c0), lengths=torch.tensor(LENGTHS), of_layer=k)
        for d in range(2):
            suffix = f"_l{k}" + "_reverse" * d
            cell = torch.nn.LSTMCell(of_below.shape[2], H, dtype=F64).requires_grad_(False)
            for name, p in cell.named_parameters():
                p.copy_(getattr(ours, name + suffix).detach())
            found = {name: value[:, :, d * H : (d + 1) * H] for name, value in got.items()}
            for b, length in enumerate(LENGTHS):
                h, c = h0[2 * k + d, b], c0[2 * k + d, b]
                for t in reversed(range(length)) if d else range(length):
                    a = cell.weight_ih @ of_below[t, b] + cell.bias_ih + cell.weight_hh @ h + cell.bias_hh
                    i, f, g, o = a.chunk(4)
                    want = {"i": i.sigmoid(), "f": f.sigmoid(), "g": g.tanh(), "o": o.sigmoid()}
                    h, c = cell(of_below[t, b], (h, c))
                    for name, value in (want | {"h": h, "c": c}).items():
                        assert_close(name, found[name][t, b].numpy(), value.numpy(), "float64")
                assert not any(value[length:, b].any() for value in found.values())
        of_below = got["h"]


@pytest.mark.parametrize(
    ("dtype", "flags"),
    slow_except([(d, f) for d in ("float16", "bfloat16") for f in (False, True)], ("bfloat16", True), unpack=True),
)
@pytest.mark.parametrize("ml_dtypes", [True, False])
def test_16_bits(dtype: str, flags: bool, ml_dtypes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """h has the bits of the layer's y; the other values are those of float64 within the dtype's tolerance."""
    if ml_dtypes:
        pytest.importorskip("ml_dtypes")
    else:
        monkeypatch.setattr(rt.operators, "_WIDENED", (torch.bfloat16,))
        rt.operators.choice_of.cache_clear()
    kind = getattr(torch, dtype)
    ours = rt.GRU(I, H, 2, dtype=kind, backend="numpy")
    wide = rt.GRU(I, H, 2, dtype=F64, backend="numpy")
    wide.load_state_dict(ours.state_dict())
    x = torch.randn(T, B, I).to(kind)
    resets = torch.rand(T, B) < 0.3 if flags else None
    got = rt.trajectory(ours, x, lengths=LENGTHS, resets=resets)
    torch.testing.assert_close(got["h"], ours(x, lengths=LENGTHS, resets=resets)[0].detach(), rtol=0, atol=0)
    for name, value in rt.trajectory(wide, x.double(), lengths=LENGTHS, resets=resets).items():
        assert got[name].dtype is kind
        assert_close(name, got[name].double().numpy(), value.numpy(), dtype)
    rt.operators.choice_of.cache_clear()


def test_autocast() -> None:
    ours, _ = both("gru")
    x = torch.randn(T, B, I)
    with torch.autocast("cpu", torch.float16):
        got = rt.trajectory(ours, x)
        assert torch.equal(got["h"], ours(x)[0])
    assert {value.dtype for value in got.values()} == {torch.float16}


def test_other_classes() -> None:
    """Layers of `replace`, subclasses of torch.nn's, parametrized weights, and frozen ones."""
    x = torch.randn(T, B, I)
    for subclasses in (False, True):
        layer = torch.nn.LSTM(I, H, 2, bidirectional=True)
        rt.replace(layer, backend="numpy", subclasses=subclasses)
        y, (_, c_n) = layer(x)
        got = rt.trajectory(layer, x)
        assert torch.equal(got["h"], y)
        assert torch.equal(got["c"][-1, :, :H], c_n[2])
        assert torch.equal(got["c"][0, :, H:], c_n[3])
    torch.nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    layer.parametrizations.weight_hh_l0.original0.data *= 2
    assert torch.equal(rt.trajectory(layer, x)["h"], layer(x)[0])
    assert not torch.equal(layer(x)[0], y)


def test_weights_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    from rnnkit.functional import stack

    ours, _ = both("gru")
    seen = []
    forward = stack.forward
    monkeypatch.setattr(stack, "forward", lambda call: (seen.append(call), forward(call))[1])
    rt.trajectory(ours, torch.randn(T, B, I))
    assert seen[0].layers[1][0].weights.w_hh.__array_interface__["data"][0] == ours.weight_hh_l1.data_ptr()


def test_the_default_backend() -> None:
    ours, plain = both("lstm projected", backend=None)
    x = torch.randn(B, T, I)
    same(rt.trajectory(ours, x, lengths=LENGTHS), rnnkit.trajectory(plain, x.numpy(), lengths=LENGTHS))


def test_bad_arguments() -> None:
    layer = rt.LSTM(I, H, backend="numpy")
    x, h = torch.randn(T, B, I), torch.zeros(1, B, H)
    bad: list[tuple[Any, str, tuple[Any, ...], dict[str, Any]]] = [
        (TypeError, "LSTM or SLSTM of rnnkit.torch, got GRU of rnnkit: rnnkit.traj", (rnnkit.GRU(I, H), x), {}),
        (TypeError, "got one of torch.nn: rnnkit.torch.replace", (torch.nn.LSTM(I, H), x), {}),
        (TypeError, "rnnkit.torch, got LSTMCell", (rt.LSTMCell(I, H), x), {}),
        (TypeError, "got a PackedSequence: torch.nn.utils", (layer, pack_padded_sequence(x, [T] * B)), {}),
        (TypeError, "input must be a torch.Tensor", (layer, x.numpy()), {}),
        (ValueError, "Expected input to be 2D or 3D", (layer, x[0, 0]), {}),
        (RuntimeError, "input.size", (layer, x[:, :, :2]), {}),
        (RuntimeError, "hx must be a pair", (layer, x, h), {}),
        (RuntimeError, r"Expected hidden\[0\] size", (layer, x, (h[:, :2], h[:, :2])), {}),
        (RuntimeError, r"hx\[1\] must have the dtype", (layer, x, (h, h.double())), {}),
        (
            RuntimeError,
            r"reset_state: hx\[0\] must have",
            (layer, x),
            {"resets": [[True] * B] * T, "reset_state": (h.double(), h)},
        ),
        (
            RuntimeError,
            "reset_state must have the shape",
            (layer, x),
            {"resets": [[True] * B] * T, "reset_state": (h[:, :1], h)},
        ),
        (ValueError, "reset_state must be None without resets", (layer, x), {"reset_state": (h, h)}),
        (ValueError, "mask must have shape", (layer, x), {"mask": torch.ones(B, T, dtype=torch.bool)}),
        (TypeError, "resets must be booleans", (layer, x), {"resets": torch.ones(T, B)}),
        (ValueError, "lengths must be between 0 and T = 7", (layer, x), {"lengths": [T + 1] * B}),
        (ValueError, r"of_layer must be in \[-1, 1\), got 1", (layer, x), {"of_layer": 1}),
        (TypeError, "of_layer must be a whole number, got True", (layer, x), {"of_layer": True}),
        (NotImplementedError, "on cpu or cuda, got one on meta", (rt.GRU(I, H, device="meta"), x.to("meta")), {}),
    ]
    for error, said, arguments, options in bad:
        with pytest.raises(error, match=said):
            rt.trajectory(*arguments, **options)
    with pytest.raises(NotImplementedError, match=r"call it outside of torch\.export"):
        torch.vmap(lambda part: rt.trajectory(layer, part)["h"])(torch.randn(2, T, B, I))
    with pytest.raises(TypeError, match=r"a module of PyTorch: rnnkit\.torch\.trajectory takes those of rnnkit"):
        rnnkit.trajectory(layer, x)  # type: ignore[arg-type]


@pytest.mark.slow
def test_compiled_code_calls_it_outside_of_the_graph() -> None:
    ours, _ = both("gru")
    x = torch.randn(T, B, I)

    def program(x: Any) -> Any:
        return rt.trajectory(ours, 2 * x)["z"] + 1

    assert torch.equal(torch.compile(program, backend="eager")(x), program(x))
    torch._dynamo.reset()  # else the frame that broke is not compiled again
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(program, backend="eager", fullgraph=True)(x)


@pytest.mark.slow
def test_on_a_cuda_device_the_kernels_of_cupy_run(card: Any) -> None:  # noqa: F811
    """The part below the checks, over a simulated card, with resets and a mask."""
    ours, plain = both("lstm projected")
    given = inputs(plain, np.random.default_rng(0), T, B, "resets given mask lengths")
    x, flags = given.x, StepFlags(given.resets, True, given.mask, False)
    flagged = Flagged(flags.segments(T, B, False, False, 2, given.lengths), None, given.resets, given.mask)
    lengths = torch.from_numpy(given.lengths)

    def steps(put: Any) -> dict[str, Any]:
        states, again = ([put(s) for s in state] for state in (given.h0, given.reset_state))
        weights = [put(w.detach().numpy()) for w in ours._flat_weights]
        return _trajectory(ours, 1, put(x), states, again, weights, lengths, flagged)

    want = steps(torch.from_numpy)
    ours.backend = None
    for name, value in steps(lambda a: OnCard(card.cp.asarray(a))).items():
        assert_close(name, card.cp.asnumpy(value.array), want[name].numpy(), "float32")
