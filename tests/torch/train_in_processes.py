"""A worker of test_distributed.py: trains a model in one of several processes, and rank 0 saves what it has then.

    python train_in_processes.py STORE RANK WORLD OUT WRAPPING...

Every process has the whole batch and takes its rows. The loss is a sum over the steps of all rows. WRAPPING is `alone`,
`ddp` or `fsdp`; the trainings follow one another.
"""

from __future__ import annotations

import datetime
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import rnnkit.torch

T, B, I, H = 9, 6, 5, 8
LENGTHS = torch.tensor([3, 9, 0, 7, 9, 1])
STEPS = 3


class Model(nn.Module):
    """A bidirectional LSTM of two layers over ragged rows, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = rnnkit.torch.LSTM(I, H, 2, batch_first=True, bidirectional=True, dtype=torch.float64)
        self.head = nn.Linear(2 * H, 3, dtype=torch.float64)

    def forward(self, x: Any, lengths: Any) -> Any:
        y, (h_n, c_n) = self.rnn(x, lengths=lengths)
        return self.head(y), h_n, c_n


def wrapped(model: Any, wrapping: str, world: int) -> Any:
    if wrapping == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if wrapping == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (world,))
        fully_shard(model.rnn, mesh=mesh)  # its weights are gathered for its call and freed after it
        fully_shard(model, mesh=mesh)
    return model


def whole(tensor: Any) -> Any:
    """The tensor, of which FSDP's processes have a part each."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def train(wrapping: str, rank: int, world: int) -> dict[str, Any]:
    """The gradients of the first step and the parameters after the last."""
    torch.manual_seed(0)
    model = wrapped(Model(), wrapping, world)
    x = torch.randn(B, T, I, dtype=torch.float64)
    target = torch.randn(B, T, 3, dtype=torch.float64)
    rows = slice(rank * B // world, (rank + 1) * B // world)
    # Adam, which has states of its own and divides by small numbers.
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    found: dict[str, Any] = {}
    for step in range(STEPS):
        optimizer.zero_grad()
        y, h_n, c_n = model(x[rows], LENGTHS[rows])
        loss = ((y - target[rows]) ** 2).sum() + h_n.sin().sum() + c_n.cos().sum()
        (loss * world).backward()  # DDP and FSDP divide the sum of the gradients by the number of processes
        if step == 0:
            found |= {f"grad {name}": whole(p.grad).clone() for name, p in model.named_parameters()}
        optimizer.step()
    found |= {name: whole(p).detach().clone() for name, p in model.named_parameters()}
    return {name.replace("module.", ""): value for name, value in found.items()}


def main() -> None:
    store, rank, world, out, *wrappings = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=limit)
    found = {wrapping: train(wrapping, rank, world) for wrapping in wrappings}
    if rank == 0:
        torch.save(found, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
