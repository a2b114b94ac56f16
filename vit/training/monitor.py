"""TensorBoard pictures: confusion, attention, positions, patch filters."""

from __future__ import annotations

import time
from itertools import compress

import numpy as np
import torch
from torch import Tensor

from vit.artifacts.logger import Logger, image_grid
from vit.data.loader import EvalLoader
from vit.data.task import ONE_LABEL
from vit.errors import printable
from vit.inference.explain import (
    MOST_TOKENS,
    attention_distance,
    heat_of_each,
    patch_filters,
    pictures_of_each,
    position_similarity,
    rollout,
)
from vit.inference.predict import Predictions
from vit.model.vit import VisionTransformer
from vit.report.drawing import confusion_picture, grid, overlay, similarity_picture
from vit.report.multilabel import average_precision

SHARE = 0.01
"""Of the training time, at most, but for the first and the last pictures."""
IMAGES = 12
MOST_CURVES = 100
"""Classes that have a curve of their own."""


class TensorBoardPictures:
    """Pictures of a model after its evaluations; of `loader` a fixed set of images is shown."""

    def __init__(self, logger: Logger, loader: EvalLoader, classes: list[str]) -> None:
        self.logger = logger
        self.loader = loader
        self.classes = classes
        labels = loader.labels if loader.task is ONE_LABEL else loader.labels.argmax(dim=1)
        self.shown = in_turn(labels.cpu().numpy(), IMAGES)
        self.seconds = 0.0
        self.last = 0.0

    def is_due(self, trained: float) -> bool:
        """Whether there is time for pictures after `trained` seconds of training, and for the last
        ones at the run's end.
        """
        return self.seconds + 2 * self.last <= SHARE * trained

    def add(self, model: VisionTransformer, predictions: Predictions, step: int) -> None:
        """Show `model` (in eval mode) after `step`, and what it said about validation."""
        started = time.perf_counter()
        self._confusion(predictions, step)
        similarity = position_similarity(model)
        if similarity is not None:
            self._picture("model/positions", similarity_picture(similarity.cpu().numpy()), step)
        filters = patch_filters(model)
        self.logger.images("model/patch_filters", image_grid(filters.cpu(), 7, 48), step)
        if model.coordinates[..., 0].numel() + model.prefix <= MOST_TOKENS:
            self._attention(model, step)
        self.last = time.perf_counter() - started
        self.seconds += self.last

    def _confusion(self, predictions: Predictions, step: int) -> None:
        if predictions.task is not ONE_LABEL:
            found = 100 * average_precision(predictions.labels, predictions.probabilities)
            self._curves("ap", found, step)
            return
        counts = np.zeros((len(self.classes),) * 2, int)
        np.add.at(counts, (predictions.labels, predictions.top[:, 0]), 1)
        self._picture("val/confusion", confusion_picture(counts, self.classes), step)
        with np.errstate(invalid="ignore"):
            self._curves("recall", 100 * counts.diagonal() / counts.sum(axis=1), step)

    def _curves(self, name: str, values: np.ndarray, step: int) -> None:
        """A point of a curve of each class, of values (K,) as far as they are numbers."""
        there = np.flatnonzero(np.isfinite(values))[:MOST_CURVES]
        tags = [f"{name}/{printable(self.classes[k])}" for k in there]
        self.logger.scalars(dict(zip(tags, values[there].tolist(), strict=True)), step)

    @torch.no_grad()
    def _attention(self, model: VisionTransformer, step: int) -> None:
        images, labels, _, mask = self.loader.take(self.shown)
        task = self.loader.task
        probability, best = task.probabilities(model(images, mask)).max(dim=-1)
        pictures = pictures_of_each(self.loader.normalise.undo(images), mask)
        heats = heat_of_each(rollout(model, images, mask), mask)
        rows = [[shown, overlay(shown, heat)] for shown, heat in zip(pictures, heats, strict=True)]
        true = task.targets(labels, len(self.classes)).bool().tolist()
        own = [", ".join(compress(self.classes, row)) or "none" for row in true]
        said = zip(own, best.tolist(), (100 * probability).tolist(), strict=True)
        names = [f"{name}, said {self.classes[n]} {sure:.0f} %" for name, n, sure in said]
        sheet = grid(rows, labels_top=["image", "rollout"], labels_left=names)
        self._picture("val/attention", sheet, step)
        far = attention_distance(model, images, mask).mean(dim=1)
        curves = {f"distance/layer_{i:02}": d for i, d in enumerate(far.tolist())}
        self.logger.scalars(curves, step)

    def _picture(self, tag: str, picture: np.ndarray, step: int) -> None:
        """uint8 (height, width, 3)."""
        pixels: Tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        self.logger.images(tag, pixels, step)


def in_turn(labels: np.ndarray, count: int) -> np.ndarray:
    """Positions of `count` of N samples with these labels (N,), or of all if there are fewer: one
    of each class, then the next.
    """
    order = np.argsort(labels, kind="stable")
    firsts = np.searchsorted(labels[order], labels[order])
    turn = np.empty(len(labels), int)
    turn[order] = np.arange(len(labels)) - firsts
    return np.lexsort((labels, turn))[:count]
