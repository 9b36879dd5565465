"""Parity with peers. Tests of a peer that is not installed are skipped, unless RNNKIT_REQUIRED names peers.

`make test-peers` installs all of them and sets it, so a run that skips everything fails.
"""

from __future__ import annotations

import importlib
import os

from tests.required import required, unless_required

PEERS = ("torch", "keras", "jax", "openvino")


def pytest_configure() -> None:
    """Ends the run if the peers are required and one cannot be imported."""
    if not required("peers"):
        return
    os.environ["KERAS_BACKEND"] = "torch"  # before Keras is imported: see tests/peers/test_keras.py
    missing = []
    for peer in PEERS:
        try:
            importlib.import_module(peer)
        except ImportError as error:
            missing.append(f"{peer} ({error})")
    unless_required("peers", f"these do not import: {', '.join(missing)}" if missing else None)
