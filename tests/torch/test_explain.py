"""rnnkit.torch.explain tells the truth: the kernels that run, and the memory that a call takes and autograd keeps."""

from __future__ import annotations

import contextlib
import tracemalloc
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import rnnkit.torch  # noqa: E402
from rnnkit.backends.numba import layer as numba  # noqa: E402
from tests.helpers import share_everything  # noqa: E402

nn = torch.nn
pytestmark = pytest.mark.peers

T, B, I, H = 40, 16, 48, 64
LAYERS = {
    "rnn": (rnnkit.torch.RNN, {}),
    "gru": (rnnkit.torch.GRU, {"num_layers": 2, "bidirectional": True}),
    "gru, reset before": (rnnkit.torch.GRU, {"reset_after": False}),
    "lstm": (rnnkit.torch.LSTM, {"num_layers": 3, "dropout": 0.5}),
    "lstm, projected": (rnnkit.torch.LSTM, {"proj_size": 20, "batch_first": True}),
}
# Of a call: a context, options of the layer, and what x becomes.
CALLS: dict[str, Any] = {
    "float32": (contextlib.nullcontext, {}, lambda x: x),
    "float16": (contextlib.nullcontext, {"dtype": torch.float16}, lambda x: x.half()),
    "autocast": (lambda: torch.autocast("cpu", torch.bfloat16), {}, lambda x: x),
    "packed": (contextlib.nullcontext, {}, lambda x: nn.utils.rnn.pack_padded_sequence(x, list(range(T, T - B, -1)))),
}


def storages(*tensors: Any) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in tensors}


def saved_bytes(call: Any, *given: Any) -> int:
    """Bytes that autograd saves in a call, beside the storages of `given`."""
    saved = {}
    known = storages(*given)

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = call()
    assert result is not None
    return sum(saved.values())


def taken_bytes(call: Any) -> int:
    """The peak of what PyTorch and NumPy allocate in a call, beyond its results."""
    numba.workspaces.clear()  # which the compiled path keeps for later calls
    numba.packed_weights.clear()
    tracemalloc.start()
    with torch.profiler.profile(profile_memory=True) as profile:
        y, states = call()
    of_numpy = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = of_torch = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        of_torch = max(of_torch, total)
    results = [y.data if isinstance(y, nn.utils.rnn.PackedSequence) else y]
    results += states if isinstance(states, tuple) else [states]
    return of_numpy + of_torch - sum(r.nbytes for r in results)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("name", LAYERS)
def test_memory_is_what_the_allocators_and_autograd_see(
    name: str, kind: str, backend: str, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, options = LAYERS[name]
    context, more, prepare = CALLS[kind]
    if kind == "packed" and options.get("batch_first"):
        pytest.skip("a PackedSequence has no layout")
    share_everything(monkeypatch, 1)
    layer = make(I, H, **options, **more, backend=backend)
    x = prepare(torch.randn((B, T, I) if layer.batch_first else (T, B, I)))
    with context(), torch.set_grad_enabled(keep):
        said = rnnkit.torch.explain(layer, x)
        data = x.data if kind == "packed" else x
        kept = saved_bytes(lambda: layer(x), data, *layer.parameters())
        taken = taken_bytes(lambda: layer(x))
    assert said.backend == backend
    assert said.kept_bytes == kept
    # The numpy backend keeps nothing of one layer: it runs the forward again.
    assert (kept > 0) == keep or (backend == "numpy" and layer.num_layers == 1)
    # Python's own objects take some kilobytes. PyTorch's peak is in part before NumPy's, while masks are drawn.
    drawing = 2 * T * B * H * x.data.itemsize if layer.dropout else 0
    assert 0.9 * (taken - 32768 - drawing) <= said.workspace_bytes <= 1.35 * taken


@pytest.mark.parametrize("keep", [True, False])
def test_memory_with_lengths(keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    share_everything(monkeypatch, 1)
    layer = rnnkit.torch.LSTM(I, H, 2, bidirectional=True)
    x = torch.randn(T, B, I)
    lengths = [T, 0, *range(1, B - 1)]
    with torch.set_grad_enabled(keep):
        said = rnnkit.torch.explain(layer, x, lengths=lengths)
        kept = saved_bytes(lambda: layer(x, lengths=lengths), x, *layer.parameters())
        taken = taken_bytes(lambda: layer(x, lengths=lengths))
    assert said.kept_bytes == kept
    assert 0.9 * (taken - 32768) <= said.workspace_bytes <= 1.35 * taken


def test_weights_that_are_computed_count_as_kept() -> None:
    layer = rnnkit.torch.GRU(I, H)
    plain = rnnkit.torch.explain(layer, torch.ones(T, B, I)).kept_bytes
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    said = rnnkit.torch.explain(layer, torch.ones(T, B, I))
    assert said.kept_bytes == plain + 3 * H * H * 4


@pytest.mark.parametrize(
    ("make", "kernel"),
    [
        (rnnkit.torch.RNNCell, "rnn_tanh step"),
        (rnnkit.torch.GRUCell, "gru step"),
        (rnnkit.torch.LSTMCell, "lstm step"),
        (rnnkit.torch.subclasses.LSTM, "lstm scan"),
        (rnnkit.torch.GRU, "gru scan"),
    ],
)
def test_it_names_what_the_plain_layer_names(make: Any, kernel: str) -> None:
    layer = make(I, H)
    shape = (B, I) if make.__name__.endswith("Cell") else (T, B, I)
    plain = getattr(rnnkit, make.__name__)(I, H)
    with torch.no_grad(), rnnkit.no_grad():
        said = rnnkit.torch.explain(layer, torch.ones(shape))
        of_plain = rnnkit.explain(plain, torch.ones(shape).numpy())
    assert kernel in said.kernel
    names = ("backend", "kernel", "device", "dtype", "threads", "workspace_bytes", "kept_bytes", "why", "threads_why")
    assert [getattr(said, name) for name in names] == [getattr(of_plain, name) for name in names]
    assert said.rates == of_plain.rates is not None


def test_sixteen_bits_and_autocast_are_said() -> None:
    layer = rnnkit.torch.LSTM(4, 6)
    x = torch.ones(5, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        said = rnnkit.torch.explain(layer, x)
    assert said.dtype == "bfloat16"
    assert said.why.endswith("serves bfloat16 lstm; torch.autocast casts float32 to bfloat16")
    said = rnnkit.torch.explain(layer.half(), x.half())
    assert said.why.endswith("serves float16 lstm")
    assert "autocast" not in rnnkit.torch.explain(layer.double(), x.double()).why


def test_packed_weights_are_cached_only_where_they_are_the_parameters() -> None:
    layer = rnnkit.torch.GRU(64, 256, backend="numba")
    x = torch.ones(T, B, 64)
    with torch.no_grad():
        assert "each call checks whether they are stale" in rnnkit.torch.explain(layer, x).why
        assert "each call checks whether they are stale" in rnnkit.torch.explain(layer.half(), x.half()).why
        with torch.autocast("cpu", torch.bfloat16):
            assert "made anew by each call" in rnnkit.torch.explain(layer.float(), x).why


ASKED = "a derivative is asked for: backward is one call, a derivative of it is a loop over steps in Python"
NOT_ASKED = "no derivative is asked for: nothing is saved for backward"
ONE_NODE = "under torch.compile the call is one node of the graph"


def test_it_says_whether_a_derivative_is_asked_for() -> None:
    layer = rnnkit.torch.GRU(4, 6)
    x = torch.ones(5, 3, 4)
    assert rnnkit.torch.explain(layer, x).notes == (ASKED, ONE_NODE)
    with torch.no_grad():
        assert rnnkit.torch.explain(layer, x).notes == (NOT_ASKED, ONE_NODE)
    layer.requires_grad_(False)
    assert rnnkit.torch.explain(layer, x).notes == (NOT_ASKED, ONE_NODE)
    assert rnnkit.torch.explain(layer, x.requires_grad_()).notes == (ASKED, ONE_NODE)
    hx = torch.zeros(1, 3, 6, requires_grad=True)
    assert rnnkit.torch.explain(layer, torch.ones(5, 3, 4), hx).notes == (ASKED, ONE_NODE)


def test_it_says_what_transforms_make_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = rnnkit.torch.GRU(4, 6)
    said: list[Any] = []

    def call(x: Any) -> Any:
        said.append(rnnkit.torch.explain(layer, x))
        return layer(x)[0].sum()

    calls: list[Any] = []
    forward = rnnkit.torch.operators.stack.forward
    monkeypatch.setattr(rnnkit.torch.operators.stack, "forward", lambda c: calls.append(c) or forward(c))
    batch = torch.ones(7, 5, 3, 4)
    for function in (call, torch.func.grad(call)):
        calls.clear()
        torch.vmap(function)(batch)
        many = "torch.vmap makes one call" if len(calls) == 1 else f"torch.vmap makes {len(calls)} calls, of which"
        assert any(note.startswith(many) for note in said[-1].notes)
    torch.func.grad(call)(batch[0])
    assert said[-1].notes == (ASKED, ONE_NODE)


def test_it_says_that_subclasses_break_a_compiled_graph() -> None:
    said = rnnkit.torch.explain(rnnkit.torch.subclasses.RNN(4, 6), torch.ones(5, 3, 4))
    assert said.notes[-1] == "torch.compile breaks the graph at this layer, an instance of torch.nn.RNN"


def test_it_runs_no_kernel_and_draws_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = rnnkit.torch.LSTM(4, 6, 2, dropout=0.5)
    state = torch.get_rng_state()
    monkeypatch.setattr(rnnkit.torch.operators.stack, "forward", None)
    rnnkit.torch.explain(layer, torch.ones(5, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)


def test_layers_on_the_meta_device() -> None:
    layer = rnnkit.torch.LSTM(4, 6, 2, device="meta")
    said = rnnkit.torch.explain(layer, torch.ones(5, 3, 4, device="meta"))
    here = rnnkit.torch.explain(rnnkit.torch.LSTM(4, 6, 2), torch.ones(5, 3, 4))
    assert said.device == "meta"
    assert said.kernel == here.kernel


def test_it_reads_well() -> None:
    text = str(rnnkit.torch.explain(rnnkit.torch.GRU(3, 4), torch.ones(2, 5, 3)))
    for line in ("layer     GRU(3, 4)", "backend   numba", "note      " + ASKED, "note      " + ONE_NODE):
        assert line in text.splitlines()


def test_bad_arguments() -> None:
    x = torch.ones(5, 3, 4)
    wanted = "module must be an RNN, GRU, LSTM, SLSTM or Cell of rnnkit.torch"
    for module, got in (
        (nn.LSTM(4, 6), "got one of torch.nn: rnnkit.torch.replace(module) first"),
        (nn.Sequential(rnnkit.torch.GRU(4, 6)), "got Sequential: name one of the layers in it"),
        (rnnkit.GRU(4, 6), "got GRU"),
    ):
        with pytest.raises(TypeError) as error:
            rnnkit.torch.explain(module, x)
        assert str(error.value) == f"{wanted}, {got}"
    with pytest.raises(TypeError, match=r"lengths must be None for a Cell, which takes one step"):
        rnnkit.torch.explain(rnnkit.torch.GRUCell(4, 6), x[0], lengths=[1, 1, 1])
    with pytest.raises(RuntimeError, match=r"Expected 5, got 4|must be equal to input_size"):
        rnnkit.torch.explain(rnnkit.torch.GRU(5, 6), x)
    with pytest.raises(TypeError, match=r"for a layer of PyTorch there is rnnkit.torch.explain"):
        rnnkit.explain(rnnkit.torch.GRU(4, 6), x)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("kind", ["resets", "mask"])
def test_memory_with_resets_and_a_mask(
    kind: str, options: dict[str, Any], keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    share_everything(monkeypatch, 1)
    layer = rnnkit.torch.LSTM(I, H, **options)
    torch.manual_seed(1)
    x = torch.randn(T, B, I)
    flags = {"resets": torch.rand(T, B) < 0.05} if kind == "resets" else {"mask": torch.rand(T, B) < 0.7}
    with torch.set_grad_enabled(keep):
        said = rnnkit.torch.explain(layer, x, **flags)
        kept = saved_bytes(lambda: layer(x, **flags), x, *layer.parameters())
        taken = taken_bytes(lambda: layer(x, **flags))
    assert said.kept_bytes == kept
    assert 0.8 * (taken - 65536) <= said.workspace_bytes <= 1.35 * taken
    assert "segments run as rows" in said.notes[0]
    room = ", and keeps room for twice the steps" if keep else ""
    assert said.notes[-1] == f"under torch.compile the call is one node of the graph{room}"


def test_flags_that_flag_nothing() -> None:
    layer = rnnkit.torch.GRU(I, H, batch_first=True)
    said = rnnkit.torch.explain(layer, torch.zeros(B, T, I), mask=torch.ones(B, T, dtype=torch.bool), lengths=[T] * B)
    assert said.notes[0] == "nothing is reset or masked: the call is the one without resets and mask"
    with pytest.raises(TypeError, match="mask must be None for a Cell"):
        rnnkit.torch.explain(rnnkit.torch.GRUCell(I, H), torch.zeros(B, I), mask=[True] * B)


def test_16_bits_with_resets_are_computed_in_float32() -> None:
    layer = rnnkit.torch.GRU(I, H, dtype=torch.bfloat16)
    resets = torch.rand(T, B) < 0.1
    said = rnnkit.torch.explain(layer, torch.zeros(T, B, I, dtype=torch.bfloat16), resets=resets)
    assert said.dtype == "float32"
    assert "bfloat16 with resets or a mask on a CPU is computed in float32" in said.why
