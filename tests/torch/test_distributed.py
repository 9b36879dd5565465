"""DistributedDataParallel, FSDP2 and torchrun with rnnkit's layers: several processes train as one does.

No test needs a free port of its own: processes meet over a file, or over a port that torchrun finds.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this torch has no gloo", allow_module_level=True)

import rnnkit.torch  # noqa: E402
from rnnkit.examples import torch_distributed  # noqa: E402
from tests.torch import train_in_processes  # noqa: E402
from tests.torch.processes import Job  # noqa: E402
from tests.torch.releases import has, needs  # noqa: E402

pytestmark = pytest.mark.peers
WORKER = str(Path(train_in_processes.__file__))
SECONDS = 150
ATOL = 1e-12  # float64; another order of the sums over rows


def wrappings() -> list[str]:
    """What this version of PyTorch has."""
    return ["ddp", "fsdp"] if has("FSDP2 on a CPU") else ["ddp"]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What one process has after the same training."""
    return train_in_processes.train("alone", 0, 1)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What two processes have, by wrapping."""
    folder = tmp_path_factory.mktemp("together")
    out = folder / "found.pt"
    commands = [[WORKER, str(folder / "store"), str(rank), "2", str(out), *wrappings()] for rank in range(2)]
    with contextlib.ExitStack() as stack:
        for job in [stack.enter_context(Job(command)) for command in commands]:
            job.finished(SECONDS)
    return torch.load(out)


@pytest.mark.parametrize("wrapping", ["ddp", pytest.param("fsdp", marks=needs("FSDP2 on a CPU"))])
def test_two_processes_train_as_one(wrapping: str, alone: dict[str, Any], together: dict[str, dict[str, Any]]) -> None:
    found = together[wrapping]
    assert found.keys() == alone.keys()
    assert len(found) == 2 * (16 + 2)
    for name, value in alone.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=ATOL, msg=lambda text, name=name: f"{name}: {text}")


def test_weights_stay_resizable() -> None:
    """FSDP frees weights by resizing their memory, which `Tensor.numpy` would forbid from then on."""
    layer = rnnkit.torch.GRU(3, 4)
    layer(torch.ones(2, 1, 3))[0].sum().backward()
    for weight in layer.parameters():
        assert weight.untyped_storage().resizable()


# The example, as torchrun runs it. In the first run of a group, rank 1 kills itself in step 7, after the checkpoint of
# step 5: a SIGKILL, as by a machine that has no memory left.
KILLED = """
import os, signal
from rnnkit.examples import torch_distributed

whole_step = torch_distributed.train_step

def killed_once(step, *arguments):
    if step == 7 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return whole_step(step, *arguments)

torch_distributed.train_step = killed_once
torch_distributed.main()
"""


def test_training_survives_a_killed_worker(tmp_path: Path) -> None:
    killed = tmp_path / "killed.py"
    killed.write_text(KILLED)
    group = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    options = ["--steps", "12", "--every", "5", "--batch", "6", "--hidden", "16", "--timeout", "60"]
    whole = [*group, "-m", "rnnkit.examples.torch_distributed", *options, "--out", str(tmp_path / "whole")]
    broken = [*group, str(killed), *options, "--out", str(tmp_path / "broken")]
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with Job(whole, own_store) as first, Job(broken, own_store) as second:
        printed = [job.finished(SECONDS) for job in (first, second)]
    assert "from the checkpoint of step 5" not in printed[0]
    assert "from the checkpoint of step 5" in printed[1]
    assert last_loss(printed[0]) == last_loss(printed[1])
    states = [torch.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "broken")]
    assert states[0]["step"] == states[1]["step"] == 12
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name]), name


def last_loss(printed: str) -> str:
    """The loss of the last step, in 17 digits."""
    return re.findall(r"^step 12: loss (\S+)$", printed, re.MULTILINE)[-1]


def test_an_interrupted_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())
    path = tmp_path / "checkpoint.pt"
    torch_distributed.save(path, model, optimizer, 3)

    def fails(value: Any, file: Any) -> None:
        file.write(b"part of it")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="no space"):
        torch_distributed.save(path, model, optimizer, 4)
    assert torch_distributed.load(path, model, optimizer, torch.device("cpu")) == 3


def test_it_says_how_to_start_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(SystemExit, match="start this program with torchrun"):
        torch_distributed.main([])
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(SystemExit, match="set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun"):
        torch_distributed.main([])
