"""A character model trained by several processes under torchrun; a killed worker costs the steps since a checkpoint.

    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    torchrun --standalone --nproc-per-node 2 --max-restarts 3 -m rnnkit.examples.torch_distributed --steps 200

The model is that of torch_characters, inside DistributedDataParallel: each process takes its rows of every batch, and
DDP adds up the gradients. Nothing in it is special to rnnkit, and FSDP2's `fully_shard` works in its place.

A checkpoint holds the model, the optimizer and the number of steps done. Rank 0 writes it every `--every` steps, into a
new file that then takes the place of the old one, so that an interrupted write leaves the old one whole. If a worker
dies, torchrun ends the others and starts all of them again, at most `--max-restarts` times. They load the checkpoint
and go on. The batch of a step depends only on the seed and the number of the step, so the loss is that of a run in
which no worker died. Without the exported variable, torchrun's store outlives a restart with the addresses of dead
workers in it, and a new worker that reads one fails (PyTorch 2.13). The program refuses to start then.

On GPUs: `--device cuda` takes the GPU of the process's LOCAL_RANK, and NCCL in place of gloo. Start one process per
GPU. On several machines, start torchrun on each with `--nnodes N --rdzv-backend c10d --rdzv-endpoint HOST:PORT` in
place of `--standalone`, and let `--out` be a folder that all of them share. Neither has been tried.
"""

from __future__ import annotations

import argparse
import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import rnnkit.torch
from rnnkit.examples import _common as common
from rnnkit.examples.torch_characters import Characters, Text


@dataclass
class Result:
    """Mean loss of each step that this process did, in nats per character, by the number of the step."""

    losses: dict[int, float] = field(default_factory=dict)


def options() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="torchrun -m rnnkit.examples.torch_distributed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cpu with gloo, or cuda with NCCL")
    found.add_argument("--steps", type=common.positive, default=200, help="number of steps in all (default 200)")
    found.add_argument("--every", type=common.positive, default=20, help="steps between checkpoints (default 20)")
    found.add_argument("--batch", type=common.positive, default=32, help="rows per step, of all processes (default 32)")
    found.add_argument("--hidden", type=common.positive, default=128, help="units of the LSTM (default 128)")
    found.add_argument("--learning-rate", type=common.above_zero, default=3e-3, help="of Adam (default 3e-3)")
    found.add_argument("--seed", type=int, default=0, help="seed of weights and batches (default 0)")
    found.add_argument("--out", type=Path, default=Path("out"), help="folder of the checkpoint (default ./out)")
    found.add_argument("--timeout", type=common.positive, default=300, help="seconds to wait for others (default 300)")
    return found


def main(argv: Sequence[str] | None = None) -> Result:
    """Joins the group that torchrun describes in the environment, and trains."""
    args = options().parse_args(argv)
    if "LOCAL_RANK" not in os.environ:
        raise SystemExit("start this program with torchrun: see --help")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise SystemExit("set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun: see --help")
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cpu")
    if args.device == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # A process that waits for a dead one longer than this raises, and torchrun restarts them all.
    timeout = datetime.timedelta(seconds=args.timeout)
    dist.init_process_group("nccl" if args.device == "cuda" else "gloo", timeout=timeout)
    try:
        return train(args, device)
    finally:
        dist.destroy_process_group()


def train(args: argparse.Namespace, device: Any) -> Result:
    """Trains from the checkpoint, or from the start if there is none, to `--steps`."""
    text = Text.of_python()
    torch.manual_seed(args.seed)
    model = Characters(rnnkit.torch, len(text.characters), args.hidden).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)
    path = args.out / "checkpoint.pt"
    done = load(path, model, optimizer, device)
    if dist.get_rank() == 0:
        print(f"{'from the start' if done == 0 else f'from the checkpoint of step {done}'}", flush=True)
    parallel = nn.parallel.DistributedDataParallel(model, device_ids=None if device.index is None else [device.index])
    result = Result()
    for step in range(done + 1, args.steps + 1):
        result.losses[step] = train_step(step, parallel, optimizer, text, args, device)
        if dist.get_rank() == 0 and (step % args.every == 0 or step == args.steps):
            save(path, model, optimizer, step)
            print(f"step {step}: loss {result.losses[step]:.17g}", flush=True)
    return result


def train_step(step: int, model: Any, optimizer: Any, text: Text, args: argparse.Namespace, device: Any) -> float:
    """One step of the whole group: the loss per character over all rows of the batch."""
    rank, world = dist.get_rank(), dist.get_world_size()
    rows = text.batch(args.batch, seed=(args.seed, step))
    count = sum(len(row) - 1 for row in rows)
    own = [row.to(device) for row in rows[rank::world]]
    logits, targets = model(own)
    # Rows differ in length: the sum of all processes' losses is divided by all processes' characters. DDP takes the
    # mean of the gradients, hence `world`.
    total = nn.functional.cross_entropy(logits, targets, reduction="sum")
    optimizer.zero_grad()
    (total * world / count).backward()
    optimizer.step()
    shown = total.detach().clone()
    dist.all_reduce(shown)
    return float(shown) / count


def load(path: Path, model: Any, optimizer: Any, device: Any) -> int:
    """Restores a checkpoint if there is one, and returns how many steps were done."""
    if not path.exists():
        return 0
    saved = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return saved["step"]


def save(path: Path, model: Any, optimizer: Any, step: int) -> None:
    """Writes a checkpoint. At every moment `path` is the old one or the new one, also after a loss of power."""
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


if __name__ == "__main__":
    main()
