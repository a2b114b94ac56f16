"""Programs of torch.export, which need torch alone."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch

from vit.export.source import PIXELS, Answer, Source, metadata, on_pixels, traced


def write(source: Source, precision: str) -> bytes:
    """The model's operations and weights, with what it says about itself beside them."""
    about = {"metadata.json": json.dumps(metadata(source, precision, PIXELS))}
    file = io.BytesIO()
    torch.export.save(traced(source, precision), file, extra_files=about)
    return file.getvalue()


def run(path: Path) -> Answer:
    """As torch loads it."""
    return on_pixels(torch.export.load(path).module())
