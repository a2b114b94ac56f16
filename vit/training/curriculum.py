"""The curriculum: few patches of each image at the start of training, later more, at last all."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator

from vit.config.durations import parse_duration
from vit.config.resolve import Plan
from vit.config.schema import RunConfig
from vit.model.vit import VisionTransformer
from vit.training.state import flops_per_image


def rates(config: RunConfig) -> list[float]:
    """All shares of the patches that a run of these settings may drop."""
    found = {0.0, config.model.patch_dropout}
    halves, _ = parse_duration(config.schedule.half_patches_end)
    return sorted(found | ({_half(rate) for rate in found} if halves else set()))


def rate_at(config: RunConfig, plan: Plan, step: int) -> float:
    """The share of each image's patches that step number `step` drops."""
    rate = config.model.patch_dropout if step < plan.patch_dropout_end else 0.0
    return _half(rate) if step < plan.half_patches_end else rate


def segments(config: RunConfig, plan: Plan) -> Iterator[tuple[float, int]]:
    """The rates of a run's steps, in order, and of how many steps each is."""
    ends = (plan.patch_dropout_end, plan.half_patches_end, plan.steps)
    edges = sorted({0, *(min(plan.steps, math.ceil(end)) for end in ends)})
    for start, end in itertools.pairwise(edges):
        yield rate_at(config, plan, start), end - start


def _half(rate: float) -> float:
    """The rate that keeps half as many patches."""
    return 1 - (1 - rate) / 2


class Curriculum:
    """Tells `model` how many patches it is to drop, by the step."""

    def __init__(self, config: RunConfig, plan: Plan, model: VisionTransformer) -> None:
        self._config = config
        self._plan = plan
        self._model = model
        self._flops = functools.cache(functools.partial(flops_per_image, model))

    def begin(self, step: int) -> None:
        """Step number `step` comes now."""
        self._model.patch_dropout.rate = rate_at(self._config, self._plan, step)

    @property
    def rate(self) -> float:
        """The share of the patches that is dropped now."""
        return self._model.patch_dropout.rate

    def flops(self) -> int:
        """Operations of a forward pass of one image as it is seen now."""
        return self._flops(self.rate)
