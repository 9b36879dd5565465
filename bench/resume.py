"""Continues an interrupted run from its result file, where the commit, the settings and the versions are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.grid import Point
from bench.result_file import Document, load

# The settings that must be equal; the machine's load and the minutes may differ.
SAME_SETTINGS = ("passes", "cells", "threads", "seconds", "rounds", "calls", "every")


def begun(path: Path, fresh: Document) -> Document | None:
    """The document at `path`, for a run whose new, empty document is `fresh`. None where there is no file.

    Raises ValueError naming the first difference between the two.
    """
    if not path.exists():
        return None
    old = load(path)
    for what, was, now in _pairs(old, fresh):
        if was != now:
            raise ValueError(f"{path} cannot be resumed: its {what} is {was!r}, and now it would be {now!r}")
    return old


def remaining(points: list[Point], document: Document) -> list[Point]:
    """The points that the document does not have yet, in order."""
    done = {str(Point.from_dict(entry["point"])) for entry in document["points"]}
    return [point for point in points if str(point) not in done]


def _pairs(old: Document, fresh: Document) -> list[tuple[str, Any, Any]]:
    pairs = [(key, old[key], fresh[key]) for key in ("grid", "dtype", "commit")]
    pairs += [(f"setting {key}", old["settings"].get(key), fresh["settings"].get(key)) for key in SAME_SETTINGS]
    pairs += [("processor", old["machine"]["cpu"], fresh["machine"]["cpu"])]
    pairs += [("list of peers", _peers(old), _peers(fresh))]
    versions = [(name, peer.get("versions"), fresh["peers"][name].get("versions")) for name, peer in _both(old, fresh)]
    return pairs + [(f"version of {name}", was, now) for name, was, now in versions]


def _peers(document: Document) -> list[str]:
    return list(document["peers"])


def _both(old: Document, fresh: Document) -> list[tuple[str, Any]]:
    return [(name, peer) for name, peer in old["peers"].items() if name in fresh["peers"]]
