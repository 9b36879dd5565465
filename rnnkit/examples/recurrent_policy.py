"""A policy with a memory: it sees a cue at one end of a corridor, and must turn to the cue's side at the other end.

The program acts one step at a time, in many corridors at once, and learns from whole sequences of steps. New episodes
begin in the middle of those: `resets` says where, and the layer starts them from an empty memory. So both ways of
calling the layer give the same hidden states, which the program checks at each update.

    y, h = gru(x[None], h, resets=begins[None])   # acting: one step of every corridor
    y, _ = gru(x, h0, resets=begins)              # learning: all steps at once

Without its memory, the policy can only guess at the end of the corridor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import rnnkit
from rnnkit.examples import _common as common

SHORTEST = 5  # steps of a corridor
INPUTS = 4  # cue left, cue right, on the way, at the junction
ACTIONS = 2  # left, right


@dataclass
class Result:
    """Per update the loss and the share of right turns, the largest difference of hidden states, and speeds."""

    losses: list[float] = field(default_factory=list)
    right: list[float] = field(default_factory=list)
    difference: float = 0.0
    frames_per_second: dict[str, float] = field(default_factory=dict)
    figures: list[Path] = field(default_factory=list)


class Corridors:
    """`count` corridors of random lengths. An episode ends at the junction; the next one begins at once."""

    def __init__(self, count: int, longest: int, rng: np.random.Generator) -> None:
        self.longest = longest
        self.rng = rng
        self.cue = np.zeros(count, int)
        self.left = np.zeros(count, int)  # steps to the junction
        self.begins = np.ones(count, bool)  # whether the next step is the first one of an episode
        self._begin(self.begins)

    def _begin(self, which: np.ndarray) -> None:
        self.cue[which] = self.rng.integers(ACTIONS, size=which.sum())
        self.left[which] = self.rng.integers(SHORTEST, self.longest + 1, size=which.sum()) - 1

    def observe(self) -> np.ndarray:
        """What is seen in each corridor, (count, INPUTS)."""
        seen = np.zeros((len(self.cue), INPUTS), np.float32)
        seen[self.begins, self.cue[self.begins]] = 1
        seen[:, 2] = self.left > 0
        seen[:, 3] = self.left == 0
        return seen

    def step(self, actions: np.ndarray) -> np.ndarray:
        """Takes the actions, (count,). Returns the rewards: 1 for a right turn, 0 for all else."""
        at_end = self.left == 0
        rewards = (at_end & (actions == self.cue)).astype(np.float32)
        self.left -= 1
        self.begins = at_end
        self._begin(at_end)
        return rewards


class Policy:
    """A GRU, and on it a linear layer with a score for each action and the expected reward."""

    def __init__(self, run: common.Run) -> None:
        self.run = run
        self.gru = rnnkit.GRU(INPUTS, run.args.hidden, backend=run.backend, **run.layer)
        self.head = rnnkit.Linear(run.args.hidden, ACTIONS + 1, **run.layer)
        self.parts: tuple[rnnkit.Module, ...] = (self.gru, self.head)
        self.optimizers = [rnnkit.Adam(part, lr=run.args.learning_rate) for part in self.parts]

    def act(self, seen: np.ndarray, h: Any, begins: np.ndarray) -> tuple[np.ndarray, Any]:
        """Random actions (count,) by the policy's probabilities, and the state after this step."""
        with rnnkit.no_grad():
            y, h = self.gru(self.run.array(seen[None]), h, resets=begins[None])
            p = _softmax(common.host(self.head(y[0]))[:, :ACTIONS])
        return (self.run.rng.random((len(p), 1)) > p.cumsum(1)[:, :-1]).sum(1), h

    def learn(self, steps: Steps) -> tuple[float, np.ndarray]:
        """One step of policy gradient over all steps. Returns the loss, and the hidden states (T, count, H)."""
        x = self.run.array(steps.seen)
        y, _ = self.gru(x, steps.h0, resets=steps.begins)
        out = common.host(self.head(y))
        N = steps.rewards.size
        p = _softmax(out[..., :ACTIONS])
        taken = np.eye(ACTIONS, dtype=np.float32)[steps.actions]
        # No action but the last matters, and that is rewarded at once: the return of a step is its reward.
        ahead = steps.rewards - out[..., ACTIONS]
        loss = float((-ahead * np.log((p * taken).sum(-1)) + 0.5 * ahead**2).mean())
        dout = np.concatenate([(p - taken) * ahead[..., None], -ahead[..., None]], -1) / N
        for part in self.parts:
            part.zero_grad()
        self.gru.backward(self.head.backward(self.run.array(dout, np.float32)), dx=False)
        for part, optimizer in zip(self.parts, self.optimizers, strict=True):
            rnnkit.clip_grad_norm(part, 0.5)
            optimizer.step()
        return loss, common.host(y)


class Steps(NamedTuple):
    """What happened in T steps of all corridors: (T, count) or (T, count, ·) each, and the state before them."""

    seen: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    begins: np.ndarray
    hidden: np.ndarray
    h0: Any


def _softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def acted(policy: Policy, corridors: Corridors, h: Any, T: int) -> tuple[Steps, Any]:
    """T steps of every corridor, and the state after them."""
    h0 = h
    rows = []
    for _ in range(T):
        seen = corridors.observe()
        begins = corridors.begins
        actions, h = policy.act(seen, h, begins)
        rows.append((seen, actions, corridors.step(actions), begins, common.host(h)[0]))
    seen, actions, rewards, begins, hidden = map(np.stack, zip(*rows, strict=True))
    return Steps(seen, actions, rewards, begins, hidden, h0), h


def train(run: common.Run, result: Result) -> Steps:
    """Acts and learns in turn. Returns the last steps."""
    args = run.args
    common.heading(f"{args.corridors} corridors of {SHORTEST} to {args.longest} steps, {args.rollout} steps an update")
    policy = Policy(run)
    corridors = Corridors(args.corridors, args.longest, run.rng)
    h = None
    bar = common.progress(range(args.updates), "corridors")
    for update in bar:
        steps, h = acted(policy, corridors, h, args.rollout)
        loss, hidden = policy.learn(steps)
        difference = float(np.abs(hidden - steps.hidden).max())
        assert difference < 1e-5, f"hidden states of single steps and of whole sequences differ by {difference:.1e}"
        ends = steps.seen[..., 3] == 1
        result.losses.append(loss)
        result.right.append(float(steps.rewards[ends].mean()))
        result.difference = max(result.difference, difference)
        if (update + 1) % max(1, args.updates // 5) == 0:
            recent = np.mean(result.right[-10:])
            bar.write(f"  update {update + 1:4d}: {recent:.1%} of the last turns right (guessing: 50%)")
    resets = int(steps.begins[1:].sum())
    print(f"  single steps and whole sequences: hidden states differ by at most {result.difference:.1e}")
    print(f"  in the last update {resets} episodes began in the middle of a sequence")
    return steps


def speeds(run: common.Run, steps: Steps, result: Result) -> None:
    """Frames per second of forward and backward over the last steps, in one call and in a loop over steps."""
    common.heading("Forward and backward over whole sequences: frames per second")
    layer = rnnkit.GRU(INPUTS, run.args.hidden, backend=run.backend, **run.layer)
    x = run.array(steps.seen)
    dy = run.array(np.ones_like(steps.hidden))

    def ours() -> None:
        layer(x, resets=steps.begins)
        layer.zero_grad()
        common.host(layer.backward(dy)[0])

    ways: dict[str, Callable[[], None]] = {"rnnkit.GRU, resets=": ours} | _torch_ways(steps, run.args.hidden)
    for name, way in ways.items():
        result.frames_per_second[name] = steps.rewards.size / _seconds(way)
    first = result.frames_per_second["rnnkit.GRU, resets="]
    rows = [(name, f"{n:,.0f}", f"{first / n:.1f}") for name, n in result.frames_per_second.items()]
    common.table(("", "frames/s", "times as long"), rows)


def _torch_ways(steps: Steps, hidden: int) -> dict[str, Callable[[], None]]:
    """The same through PyTorch, if it is installed: torch.nn.GRU has no resets, so it takes one step at a time."""
    try:
        import torch
    except ImportError:
        print("  PyTorch is not installed: torch.nn.GRU, which has to step through the resets, is not measured")
        return {}
    import rnnkit.torch

    theirs = torch.nn.GRU(INPUTS, hidden)
    ours = rnnkit.torch.GRU(INPUTS, hidden)
    x = torch.tensor(steps.seen, requires_grad=True)
    goes_on = torch.tensor(~steps.begins)[..., None].float()

    def stepped() -> None:
        h = torch.zeros(1, x.shape[1], hidden)
        ys = []
        for x_t, on in zip(x, goes_on, strict=True):
            y, h = theirs(x_t[None], h * on)
            ys.append(y)
        torch.cat(ys).sum().backward()

    def whole() -> None:
        y, _ = ours(x, resets=steps.begins)
        y.sum().backward()

    return {"rnnkit.torch.GRU, resets=": whole, "torch.nn.GRU, step by step": stepped}


def _seconds(way: Callable[[], None], least: float = 0.3) -> float:
    """The median time of a call: of at least five, and as many as fit in `least` seconds."""
    way()
    times: list[float] = []
    while len(times) < 5 or sum(times) < least:
        start = time.perf_counter()
        way()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main(argv: Sequence[str] | None = None) -> Result:
    """Runs the program; `argv` as on the command line."""
    options = common.parser(__doc__, "recurrent_policy")
    options.add_argument("--updates", type=common.positive, default=200, help="steps of learning (default 200)")
    options.add_argument("--corridors", type=common.positive, default=64, help="how many at once (default 64)")
    options.add_argument("--rollout", type=common.positive, default=64, help="steps per update (default 64)")
    options.add_argument("--longest", type=common.positive, default=15, help="steps of a corridor (default 15)")
    options.add_argument("--hidden", type=common.positive, default=64, help="units of the GRU (default 64)")
    options.add_argument("--learning-rate", type=common.above_zero, default=0.01, help="of Adam (default 0.01)")
    run = common.start(options, argv)
    if run.args.longest < SHORTEST:
        options.error(f"--longest must be at least {SHORTEST}, got {run.args.longest}")
    result = Result()
    steps = train(run, result)
    speeds(run, steps, result)
    wrong = [1 - share for share in result.right]
    path = run.out / "recurrent_policy.png"
    title = "A policy that remembers the cue"
    result.figures.append(
        common.loss_curve(path, {"wrong turns": wrong}, title, "update", "share", {"guessing": 0.5}, smooth=10)
    )
    return result


if __name__ == "__main__":
    main()
