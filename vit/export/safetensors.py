"""Weights alone, by their names, as our models have them."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open

from vit.artifacts.checkpoint import IN_SAFETENSORS
from vit.export.source import (
    NORMALISED,
    Answer,
    WithPreprocessing,
    metadata,
    on_pixels,
    weights_file,
)
from vit.inference.load import Trained
from vit.model.vit import VisionTransformer


def write(trained: Trained, merge: int, precision: str) -> bytes:
    """Weights by their names, with the rest as JSON in the file's metadata."""
    about = json.dumps(metadata(trained, merge, precision, NORMALISED))
    return weights_file(trained.model.state_dict(), precision, {IN_SAFETENSORS: about})


def run(path: Path) -> Answer:
    """In a model that is built from what the file says."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()[IN_SAFETENSORS])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model = VisionTransformer(**about["spec"])
    model.load_state_dict(weights)
    return on_pixels(WithPreprocessing(model, about["preprocessing"]))
