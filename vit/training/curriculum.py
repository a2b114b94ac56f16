"""The curriculum: patch dropout and smaller images at the start of training."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import torch.nn.functional as F

from vit.config.resolve import Plan
from vit.config.schema import RunConfig, height_width
from vit.data.types import Batch
from vit.model.vit import VisionTransformer
from vit.training.state import flops_per_image

Seen = tuple[float, tuple[int, int]]
"""How the images of a step are seen: the share of patches that is dropped, height and width."""


def kinds(config: RunConfig) -> list[Seen]:
    """All that a run of these settings may come to."""
    small = config.schedule.small_images
    sizes = [config.data.size, *([] if small is None else [height_width(small)])]
    return list(itertools.product(sorted({0.0, config.model.patch_dropout}), sizes))


def seen_at(config: RunConfig, plan: Plan, step: int) -> Seen:
    """How step number `step` sees its images."""
    small = config.schedule.small_images
    is_small = small is not None and step < plan.small_images_end
    size = height_width(small) if is_small and small is not None else config.data.size
    return (step < plan.patch_dropout_end) * config.model.patch_dropout, size


def segments(config: RunConfig, plan: Plan) -> Iterator[tuple[Seen, int]]:
    """The kinds of a run's steps, in order, and how many there are of each."""
    ends = (plan.patch_dropout_end, plan.small_images_end, plan.steps)
    edges = sorted({0, *(min(plan.steps, math.ceil(end)) for end in ends)})
    for start, end in itertools.pairwise(edges):
        yield seen_at(config, plan, start), end - start


class Curriculum:
    """Drops patches and shrinks images until the schedule's step for each; `model` is told.

    Attributes:
        seen: how the last batch is seen.
    """

    def __init__(self, config: RunConfig, plan: Plan, model: VisionTransformer) -> None:
        self._config = config
        self._plan = plan
        self._model = model
        self.seen: Seen = (config.model.patch_dropout, config.data.size)
        self._flops = functools.cache(functools.partial(flops_per_image, model))

    def __call__(self, batch: Batch, step: int) -> Batch:
        """The batch of step number `step` as the model is to see it."""
        return self.show(batch, seen_at(self._config, self._plan, step))

    def show(self, batch: Batch, seen: Seen) -> Batch:
        """The batch as the model is to see it, which is told."""
        self.seen = rate, size = seen
        self._model.patch_dropout.rate = rate
        self._model.interpolate_positions = size != self._config.data.size
        if not self._model.interpolate_positions:
            return batch
        images = F.interpolate(batch.images, size, mode="bilinear", antialias=True)
        return replace(batch, images=images)

    def flops(self) -> int:
        """Operations of a forward pass of one image as the last one was seen."""
        return self._flops(*self.seen)
