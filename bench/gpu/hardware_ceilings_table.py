"""The items of `bench.gpu.hardware_ceilings` as a table: one line per kind of measurement."""

from __future__ import annotations

from typing import Any

from bench.gpu import exchange_costs

Items = dict[str, dict[str, Any]]


def lines(items: list[dict[str, Any]]) -> list[str]:
    """The report of the items whose status is "ok". Times are in microseconds, of barriers and hops per round."""
    ok = {item["item"]: item for item in items if item["status"] == "ok"}
    found = [*_launches(ok), *_rates(ok), *_barriers(ok), *_hops(ok), *_gathers(ok), *_dsmem(ok), *_products(ok)]
    return ["", *found] if found else []


def _launches(ok: Items) -> list[str]:
    if "launches" not in ok:
        return []
    item = ok["launches"]
    one = item["count_up"]
    said = f"launch: {one['eager_us']:.2f} us from the host, {one['graph_us']:.2f} us in a graph"
    others = [f"{text} {item[name]['graph_us']:.2f}" for name, text in _KERNELS.items() if name in item]
    return [f"{said} ({', '.join(others)})" if others else said]


_KERNELS = {"nothing": "an empty kernel", "pass_on": "a small grid"}


def _rates(ok: Items) -> list[str]:
    """Bandwidths: a line for the copies and one for the pointwise launches."""
    found = []
    for kind in ("copy", "pointwise"):
        rates = [
            f"{key.removeprefix(kind).strip()} {item['gb_per_s']:.0f}"
            for key, item in ok.items()
            if key.startswith(kind + " ")
        ]
        if rates:
            found.append(f"{kind}, GB/s: {', '.join(rates)}")
    return found


def _barriers(ok: Items) -> list[str]:
    found = []
    for kind in ("grid.sync", "grid counter"):
        costs = [
            f"{item['blocks']} blocks {item['alone']['us']:.2f} ({item['with_exchange']['us']:.2f})"
            for key, item in ok.items()
            if key.startswith(kind + " ")
        ]
        if costs:
            found.append(f"{kind}, us (with an exchange): {', '.join(costs)}")
    costs = [
        f"{item['cluster']} blocks {item['one']['us']:.2f} ({item['resident']} clusters {item['all']['us']:.2f})"
        for key, item in ok.items()
        if key.startswith("cluster.sync ")
    ]
    return [*found, f"cluster.sync, us (card full): {', '.join(costs)}"] if costs else found


def _hops(ok: Items) -> list[str]:
    found = [("flag alone", ok.get("flag handoff")), ("data and flag", ok.get("hop flag"))]
    found.append(("tagged word", ok.get("hop tag")))
    said = [
        f"{name} {item['one_way_us']:.3f}"
        + (f" ({item['least_us']:.3f} to {item['most_us']:.3f})" if "least_us" in item else "")
        for name, item in found
        if item
    ]
    return [f"hop through L2, us one way: {', '.join(said)}"] if said else []


def _each(found: list[dict[str, Any] | None]) -> str:
    """Hops or rounds by their ways, "-" for one that was not measured."""
    said = []
    for item in found:
        if item is None:
            said.append("-")
        elif "one_way_us" in item:
            said.append(f"{item['one_way_us']:.2f}")
        else:
            said.append(f"{item['us']:.2f}" + (f" ({item['full_us']:.2f})" if "full_us" in item else ""))
    return " / ".join(said)


def _gathers(ok: Items) -> list[str]:
    """A line for each number of blocks: by vector, data and flag / tagged words."""
    chosen = {key: item for key, item in ok.items() if key.startswith("all-gather ")}
    found = []
    for members in dict.fromkeys(item["members"] for item in chosen.values()):
        said = []
        for words in dict.fromkeys(item["words"] for item in chosen.values()):
            ways = [chosen.get(f"all-gather {way} N={members} words={words}") for way in exchange_costs.L2_WAYS]
            said.append(f"{words} words {_each(ways)}")
        found.append(f"all-gather, {members} blocks, us flag / tag (card full): {', '.join(said)}")
    return found


def _dsmem(ok: Items) -> list[str]:
    """A line of hops by push and pull, then one for each cluster size: by vector the three ways of an all-gather."""
    chosen = {key: item for key, item in ok.items() if key.startswith("DSMEM ")}
    found = []
    hops_said = []
    for size in dict.fromkeys(item["cluster"] for item in chosen.values()):
        ways = [chosen.get(f"DSMEM hop {way} C={size}") for way in ("push", "pull")]
        hops_said.append(f"{size} blocks {_each(ways)}")
        said = []
        for words in dict.fromkeys(item["words"] for item in chosen.values() if "words" in item):
            ways = [chosen.get(f"DSMEM all-gather {way} C={size} words={words}") for way in exchange_costs.CLUSTER_WAYS]
            said.append(f"{words} words {_each(ways)}")
        found.append(
            f"DSMEM all-gather, {size} blocks, us {' / '.join(exchange_costs.CLUSTER_WAYS)}: {', '.join(said)}"
        )
    return [f"DSMEM hop, us one way, push / pull: {', '.join(hops_said)}", *found] if found else []


def _products(ok: Items) -> list[str]:
    """Large products by dtype, TFLOP/s by layout; and microseconds of a step's by dtype and layout."""
    large: dict[str, list[str]] = {}
    steps: dict[str, list[str]] = {}
    for key, item in ok.items():
        kind, *rest = key.split()
        if kind == "product":
            large.setdefault(rest[0], []).append(f"{' '.join(rest[1:])} {item['tflops']:.1f}")
        elif kind == "step":
            shape = ",".join(part.partition("=")[2] for part in rest[2:])
            steps.setdefault(f"{rest[0]} {rest[1]}", []).append(f"{shape}: {item['ms']['median'] * 1e3:.2f}")
    found = [f"product {dtype}, TFLOP/s: {', '.join(said)}" for dtype, said in large.items()]
    return [*found, *(f"step {name}, us by B,H: {', '.join(said)}" for name, said in steps.items())]
