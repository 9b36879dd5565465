"""Reinforcement learning moved over by one line: RecurrentPPO of sb3-contrib on CartPole.

The policy is sb3-contrib's own, with an LSTM for the actor and one for the critic. Both are swapped inside the finished
model; the optimizer and everything else stay as they are:

    model = RecurrentPPO("MlpLstmPolicy", "CartPole-v1")
    rnnkit.torch.replace(model.policy)

A step here is one iteration of PPO: `--rollout` frames of each environment, each of which is a call of both LSTMs, and
`--epochs` passes of training over them. The loss need not fall: that of the value grows with the rewards. It
needs `pip install 'rnnkit[torch-examples]'`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import rnnkit.torch
from rnnkit.examples import _common as common
from rnnkit.examples import _torch_common as torch_common


def program(layers: Any, args: argparse.Namespace) -> torch_common.Step:
    """A function that does one iteration of PPO and returns its last loss."""
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.env_util import make_vec_env

    model = RecurrentPPO(
        "MlpLstmPolicy",
        make_vec_env("CartPole-v1", args.environments, seed=args.seed),
        n_steps=args.rollout,
        batch_size=args.rollout * args.environments // 2,
        n_epochs=args.epochs,
        learning_rate=args.learning_rate,
        policy_kwargs={"lstm_hidden_size": args.hidden},
        seed=args.seed,
        device="cpu",
    )
    if layers is rnnkit.torch:
        rnnkit.torch.replace(model.policy)
    frames = args.rollout * args.environments

    def step() -> float:
        # One iteration, which is not logged: log_interval=2 would log the second one.
        model.learn(frames, log_interval=2, reset_num_timesteps=False)
        return float(model.logger.name_to_value["train/loss"])

    return step


def main(argv: Sequence[str] | None = None) -> torch_common.Comparison:
    """Trains with the layers of `--layers`, side by side if both."""
    options = torch_common.parser(__doc__, "torch_recurrent_ppo", steps=20, dtype=False)
    options.add_argument("--environments", type=common.positive, default=4, help="how many at once (default 4)")
    options.add_argument("--rollout", type=common.positive, default=128, help="frames of each (default 128)")
    options.add_argument("--epochs", type=common.positive, default=4, help="passes over them (default 4)")
    options.add_argument("--hidden", type=common.positive, default=64, help="units of an LSTM (default 64)")
    options.add_argument("--learning-rate", type=common.above_zero, default=1e-3, help="of Adam (default 1e-3)")
    args = torch_common.parse(options, argv)
    common.check_extras("sb3_contrib", "gymnasium", extra="torch-examples")
    frames = args.rollout * args.environments
    return torch_common.compare("torch_recurrent_ppo", lambda layers: program(layers, args), args, "frames", frames)


if __name__ == "__main__":
    main()
