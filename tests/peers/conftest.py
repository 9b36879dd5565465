"""Parity with the peers: a suite of one that is not installed is skipped, unless it was asked for.

`make test-peers` installs all of them and sets RNNKIT_PEERS=required, so that skipping everything is not green.
"""

from __future__ import annotations

import importlib
import os

import pytest

PEERS = ("torch", "keras", "jax")


def pytest_configure() -> None:
    """Ends the run where RNNKIT_PEERS=required and a peer does not import."""
    wanted = os.environ.get("RNNKIT_PEERS", "")
    if wanted not in ("", "required"):
        raise pytest.UsageError(f"RNNKIT_PEERS must be 'required' or not set, got {wanted!r}")
    if not wanted:
        return
    os.environ["KERAS_BACKEND"] = "torch"  # before Keras' first import; tests/peers/test_keras.py says why
    missing = []
    for peer in PEERS:
        try:
            importlib.import_module(peer)
        except ImportError as error:
            missing.append(f"{peer} ({error})")
    if missing:
        raise pytest.UsageError(f"RNNKIT_PEERS=required, and not to be imported: {', '.join(missing)}")
