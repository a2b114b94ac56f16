"""How many images at once the memory of the host suffices for; who takes more there is killed."""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from torch import Tensor

from vit.config.schema import TrainerConfig
from vit.errors import ConfigError
from vit.model.vit import VisionTransformer
from vit.runtime.device import autocast
from vit.runtime.dist import World
from vit.runtime.memory import available

BESIDES = 2.2
"""The process grows by up to so many times what autograd keeps of a step (measured: 1.7 to 2.1)."""
EVALUATED = 4
"""So many images can be evaluated in the memory of one that is trained on (measured: 8 to 16)."""


def within_memory(
    model: VisionTransformer, config: TrainerConfig, user_keys: frozenset[str], world: World
) -> TrainerConfig:
    """`config` with as many parts of a batch as the free memory needs, and evaluation batches that
    fit, where the user gave no numbers; for training on the CPU. The model is as before.

    Raises:
        ConfigError: the number of parts that was given is too low, or no image fits.
    """
    room, share = _images_that_fit(model, config.precision, world), config.batch_size // world.size
    fits = [n for n in range(1, share + 1) if share % n == 0 and share // n <= room]
    given = 1 if config.accumulate == "auto" else config.accumulate
    if not fits:
        raise ConfigError(
            "the free memory does not suffice for a training step of a single image; try a smaller "
            "data.image_size or model"
        )
    if given < fits[0] and config.accumulate != "auto" and "trainer.accumulate" in user_keys:
        raise ConfigError(
            f"trainer.accumulate={given} takes more memory than is free; try "
            f"trainer.accumulate={fits[0]}, or a smaller data.image_size"
        )
    evaluated = config.eval_batch_size
    if "trainer.eval_batch_size" not in user_keys:
        evaluated = min(evaluated, EVALUATED * room)
    return replace(config, accumulate=max(given, fits[0]), eval_batch_size=evaluated)


def _images_that_fit(model: VisionTransformer, precision: str, world: World) -> int:
    """Of how many images a process can compute a step at once, from what autograd keeps of one and
    two, with room for gradients and two moments of the optimiser.
    """
    known = available()
    if known is None:
        return sys.maxsize
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    one = BESIDES * _bytes_kept(model, 1, precision)
    left = known / world.local_size - 3 * trained - one
    # Two are not tried where they may not fit.
    more = BESIDES * _bytes_kept(model, 2, precision) - one if left > one else one
    return min(world.all_gather_object(0 if left < 0 else 1 + int(left / max(more, 1))))


def _bytes_kept(model: VisionTransformer, images: int, precision: str) -> int:
    """What autograd keeps of a forward pass, besides the parameters."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    noise = torch.zeros(images, model.config.channels, *model.config.image_size)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, autocast(noise.device, precision):
        _logits = model.train()(noise)  # held: places that are freed would be taken again
    return sum(size for place, size in kept.items() if place not in own)
