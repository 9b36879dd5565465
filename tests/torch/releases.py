"""What older releases of PyTorch cannot do, so that single tests are skipped there: one table."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

RELEASE = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])

# What a test needs: the first release that has it, and what those before it do. docs/from-torch.md says which matter.
LACKS: dict[str, tuple[tuple[int, int], str]] = {
    "a PackedSequence in torch.compile": ((2, 7), "torch.compile cannot unpack a PackedSequence"),
    "a number read in torch.compile": ((2, 10), "torch.compile refuses to read B from batch_sizes"),
    "FSDP2 on a CPU": ((2, 7), "fully_shard asks a CPU for a stream that it does not have"),
    "checks of torch.nn's constructors": ((2, 12), "torch.nn.LSTM takes input_size=0, bias=1 and batch_first='False'"),
}


def needs(what: str) -> Any:
    """A mark that skips the test with a release of PyTorch that lacks `what`, a row of the table."""
    first, instead = LACKS[what]
    return pytest.mark.skipif(first > RELEASE, reason=f"PyTorch before {first[0]}.{first[1]}: {instead}")


def has(what: str) -> bool:
    """Whether this release of PyTorch has `what`, a row of the table."""
    return LACKS[what][0] <= RELEASE
