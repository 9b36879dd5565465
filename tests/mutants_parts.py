"""PART_MUTANTS: a bug or two in everything around the layers. See `tests.mutants`, which joins them to its own."""

from __future__ import annotations

from tests.mutation import Edit, Mutant

STACK, STEPS, THREADS = "rnnkit/stack.py", "rnnkit/steps.py", "rnnkit/_threads.py"
BIDIRECTIONAL, CONTAINERS = "rnnkit/bidirectional.py", "rnnkit/containers.py"
EMBEDDING, LINEAR, LOSSES = "rnnkit/embedding.py", "rnnkit/linear.py", "rnnkit/losses.py"
OPTIMIZERS, KERAS, IO, SUMMARY = "rnnkit/optimizers.py", "rnnkit/_keras.py", "rnnkit/io.py", "rnnkit/summary.py"


def _row(name: str, file: str, old: str, new: str, tests: str, pick: str) -> Mutant:
    return Mutant(name, (Edit(file, old, new),), f"tests/test_{tests}.py", pick)


PART_MUTANTS = (
    _row(
        "stack: initial states' gradients in the order of backward",
        STACK,
        "stacked[:0] = [",
        "stacked += [",
        "oracle",
        "every_gradient_of_two_layers and rnn_tanh-0",
    ),
    _row(
        "steps: the gradients of h and c exchanged",
        STEPS,
        "run_backward(saved, None, dstate,",
        "run_backward(saved, None, dstate[::-1],",
        "steps",
        "values_and_gradients and numpy and LSTM",
    ),
    _row(
        "threads: who fails leaves the team taken",
        THREADS,
        "            del claims[OWNER]\n",
        "",
        "sharing",
        "leaves_the_team_free",
    ),
    _row(
        "threads: who is interrupted right after taking the team leaves it taken",
        THREADS,
        "if OWNER in claims and claims[OWNER] is launch:",
        "if members > 1:",
        "interrupts",
        "no_point_of_a_call and training",
    ),
    _row(
        "threads: a semaphore that an interrupt may lock for ever",
        THREADS,
        "self._beds.append(threading.Lock())",
        "self._beds.append(threading.Semaphore(1))",
        "interrupts",
        "by_the_clock",
    ),
    _row(
        "packed weights: who is interrupted right after taking them leaves them taken",
        "rnnkit/backends/numba.py",
        "if held is not None and OWNER in held.claims and held.claims[OWNER] is call:",
        "if held is not None and digest:",
        "interrupts",
        "no_point_of_a_call and inference",
    ),
    _row(
        "threads: who lost its core is given a share again",
        THREADS,
        "return self._fewer if now < self._spell_ends else present",
        "return present",
        "crowding",
        "left_out_for_a_spell",
    ),
    _row(
        "Bidirectional: a row's last step not turned round",
        BIDIRECTIONAL,
        "np.where(steps < self.lengths,",
        "np.where(steps < self.lengths - 1,",
        "bidirectional",
        "concat_is_the_bidirectional_layer and ragged and numpy and gru",
    ),
    _row(
        "Bidirectional: dx of the mirror not turned back",
        BIDIRECTIONAL,
        "dx_forward + turn(dx_reverse)",
        "dx_forward + dx_reverse",
        "bidirectional",
        "concat_is_the_bidirectional_layer and whole and numpy and gru",
    ),
    _row(
        "Bidirectional: mul's gradients exchanged",
        BIDIRECTIONAL,
        "return d * reverse, d * forward",
        "return d * forward, d * reverse",
        "bidirectional",
        "bidirectional_gradients_by_differences and mul and numpy and gru",
    ),
    _row(
        "LastState: the gradient goes to the first layer's slot",
        CONTAINERS,
        "zip(range(-len(last), 0), dlast",
        "zip(range(len(last)), dlast",
        "containers",
        "last_state_gradients_by_differences and numpy",
    ),
    _row(
        "Sequential: lengths handed to no module",
        CONTAINERS,
        "if lengths is not None and module.takes_lengths else",
        "if lengths is not None and not module else",
        "containers",
        "sequential_is_its_modules_in_turn and numpy",
    ),
    _row(
        "Embedding: the last of an odd run of equal indices left out",
        EMBEDDING,
        "(left[heads] > step)",
        "(left[heads] > step + 1)",
        "modules",
        "embedding_sums_the_gradients",
    ),
    _row(
        "Linear: the bias's gradient is a mean",
        LINEAR,
        "wide(rows).sum(axis=0)",
        "wide(rows).mean(axis=0)",
        "modules",
        "linear_gradients_by_differences",
    ),
    _row(
        "Activation: wrong slope of tanh",
        LINEAR,
        "dy * (1 - y * y)",
        "dy * (1 - y)",
        "modules",
        "activation_gradients_by_differences and tanh",
    ),
    _row(
        "losses: the gradient of a mean is that of the sum",
        LOSSES,
        "return total / count, narrow(d / count, pred.dtype)",
        "return total / count, narrow(d, pred.dtype)",
        "losses",
        "gradients_by_differences and mean and mse",
    ),
    _row(
        "cross-entropy: the largest logit not subtracted",
        LOSSES,
        "flat = flat - flat.max(axis=1, keepdims=True)",
        "flat = flat.copy()",
        "losses",
        "extreme_logits",
    ),
    _row(
        "SGD: momentum damps the gradient",
        OPTIMIZERS,
        'state["velocity"] += grad',
        'state["velocity"] += (1 - self.momentum) * grad',
        "optimizers",
        "sgd_with_momentum_by_hand",
    ),
    _row(
        "Adam: the mean of gradients not corrected for its start",
        OPTIMIZERS,
        "scratch *= self.lr / (1 - b1**self.t)",
        "scratch *= self.lr",
        "optimizers",
        "adam_by_hand",
    ),
    _row(
        "clip_grad_norm: gradients below the limit scaled up",
        OPTIMIZERS,
        "    if not factor >= 1:",
        "    if factor:",
        "optimizers",
        "clip_grad_norm_scales",
    ),
    _row(
        "from_keras: GRU's gates left in Keras' order",
        KERAS,
        "_Kind(3, (1, 0, 2)",
        "_Kind(3, (0, 1, 2)",
        "from_keras",
        "computes_what_the_keras_layer_does and GRU",
    ),
    _row(
        "io: values left out of the checksum",
        IO,
        "        total.update(_safetensors.as_bytes(value).data)\n",
        "",
        "safetensors",
        "every_flipped_byte",
    ),
    _row(
        "summary: LastState drops the batch, not the time",
        SUMMARY,
        "time = 1 if module.layer.batch_first",
        "time = 0 if module.layer.batch_first",
        "summary",
        "shapes_are_those_of_a_call",
    ),
    _row(
        "summary: Keras given two biases",
        SUMMARY,
        'one_bias and name.startswith("bias_hh")',
        'False and name.startswith("bias_hh")',
        "summary",
        "one_simple_rnn",
    ),
)
