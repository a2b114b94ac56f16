"""Programs of torch.export, which need torch alone."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch

from vit.export.source import PIXELS, Answer, metadata, on_pixels, traced
from vit.inference.load import Trained


def write(trained: Trained, merge: int, precision: str) -> bytes:
    """The model's operations and weights, with what it says about itself beside them."""
    about = {"metadata.json": json.dumps(metadata(trained, merge, precision, PIXELS))}
    file = io.BytesIO()
    torch.export.save(traced(trained, merge, precision), file, extra_files=about)
    return file.getvalue()


def run(path: Path) -> Answer:
    """As torch loads it."""
    return on_pixels(torch.export.load(path).module())
