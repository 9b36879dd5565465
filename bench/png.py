"""Writes figures as small PNG files. Needs matplotlib."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

COLOURS = 256  # of the palette, which takes a third of the bytes of full colour


def pyplot() -> Any:
    """matplotlib.pyplot with a backend that needs no display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: Path, dpi: int) -> None:
    """Writes the figure and closes it."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    pyplot().close(figure)
    image = Image.open(buffer).convert("RGB").quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, optimize=True)
