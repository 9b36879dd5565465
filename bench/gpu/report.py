"""The findings of a run, from gpu.json (`result_file`): the throughput rows, their means, and what is wrong."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from bench.gpu import call_model, cudnn
from bench.gpu.items_file import BAD
from bench.grid import FORWARD_BACKWARD, PASSES, Point

Document = dict[str, Any]
TORCH = {"torch_eager": "eager", "torch_graph": "graph"}


class Row(NamedTuple):
    """One pass of one point. Times in milliseconds; None where there is none."""

    point: Point
    passes: str
    status: str
    error: float | None
    ours: float | None
    torch: float | None
    torch_by: str
    ratio: float | None
    spread: float | None
    wall: float | None
    paths: tuple[str, ...]
    lower_bound_share: float | None
    predicted_share: float | None

    @property
    def dtype(self) -> str:
        return self.point.dtype

    @property
    def cell(self) -> str:
        return self.point.cell

    @property
    def step_flop(self) -> float:
        return self.point.flop() / self.point.T

    @property
    def standard(self) -> bool:
        """Whether torch uses cuDNN's non-persistent algorithm in every pass. The acceptance mean is over these rows."""
        return set(self.paths) == {cudnn.STANDARD}


def items(document: Document, part: str) -> list[dict[str, Any]]:
    return document["parts"].get(part, {}).get("items", [])


def item(document: Document, part: str, key: str) -> dict[str, Any]:
    return next((i for i in items(document, part) if i["item"] == key), {})


def card_name(document: Document) -> str:
    return item(document, "card", "device").get("name", "no card")


def rows(document: Document) -> list[Row]:
    """Every measured or wrong pass, in the order of measuring."""
    l2 = item(document, "card", "attributes").get("attributes", {}).get("L2CacheSize", 0)
    measured = call_model.rates(card_name(document), float(l2), items(document, "ceilings"))
    found = []
    for entry in items(document, "throughput"):
        for passes, result in entry.get("passes", {}).items():
            found.append(_row(Point.from_dict(entry["point"]), passes, result, measured))
    return found


def _row(point: Point, passes: str, result: dict[str, Any], measured: call_model.Rates | None) -> Row:
    ours = result.get("ours", {}).get("ms")
    median = ours["median"] if ours else None
    best, by = torch_best(result)
    shares = []
    for predict in (call_model.lower_bound, call_model.predicted):
        seconds = predict(point, passes == FORWARD_BACKWARD, measured) if measured else None
        shares.append(seconds * 1e3 / median if seconds and median else None)
    return Row(
        point,
        passes,
        result["status"],
        _number(result.get("error")),
        median,
        best,
        by,
        best / median if best and median else None,
        (ours["p75"] - ours["p25"]) / median if ours and median else None,
        result.get("ours", {}).get("wall_ms"),
        tuple(result.get("paths", ())),
        *shares,
    )


def torch_best(result: dict[str, Any]) -> tuple[float | None, str]:
    """The smaller of torch's median milliseconds, eager or graph, and which it is; None where it was not timed."""
    times = {said: result[name]["ms"]["median"] for name, said in TORCH.items() if "ms" in result.get(name, {})}
    by = min(times, key=times.__getitem__, default="")
    return times.get(by), by


def measured_points(document: Document) -> set[str]:
    """The points that ended, right or wrong. gpu.json lists the others too, if the part ended."""
    return {i["item"] for i in items(document, "throughput") if "passes" in i}


def mean(values: list[float]) -> float | None:
    """The geometric mean; None of no values."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def means(document: Document) -> list[dict[str, Any]]:
    """By dtype and pass: the geometric mean of torch's time over ours, of all rows and of the `standard` ones."""
    found = []
    all_rows = rows(document)
    for dtype in dict.fromkeys(row.dtype for row in all_rows):
        for passes in PASSES:
            chosen = [row for row in all_rows if (row.dtype, row.passes) == (dtype, passes) and row.ratio]
            bar = [row.ratio for row in chosen if row.standard and row.ratio]
            ratios = [row.ratio for row in chosen if row.ratio]
            if not chosen:
                continue
            found.append(
                {
                    "dtype": dtype,
                    "passes": passes,
                    "rows": len(ratios),
                    "mean": mean(ratios),
                    "bar_rows": len(bar),
                    "bar_mean": mean(bar),
                    "least": min(ratios),
                    "lower_bound_share": mean([row.lower_bound_share for row in chosen if row.lower_bound_share]),
                    "predicted_share": mean([row.predicted_share for row in chosen if row.predicted_share]),
                }
            )
    return found


def problems(document: Document) -> list[str]:
    """One line per item that is wrong or failed. They decide the exit status of the run."""
    found = []
    for name, part in document["parts"].items():
        if part["status"] == "failed":
            found.append(f"{name}: {part['why']}")
        bad = [i for i in part["items"] if i["status"] in BAD]
        found += [f"{name}: {i['item']}: {i['status']}: {why(i)}" for i in bad]
    return found


def why(entry: dict[str, Any]) -> str:
    """The reason for an item's status, in one line."""
    if entry.get("why"):
        return str(entry["why"])
    errors = {p: r.get("error") for p, r in entry.get("passes", {}).items() if r["status"] == "wrong"}
    return "; ".join(f"{p}: {e} times the tolerance" for p, e in errors.items()) or str(entry.get("said", ""))[:300]


def _number(value: Any) -> float | None:
    """A number of the document, in which numbers that are not finite are text."""
    return None if value is None else float(value)
