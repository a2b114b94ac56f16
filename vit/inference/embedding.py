"""Embeddings: what the head of a model sees, of a run's model or of weights alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vit.data.loader import EvalLoader
from vit.inference.load import Trained
from vit.inference.predict import features


def embed(
    trained: Trained, loader: EvalLoader, progress: Callable[[int], object] = lambda count: None
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings, float32 (N, D), of the images of `loader` that can be decoded, and which they
    are, (N,); `progress` is told how many more there are.

    Raises:
        DataError: a worker failed.
        DivergedError: a value is not finite.
    """
    precision, found, places = trained.evaluation["precision"], [], []
    for images, _, index, mask in loader:
        if len(index):
            seen = features(trained.model, images, mask, precision)
            trained.check(seen)
            found.append(seen.cpu().numpy())
            places.append(index)
        progress(len(index))
    if not found:
        return np.empty((0, trained.model.config.dim), np.float32), np.empty(0, np.int64)
    return np.concatenate(found), np.concatenate(places)
