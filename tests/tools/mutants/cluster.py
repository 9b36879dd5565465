"""CLUSTER_MUTANTS: bugs in the exchange between the blocks of a cluster."""

from __future__ import annotations

from tests.tools.mutants.planting import Mutant, row

EXCHANGE = "kernels/cuda/cluster.cuh"
BACKWARD = "kernels/cuda/cluster_backward.cu"

PARITY = "test_every_gradient and gru-float32"
RACES = "test_no_race_and_no_access and gru-float32"


def _cluster(name: str, file: str, at: str, old: str, new: str, pick: str) -> Mutant:
    return row(f"cluster: {name}", file, at, old, new, "tests/cuda/test_cupy_cluster.py", pick)


CLUSTER_MUTANTS: tuple[Mutant, ...] = (
    _cluster(
        "an mbarrier expects 16 bytes too few", EXCHANGE, "set_up", "full + i, bytes", "full + i, bytes - 16", RACES
    ),
    _cluster("an mbarrier expects 16 bytes too many", EXCHANGE, "wait", "s % 2, bytes", "s % 2, bytes + 16", PARITY),
    _cluster(
        "an mbarrier is not armed again",
        EXCHANGE,
        "wait",
        "if (threadIdx.x == 0) expect_bytes(full + s % 2, bytes);",
        "",
        PARITY,
    ),
    _cluster("the parity is always that of the first phase", EXCHANGE, "wait", "s / 2 % 2", "0", RACES),
    _cluster(
        "h is pushed before all have cleared theirs",
        EXCHANGE,
        "receive",
        "if (s == 0) cluster_barrier();",
        "if (0);",
        RACES,
    ),
    _cluster("units are pushed before they are there", EXCHANGE, "receive", "else __syncthreads();", "", RACES),
    _cluster("a block does not wait for its message", EXCHANGE, "receive", "mail.wait(s);", "", RACES),
    _cluster(
        "a block ends while others push to it",
        EXCHANGE,
        "receive",
        "mail.wait(s);",
        "if (member() != 1) mail.wait(s);",
        RACES,
    ),
    _cluster("a block pushes to one peer too few", EXCHANGE, "receive", "k < members", "k < members - 1", PARITY),
    _cluster("parts of all members in one slot", BACKWARD, "send", "slot(s, member())", "slot(s, 0)", RACES),
    _cluster("one inbox for all steps", BACKWARD, "slot", "s % 2 * members + sender", "sender", RACES),
    _cluster("parts are added before they have come", BACKWARD, "receive", "mail.wait(s);", "", RACES),
    _cluster(
        "parts are sent before all have set up", BACKWARD, "begin", "cluster_barrier();", "__syncthreads();", RACES
    ),
)
