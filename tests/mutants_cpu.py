"""Planted bugs of the compiled CPU path: its host side, its loops and their pieces, and the team of threads."""

from __future__ import annotations

from tests.mutation import Edit, Mutant

NUMBA, PLAN, SCAN = "rnnkit/backends/numba/layer.py", "rnnkit/backends/numba/plan.py", "kernels/cpu/scan.py"
FRAME, PRODUCT, PACK, LARGE = (
    "kernels/cpu/frame.py",
    "kernels/cpu/matmul.py",
    "kernels/cpu/pack.py",
    "kernels/cpu/matmul_large.py",
)
STEP, DIGEST, ACTIVATIONS = "kernels/cpu/step.py", "kernels/cpu/digest.py", "kernels/cpu/activations.py"
TEAM = "kernels/cpu/threads.py"


def _numba(name: str, old: str, new: str, pick: str, file: str = NUMBA) -> Mutant:
    return Mutant(f"numba: {name}", (Edit(file, old, new),), "tests/test_parity.py", f"numba and float64 and {pick}")


def _piece(name: str, file: str, old: str, new: str, tests: str, pick: str) -> Mutant:
    return Mutant(f"numba: {name}", (Edit(file, old, new),), tests, pick)


HOST_MUTANTS = (
    _numba(
        "the final gradient of c forgotten",
        "ready_array(dstate_n[1]) if two",
        "ready_array(0 * dstate_n[1]) if two",
        "lstm-T5",
    ),
    _piece(
        "a part of wider rows read as if it were whole",
        "rnnkit/backends/numba/operands.py",
        "return as_writable(a[:1, :1, :1]), row",
        "return as_writable(a[:1, :1, :1]), K * item",
        "tests/test_layers.py",
        "numba and both_directions and whole",
    ),
    _numba(
        "bias_hh given the input side's gradient",
        "if dgates_h is dgates_x and weights.b_hh is not None",
        "if weights.b_hh is not None",
        "gru-T5",
    ),
    _piece(
        "weights packed for other shares are taken",
        NUMBA,
        "id(weights.w_hr), plan.members, w_ih.shape",
        "id(weights.w_hr), w_ih.shape",
        "tests/test_packed_weights.py",
        "other_shares",
    ),
    _piece(
        "packed weights are trusted under an id that came again",
        "rnnkit/backends/numba/memory.py",
        "r() is a for r, a",
        "r is not a for r, a",
        "tests/test_frozen.py",
        "ids_that_come_again",
    ),
    _piece(
        "read-only views are taken for constant",
        "rnnkit/core/read_only.py",
        'return type(getattr(a, "base", None)) is _Memory',
        "return not a.flags.writeable",
        "tests/test_frozen.py",
        "read_only_view",
    ),
    _piece(
        "unpickled arrays are taken for constant",
        "rnnkit/core/read_only.py",
        'return type(getattr(a, "base", None)) is _Memory',
        'return isinstance(getattr(a, "base", None), bytes)',
        "tests/test_frozen.py",
        "unpickled",
    ),
    _piece(
        "an optimizer's step stops half way at a frozen parameter",
        "rnnkit/optim/base.py",
        "            check_writable(name, p)\n",
        "            pass\n",
        "tests/test_frozen.py",
        "nothing_writes",
    ),
    _piece(
        "ragged rows are given the plan of the other direction",
        PLAN,
        "key = sizes, threads, backward, reverse, keep",
        "key = sizes, threads, backward, keep",
        "tests/test_parity.py",
        "whole_layers and numba and float64",
    ),
)

# Each compiles its own kernels: some ten seconds each.
LOOP_MUTANTS = (
    _numba(
        "sorted states given back in the order of storage",
        "a.h_n + home(a, r) * row_h + first_r, own)",
        "a.h_n + r * row_h + first_r, own)",
        "lstm-T5",
        SCAN,
    ),
    _numba(
        "dy taken in the order of storage",
        "a.c_prev + here * row_c + first, a.dy + place(a, s, t, r) * a.y_row",
        "a.c_prev + here * row_c + first, a.dy + (at + r) * a.y_row",
        "rnn_tanh-T5",
        SCAN,
    ),
    _numba(
        "x taken in the order of storage",
        "copy(a.x + place(a, s, t, r) * row",
        "copy(a.x + (at + r) * row",
        "rnn_tanh-T5",
        FRAME,
    ),
    Mutant(
        "numba: y past a row's end never written",
        (Edit(SCAN, "for r in range(max(p.b0, end), p.b1):", "for r in range(p.b1, p.b1):"),),
        "tests/test_parity.py",
        "read_before_it_is_written and numba and gru",
    ),
    Mutant(
        "numba: dx past a row's end never written",
        (Edit(FRAME, "for r in range(word(a.counts + 8 * t), s.B):", "for r in range(s.B, s.B):"),),
        "tests/test_parity.py",
        "read_before_it_is_written and numba and gru",
    ),
    _piece(
        "loading compiled code imports what compiles",
        "kernels/cpu/cache.py",
        "rtsys.initialize(target_context)",
        "target_context.refresh()",
        "tests/test_kernels.py",
        "imports_nothing",
    ),
    _numba(
        "W_hh not transposed on the way back",
        "pack_share(a.w_hh, GH, True, R, 1, s, p, w_h)",
        "pack_share(a.w_hh, GH, False, R, 1, s, p, w_h)",
        "lstm-T5",
        SCAN,
    ),
    _numba(
        "dc not multiplied by f on its way back",
        "return da, da, 0.0, dc * f",
        "return da, da, 0.0, dc",
        "lstm-T5",
        "kernels/cells/lstm.py",
    ),
    _numba(
        "gates f and g swapped in the kernel",
        "        i, f = sigmoid(x[0] + u[0]), sigmoid(x[1] + u[1])\n        g, o = tanh(x[2] + u[2])",
        "        i, f = sigmoid(x[0] + u[0]), sigmoid(x[2] + u[2])\n        g, o = tanh(x[1] + u[1])",
        "lstm-T5",
        "kernels/cells/lstm.py",
    ),
    _numba(
        "r left out of the hidden side's gradient",
        "(da_r, da_z, da_n * r), dh * z",
        "(da_r, da_z, da_n), dh * z",
        "gru-T5",
        "kernels/cells/gru.py",
    ),
    _numba(
        "a reversed scan runs forward within its chunk",
        "t = low + steps - 1 - k if s.reverse else low + k",
        "t = low + k",
        "rnn_tanh-T5",
        SCAN,
    ),
    _numba(
        "the last unit of a row left out",
        "        if last < share:\n            ending(last, share - last, g, u, apart",
        "        if last < share - 1:\n            ending(last, share - last, g, u, apart",
        "rnn_tanh-T3",
        SCAN,
    ),
    _numba(
        "a row's last state taken one step late",
        "lasting = 0 if over else (count if s.reverse else word(a.counts + 8 * (t + 1)))",
        "lasting = 0 if over else count",
        "lstm-T5",
        SCAN,
    ),
    _numba(
        "the last row of a product's last block left out",
        "first, end = rows * block // blocks, rows * (block + 1) // blocks",
        "first, end = rows * block // blocks, max(1, rows * (block + 1) // blocks - block // 2)",
        "rnn_tanh-T2-B25",
        PRODUCT,
    ),
    _piece(
        "members read the state that others are writing",
        SCAN,
        "rows, odd = end - p.b0, (s0 + k) & 1\n                g =",
        "rows, odd = end - p.b0, s0 & 1\n                g =",
        "tests/test_sharing.py",
        "units_is_the_oracle and lstm and float32",
    ),
    _piece(
        "a projection's operand read before all have written it",
        FRAME,
        "        wait(p.together, s.members * times)",
        "        wait(p.together, s.members * (times - 1))",
        "tests/test_sharing.py",
        "bits_do_not_depend or projection_is",
    ),
    _piece(
        "a single step forgets what K leaves past whole vectors",
        STEP,
        'builder.icmp_signed(">", left, number(0))',
        'builder.icmp_signed(">", left, number(1))',
        "tests/test_parity.py",
        "numba and T1-",
    ),
    _piece(
        "a single step gives rows of no length zeros",
        NUMBA,
        "tuple(np.array(s) for s in state0)",
        "tuple(np.zeros_like(s) for s in state0)",
        "tests/test_steps.py",
        "no_length",
    ),
    _piece(
        "a change of W_hh is not seen",
        FRAME,
        "part += digest(a.w_hh, gates * s.H * s.R * size, 2, index, p.threads)",
        "part += 0",
        "tests/test_packed_weights.py",
        "every_change and RNN",
    ),
    _piece(
        "the digest does not tell where a word stands",
        DIGEST,
        "builder.gep(keys, [_number(0), loop.index])",
        "builder.gep(keys, [_number(0), _number(0)])",
        "tests/test_packed_weights.py",
        "where_a_word_stands",
    ),
    _piece(
        "the digest does not tell where a page stands",
        DIGEST,
        "builder.mul(index, _number(_GOLDEN))",
        "builder.mul(index, _number(0))",
        "tests/test_packed_weights.py",
        "where_a_page_stands",
    ),
    _piece(
        "the digest forgets the last words",
        DIGEST,
        "for at in range(whole * BLOCK, size, 4):",
        "for at in range(whole * BLOCK, size - 4, 4):",
        "tests/test_packed_weights.py",
        "digest_depends",
    ),
)

PIECE_MUTANTS = (
    _piece(
        "an answer to an earlier roll call counts",
        TEAM,
        "if look(own + HEARD) == posted",
        "if look(own + HEARD) != 0",
        "tests/test_crowding.py",
        "only_this_roll_calls",
    ),
    _piece(
        "a core that was away for a moment counts as lost",
        TEAM,
        "if lost > ROBBED_NS and lost * members > took:",
        "if lost > ROBBED_NS:",
        "tests/test_crowding.py",
        "fewer_would_be_as_fast",
    ),
    _piece(
        "members stay on one core",
        TEAM,
        "    if shared:\n",
        "    if False:\n",
        "tests/test_crowding.py",
        "leaves_a_core",
    ),
    _piece(
        "a thread that left a core is kept from it",
        "kernels/cpu/system.py",
        "        set_usable(usable)\n",
        "        set_usable(others)\n",
        "tests/test_crowding.py",
        "leaves_a_core",
    ),
    _piece(
        "panels walked back one too far",
        PRODUCT,
        "panel = panels - 1 - k if turned else k",
        "panel = panels - k if turned else k",
        "tests/test_products.py",
        "float32",
    ),
    _piece(
        "the last vector of C written whole",
        PRODUCT,
        "last = min(left - (columns - 1) * lanes, lanes)",
        "last = lanes",
        "tests/test_products.py",
        "float32",
    ),
    _piece(
        "packing goes on in the wrong gate",
        PACK,
        "row += (stride - each) * w_row",
        "row += stride * w_row",
        "tests/test_products.py",
        "float32",
    ),
    _piece(
        "a sum over steps begun anew at each block",
        LARGE,
        "inside + (adds if k < SPAN else 0), False,",
        "(adds if k < SPAN else 0), False,",
        "tests/test_products.py",
        "float32",
    ),
    _piece(
        "what a gradient was is lost where it is added to",
        LARGE,
        "inside + (adds if k < SPAN else 0), False,",
        "inside, False,",
        "tests/test_layers.py",
        "add_up_until and numba and GRU",
    ),
    _piece(
        "a gradient is cleared where no step adds to it",
        "kernels/cpu/gradients.py",
        "if not adds:",
        "if True:",
        "tests/test_layers.py",
        "added_to_where_they_are and lstm_projected",
    ),
    _piece(
        "a digit of tanh's polynomial",
        ACTIVATIONS,
        "-0.33331276261387518",
        "-0.33332276261387518",
        "tests/test_activations.py",
        "float32",
    ),
    _piece(
        "tanh flat too early",
        ACTIVATIONS,
        '"flat": -10.0',
        '"flat": -8.0',
        "tests/test_activations.py",
        "float32",
    ),
    _piece(
        "sigmoid flushes what is subnormal",
        ACTIVATIONS,
        '"low": -105.0',
        '"low": -87.0',
        "tests/test_activations.py",
        "float32",
    ),
    _piece(
        "a limit swallows NaN",
        "kernels/cpu/elementwise.py",
        "builder.fcmp_ordered(relation,",
        "builder.fcmp_unordered(relation,",
        "tests/test_activations.py",
        "float32",
    ),
)

# Every one compiles for ten seconds and more: the tests have a few, `make mutation` all.
_TESTED = (
    "row's last state",
    "x taken",
    "members read",
    "single step forgets",
    "change of W_hh",
    "panels walked",
    "digit of tanh",
)
CPU_KERNEL_MUTANTS: tuple[Mutant, ...] = tuple(
    m for m in (*LOOP_MUTANTS, *PIECE_MUTANTS) if any(words in m.name for words in _TESTED)
)
CPU_OTHER_MUTANTS: tuple[Mutant, ...] = tuple(m for m in (*LOOP_MUTANTS, *PIECE_MUTANTS) if m not in CPU_KERNEL_MUTANTS)
