"""CLUSTER_MUTANTS: bugs in the exchange between the blocks of a cluster."""

from __future__ import annotations

from tests.tools.mutants.planting import Mutant, row

EXCHANGE = "kernels/cuda/cluster.cuh"
BACKWARD = "kernels/cuda/cluster_backward.cu"

PARITY = "test_every_gradient and gru-float32"
RACES = "test_no_race_and_no_access and gru-float32"
TWO = "test_every_gradient and lstm_projected-bfloat16"
TWO_RACES = "test_no_race_and_no_access and lstm_projected-bfloat16"
RESET_RACES = "test_no_race_and_no_access and gru_reset_before-float32"


def _cluster(name: str, file: str, at: str, old: str, new: str, pick: str) -> Mutant:
    return row(f"cluster: {name}", file, at, old, new, "tests/cuda/test_cupy_cluster.py", pick)


CLUSTER_MUTANTS: tuple[Mutant, ...] = (
    _cluster(
        "an mbarrier expects 16 bytes too few",
        EXCHANGE,
        "set_up",
        "full + i, bytes(i)",
        "full + i, bytes(i) - 16",
        RACES,
    ),
    _cluster(
        "an mbarrier expects 16 bytes too many", EXCHANGE, "wait", "k % 2, bytes(k)", "k % 2, bytes(k) + 16", PARITY
    ),
    _cluster(
        "an mbarrier is not armed again",
        EXCHANGE,
        "wait",
        "if (threadIdx.x == 0) expect_bytes(full + k % 2, bytes(k));",
        "",
        PARITY,
    ),
    _cluster("the parity is always that of the first phase", EXCHANGE, "wait", "k / 2 % 2", "0", RACES),
    _cluster(
        "h is pushed before all have cleared theirs",
        EXCHANGE,
        "receive",
        "if (s == 0) cluster_barrier();",
        "if (0);",
        RACES,
    ),
    _cluster("units are pushed before they are there", EXCHANGE, "receive", "else __syncthreads();", "", RACES),
    _cluster("a block does not wait for its message", EXCHANGE, "receive", "} mail.wait(s);", "}", RACES),
    _cluster(
        "a block ends while others push to it",
        EXCHANGE,
        "receive",
        "} mail.wait(s);",
        "} if (member() != 1) mail.wait(s);",
        RACES,
    ),
    _cluster("a block pushes to one peer too few", EXCHANGE, "receive", "k < members", "k < members - 1", PARITY),
    _cluster("parts of all members in one slot", BACKWARD, "send", "slot(s, member())", "slot(s, 0)", RACES),
    _cluster("one inbox for all steps", BACKWARD, "slot", "s % 2 * members + sender", "sender", RACES),
    _cluster("parts are added before they have come", BACKWARD, "receive", "mail.wait(s);", "", RACES),
    _cluster(
        "parts are sent before all have set up", BACKWARD, "begin", "cluster_barrier();", "__syncthreads();", RACES
    ),
    _cluster("m is pushed before all have cleared theirs", EXCHANGE, "put", "if (message == 0) meet();", "", TWO_RACES),
    _cluster(
        "peers are not told that tiles are cleared",
        EXCHANGE,
        "meet",
        "arrive_at(peer_of(cleared, lane));",
        "arrive_at(peer_of(cleared, (member() + lane) % 2));",
        RESET_RACES,
    ),
    _cluster("m is pushed before its lanes have put it", EXCHANGE, "put", "__syncwarp();", "", RESET_RACES),
    _cluster(
        "m is not pushed to the last one that multiplies it", EXCHANGE, "put", "own(peer, R)", "own(peer + 1, R)", TWO
    ),
    _cluster("a block does not wait for m", EXCHANGE, "receive", "mail.wait(s); return;", "return;", RESET_RACES),
    _cluster("h goes only to blocks with units of it", EXCHANGE, "receive", "own(peer, H)", "own(peer, R)", TWO),
    _cluster("a lone block waits for h", EXCHANGE, "wait", "if (kSecond && bytes(k) == 0) return;", "", TWO),
    _cluster(
        "parts of units beyond the projection",
        BACKWARD,
        "send",
        "|| (kProjected && s & 1 && unit >= R)",
        "",
        TWO,
    ),
    _cluster("parts from members that send none", BACKWARD, "sum", "kSecond ? senders : members", "members", TWO),
    _cluster(
        "a projection's message as long as others",
        BACKWARD,
        "ClusterParts",
        "kProjected ? max(0, min(units, (R - member() * units + 3) / 4 * 4)) : units",
        "units",
        TWO,
    ),
    _cluster(
        "m is not pushed to peers beyond the lanes of a piece",
        EXCHANGE,
        "put",
        "k += kVec",
        "k += members",
        "test_every_gradient and gru_reset_before-float64",
    ),
    _cluster(
        "the reciprocal of a member's units is rounded down",
        BACKWARD,
        "ClusterParts",
        "reciprocal((65535 + units) / units)",
        "reciprocal(65536 / units)",
        "test_weights_in_registers and gru-float32",
    ),
)
