"""The curriculum: patch dropout and smaller images at the start of training."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch.nn.functional as F

from vit.config.resolve import Plan
from vit.config.schema import RunConfig, height_width
from vit.data.types import Batch
from vit.model.vit import VisionTransformer
from vit.training.state import flops_per_image


class Curriculum:
    """Drops patches and shrinks images until the schedule's step for each; `model` is told."""

    def __init__(self, config: RunConfig, plan: Plan, model: VisionTransformer) -> None:
        self._config = config
        self._plan = plan
        self._model = model
        self._size = config.data.size
        self._flops = functools.cache(functools.partial(flops_per_image, model))

    def __call__(self, batch: Batch, step: int) -> Batch:
        """The batch of step number `step` as the model is to see it."""
        config, model = self._config, self._model
        drops = step < self._plan.patch_dropout_end
        model.patch_dropout.rate = drops * config.model.patch_dropout
        small = config.schedule.small_images
        if small is None or step >= self._plan.small_images_end:
            self._size, model.interpolate_positions = config.data.size, False
            return batch
        self._size, model.interpolate_positions = height_width(small), True
        images = F.interpolate(batch.images, self._size, mode="bilinear", antialias=True)
        return replace(batch, images=images)

    @property
    def seen(self) -> tuple[float, tuple[int, int]]:
        """How the last batch is seen: the share of patches that is dropped, and the size."""
        return self._model.patch_dropout.rate, self._size

    def flops(self) -> int:
        """Operations of a forward pass of one image as the last one was seen."""
        return self._flops(*self.seen)
