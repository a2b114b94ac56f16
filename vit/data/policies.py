"""RandAugment, TrivialAugment and colour jitter: which operations an image goes through.

Drawn per image, for the *global* batch, then sliced by rank, as everything in `augment`. The
operations of the images of a batch are applied together, one kind at a time.

Legend: B batch, C channels, H height, W width, S operations one after another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vit.config.schema import AugmentConfig
from vit.data.operations import OPERATIONS
from vit.runtime.seeding import numpy_generator

BINS = 30
"""Magnitudes go from 0 to this."""
Size = tuple[int, int]
_NAMES = list(OPERATIONS)
_SIGNED = {
    "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color",
    "contrast", "sharpness",
}  # fmt: skip


@dataclass(frozen=True)
class Chain:
    """What each image goes through, on the host.

    Attributes:
        operations: positions in OPERATIONS, int64 (B, S).
        magnitudes: of each, float32 (B, S).
    """

    operations: np.ndarray
    magnitudes: np.ndarray

    def slice(self, part: slice) -> Chain:
        """The chains of some images."""
        return Chain(self.operations[part], self.magnitudes[part])


def draw(config: AugmentConfig, batch: int, size: Size, seed: int, step: int) -> Chain:
    """Draw for a global batch of `batch` images of `size` (height, width) at `step`."""
    policy = POLICIES[config.policy](config, batch, size, numpy_generator(seed, "augment", step, 6))
    jitter = _jitter(config, batch, numpy_generator(seed, "augment", step, 7))
    return Chain(
        np.concatenate([policy.operations, jitter.operations], axis=1),
        np.concatenate([policy.magnitudes, jitter.magnitudes], axis=1).astype(np.float32),
    )


def apply(images: Tensor, chain: Chain) -> Tensor:
    """Send uint8 images (B, C, H, W) through their chains."""
    for stage in range(chain.operations.shape[1]):
        images = images.clone()
        kinds = chain.operations[:, stage]
        magnitudes = torch.from_numpy(chain.magnitudes[:, stage]).to(images.device)
        for kind in np.unique(kinds):
            rows = torch.from_numpy(np.flatnonzero(kinds == kind)).to(images.device)
            changed = OPERATIONS[_NAMES[kind]](images.index_select(0, rows), magnitudes[rows])
            images.index_copy_(0, rows, changed)
    return images


def no_policy(config: AugmentConfig, batch: int, size: Size, rng: np.random.Generator) -> Chain:
    """Nothing."""
    return Chain(np.zeros((batch, 0), np.int64), np.zeros((batch, 0)))


def randaugment(config: AugmentConfig, batch: int, size: Size, rng: np.random.Generator) -> Chain:
    """`config.operations` random operations of one magnitude (Cubuk et al. 2020)."""
    shape = (batch, config.operations)
    kinds = rng.integers(len(_NAMES), size=shape)
    ranges = _ranges(size, shear=0.3, shift=150 / 331, turn=30.0, blend=0.9, bits=4)
    return Chain(kinds, _magnitudes(kinds, np.full(shape, config.magnitude), ranges, rng))


def trivialaugment(
    config: AugmentConfig, batch: int, size: Size, rng: np.random.Generator
) -> Chain:
    """One random operation of a random magnitude (TrivialAugment Wide, Mueller & Hutter 2021)."""
    kinds = rng.integers(len(_NAMES), size=(batch, 1))
    ranges = _ranges(size, shear=0.99, shift=None, turn=135.0, blend=0.99, bits=6)
    return Chain(kinds, _magnitudes(kinds, rng.integers(BINS + 1, size=(batch, 1)), ranges, rng))


POLICIES: dict[str, Callable[[AugmentConfig, int, Size, np.random.Generator], Chain]] = {
    "none": no_policy,
    "randaugment": randaugment,
    "trivialaugment": trivialaugment,
}


def _jitter(config: AugmentConfig, batch: int, rng: np.random.Generator) -> Chain:
    """Brightness, contrast and saturation by random factors, in a random order per image."""
    strength = config.color_jitter
    if strength == 0:
        return Chain(np.zeros((batch, 0), np.int64), np.zeros((batch, 0)))
    kinds = np.array([_NAMES.index(name) for name in ("brightness", "contrast", "color")])
    order = rng.random((batch, 3)).argsort(axis=1)
    return Chain(kinds[order], rng.uniform(-min(strength, 1.0), strength, (batch, 3)))


def _ranges(
    size: Size, *, shear: float, shift: float | None, turn: float, blend: float, bits: int
) -> dict[str, tuple[float, float]]:
    """What magnitudes 0 and BINS mean for each operation, as in torchvision."""
    height, width = size
    down, right = (32.0, 32.0) if shift is None else (shift * height, shift * width)
    blends = dict.fromkeys(("brightness", "color", "contrast", "sharpness"), (0.0, blend))
    return {
        "shear_x": (0.0, shear), "shear_y": (0.0, shear), "translate_x": (0.0, right),
        "translate_y": (0.0, down), "rotate": (0.0, turn), **blends,
        "posterize": (8.0, 8.0 - bits), "solarize": (255.0, 0.0),
    }  # fmt: skip


def _magnitudes(
    kinds: np.ndarray, bins: np.ndarray, ranges: dict[str, tuple[float, float]],
    rng: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """The value of each operation's magnitude; symmetric ones get a random sign."""
    low, high = np.array([ranges.get(name, (0.0, 0.0)) for name in _NAMES]).T
    values = low[kinds] + (high - low)[kinds] * bins / BINS
    values = np.where(kinds == _NAMES.index("posterize"), np.rint(values), values)
    is_signed = np.isin(kinds, [_NAMES.index(name) for name in _SIGNED])
    flips = rng.integers(2, size=kinds.shape)
    magnitudes: np.ndarray = np.where(is_signed & (flips == 1), -values, values)
    return magnitudes
