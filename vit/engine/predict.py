"""Labels for images that have none: the classes that a trained model finds most probable.

Legend: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch

from vit.artifacts.labels import Labelled
from vit.data.cache import Recipe
from vit.data.loader import EvalLoader
from vit.data.reader import POOL_FROM, Reader
from vit.data.unlabelled import unlabelled
from vit.engine.restore import Trained
from vit.runtime.device import autocast


def open_images(
    trained: Trained,
    paths: Sequence[str],
    device: torch.device,
    workers: int | Literal["auto"] = 0,
    batch_size: int | None = None,
) -> EvalLoader:
    """Images as the run's own evaluation sees its images; the damaged ones are left out.

    Args:
        trained: the model.
        paths: of the files, which are the images' names.
        device: where the images go.
        workers: processes that decode, where there are many images.
        batch_size: images of a batch; None: the run's own.

    Raises:
        ConfigError: how the run read its images is not of this version.
    """
    config = replace(trained.read_config(), workers=workers if len(paths) >= POOL_FROM else 0)
    reader = replace(Reader.of(config, trained.model.config.patch_size, device), bad_images=1.0)
    recipe = None
    if config.cache != "none":
        recipe = Recipe(config.cache, config.cache_size, len(config.mean), config.max_pixels)
    size = batch_size or trained.evaluation["batch_size"]
    return EvalLoader(unlabelled(paths, recipe), size, reader)


@torch.no_grad()
def classify(
    trained: Trained, loader: EvalLoader, device: torch.device, top: int
) -> Iterator[Labelled]:
    """The `top` most probable classes of each image of `loader` (or all K), in order.

    What is damaged is missing, and in `loader.bad`.

    Raises:
        DataError: a worker failed.
        DivergedError: an answer is not finite.
    """
    for images, _, index, mask in loader:
        if not len(index):
            continue
        with autocast(device, trained.evaluation["precision"]):
            logits = trained.model.forward(images, mask)
        logits = logits.float()
        trained.check(logits)
        best = logits.topk(min(top, logits.shape[1])).indices
        chances = logits.softmax(dim=-1).gather(1, best)
        for position, numbers, share in zip(index, best.tolist(), chances.tolist(), strict=True):
            labels = [trained.classes[number] for number in numbers]
            yield loader.names[position], list(zip(labels, share, strict=True))
