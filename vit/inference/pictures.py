"""Pictures of predictions: contact sheets, and heat maps of explanations.

Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vit.artifacts.predictions import Labelled
from vit.data.loader import EvalLoader
from vit.data.padding import unpadded
from vit.data.reading.reader import decode_all
from vit.data.reading.transform import Transform
from vit.data.reading.workers import WorkerPool
from vit.errors import printable
from vit.inference.explain import (
    class_attention,
    heat_of_each,
    pictures_of_each,
    relevance,
    rollout,
)
from vit.inference.load import Trained
from vit.inference.predict import answers, unlabelled
from vit.model.vit import VisionTransformer
from vit.report.drawing import card, grid, overlay, png

Method = Callable[[VisionTransformer, Tensor, Tensor, Tensor | None], Tensor]
METHODS: dict[str, Method] = {
    "rollout": lambda model, images, classes, mask: rollout(model, images, mask),
    "relevance": relevance,
    "attention": lambda model, images, classes, mask: class_attention(model, images, mask)[
        :, -1
    ].mean(dim=1),
}
"""From a model, images, the class of each and their mask to maps (B, rows, columns); see
`explain`."""

_SCALE = "least", "most"
_THUMBNAIL = 128
_CARD = 168
_MOST_LABELS = 5
_SURE, _UNSURE, _UNKNOWN = "#f4f6f8", "#fbe7bd", "#f3c9bf"
"""Grounds of the cards: the most probable label has at least, or less than, half of the
probability; there is none.
"""
_FIGURE = 224
"""The longer side of a drawn image, at least."""


@dataclass(frozen=True)
class Explained:
    """An image, what the model says of it, and where it looked.

    Attributes:
        name: of the image.
        image: what the model saw, enlarged for drawing where it is small: uint8 (H, W, 3).
        caption: the most probable class with its probability, and the class that was asked for.
        heats: of each method, in [0, 1] from its least to its most, (rows, columns).
        layers: of every head in every layer, (layers, heads, rows, columns): 0 is nothing, 1 the
            most of any head of the layer.
        most: what that is, as a multiple of what each patch would get of an even look, (layers,).
    """

    name: str
    image: np.ndarray
    caption: str
    heats: dict[str, np.ndarray]
    layers: np.ndarray
    most: np.ndarray

    def tiles(self) -> list[np.ndarray]:
        """The image, and what each method shows on it."""
        return [self.image, *(overlay(self.image, heats) for heats in self.heats.values())]

    def small_tiles(self) -> list[np.ndarray]:
        """The tiles at half their size, for an index of many images."""
        return [np.asarray(Image.fromarray(tile).reduce(2)) for tile in self.tiles()]

    def figure(self) -> np.ndarray:
        """The tiles side by side under name and caption: uint8 (H, W, 3)."""
        sheet = grid([self.tiles()], ["image", *self.heats], scales=[_SCALE])
        return self.titled(sheet)

    def titled(self, sheet: np.ndarray) -> np.ndarray:
        """A sheet under its name and its caption."""
        return titled(titled(sheet, self.caption), Path(self.name).name)

    def _repr_png_(self) -> bytes:
        """How notebooks show it."""
        return png(self.figure())

    def layers_figure(self) -> np.ndarray:
        """A row for each layer, a tile for each head: uint8 (H, W, 3)."""
        rows = [[overlay(self.image, heats) for heats in layer] for layer in self.layers]
        layers, heads = self.layers.shape[:2]
        sheet = grid(
            rows,
            [f"head {h + 1}" for h in range(heads)],
            [f"layer {n + 1}" for n in range(layers)],
            [("0", f"{most:.1f} x even") for most in self.most.tolist()],
        )
        return self.titled(sheet)


def explain(
    trained: Trained, loader: EvalLoader, methods: Sequence[str], wanted: int | None
) -> Iterator[Explained]:
    """Explain every image of `loader` that is not damaged, in order.

    Args:
        loader: the images, a few in a batch: all attention of a batch is held at once.
        methods: keys of METHODS.
        wanted: the class whose relevance is shown; None: the most probable one of each image.

    Raises:
        DataError: a worker failed.
        DivergedError: an answer is not finite.
    """
    for images, mask, index, logits in answers(trained, loader):
        chances = trained.probabilities(logits).cpu().numpy()
        best = logits.argmax(dim=-1)
        classes = best if wanted is None else torch.full_like(best, wanted)
        maps = {name: METHODS[name](trained.model, images, classes, mask) for name in methods}
        heats = {name: heat_of_each(values, mask) for name, values in maps.items()}
        layers = [
            x.cpu().numpy() for x in unpadded(class_attention(trained.model, images, mask), mask)
        ]
        pictures = pictures_of_each(loader.normalise.undo(images), mask)
        factor = max(1, -(-_FIGURE // max(images.shape[-2:])))  # each pixel becomes a square
        for i, (position, number) in enumerate(zip(index, best.tolist(), strict=True)):
            caption = _caption(trained.classes[number], chances[i, number])
            if wanted is not None:
                share = chances[i, wanted]
                caption += f"; relevance for {_caption(trained.classes[wanted], share)}"
            most = layers[i].max(axis=(1, 2, 3))
            yield Explained(
                name=loader.names[position],
                image=pictures[i].repeat(factor, 0).repeat(factor, 1),
                caption=caption,
                heats={name: values[i] for name, values in heats.items()},
                layers=layers[i] / np.maximum(most, 1e-12)[:, None, None, None],
                most=most * layers[i][0, 0].size,
            )


def seen_at(
    loader: EvalLoader, places: Sequence[int], size: int = 64
) -> Iterator[tuple[list[int], list[np.ndarray], Tensor, Tensor | None]]:
    """What the model sees of the images at some places of `loader`, `size` at a time.

    Returns:
        Of each part the places, less the damaged ones; their pictures, uint8 (H, W, 3); normalised
        images and their mask.
    """
    for first in range(0, len(places), size):
        images, _, index, mask = loader.take(np.array(places[first : first + size]))
        pictures = pictures_of_each(loader.normalise.undo(images), mask)
        yield index.tolist(), pictures, images, mask


def titled(image: np.ndarray, title: str) -> np.ndarray:
    """An image with a line above it: uint8 (H, W, 3)."""
    return grid([[image]], labels_top=[title])


def contact_sheet(images: Sequence[Labelled]) -> np.ndarray:
    """Thumbnails of image files, one at least, with name, labels and probabilities, (H, W, 3).

    What the model is not sure of and what it does not know stand on grounds of their own.
    """
    samples = unlabelled([image.name for image in images])
    # The model has seen them, however large they are.
    transform = Transform(_THUMBNAIL, _THUMBNAIL, 3, max_pixels=sys.maxsize)
    pixels, _ = decode_all(samples, transform, WorkerPool(0, 60))
    told = [_told(image) for image in images]
    most = max(len(lines) for lines, _ in told)
    tiles = [
        card(
            thumbnail.transpose(1, 2, 0), _CARD,
            [Path(image.name).name, *lines, *[""] * (most - len(lines))], tone,
        )
        for thumbnail, image, (lines, tone) in zip(pixels, images, told, strict=True)
    ]  # fmt: skip
    columns = math.ceil(math.sqrt(len(tiles)))
    return grid([tiles[i : i + columns] for i in range(0, len(tiles), columns)])


def _told(image: Labelled) -> tuple[list[str], str]:
    """The labels, or all that it is given of several, or its whole set; and the ground of it."""
    if image.unknown:
        return ["unknown"], _UNKNOWN
    if image.given is not None:
        return [printable(", ".join(image.given)) or "no label"], _SURE
    shown = image.labels[:_MOST_LABELS]
    lines = [_caption(*label) for label in shown]
    named = {name for name, _ in shown}
    others = [printable(name) for name in image.set or [] if name not in named]
    if others:
        lines.append(f"or {', '.join(others)}")
    return lines, _SURE if image.labels[0][1] >= 0.5 else _UNSURE


def _caption(label: str, probability: float) -> str:
    """The number first: it is not cut off."""
    return f"{100 * probability:.0f} % {printable(label)}"
