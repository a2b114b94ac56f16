"""Augmentation policies: RandAugment, TrivialAugment, AutoAugment, 3-Augment, colour jitter.

Drawn per image, for the *global* batch, then sliced by rank, as everything in `augment`. The images
of a batch are sorted by their operations, and those of a family are changed together.

Legend: B batch, C channels, H height, W width, S operations one after another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from vit.config.plugins import part
from vit.config.schema import AugmentConfig
from vit.data.augment.operations import FAMILIES, NUMBERS, numbers
from vit.runtime.seeding import numpy_generator

BINS = 30
"""Magnitudes go from 0 to this."""
Size = tuple[int, int]
NAMES = [
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color",
    "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize", "invert",
    "grayscale", "blur",
]  # fmt: skip
"""The operations by number."""
_SPACE = 14
"""RandAugment and TrivialAugment draw from the first so many of them."""
_SORTED = [name for family in FAMILIES for name in family.rows]
_RANK = np.array([_SORTED.index(name) for name in NAMES])
_SIGNED = {
    "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color",
    "contrast", "sharpness",
}  # fmt: skip


@dataclass(frozen=True)
class Chain:
    """What each image goes through, on the host.

    Attributes:
        operations: positions in NAMES, int64 (B, S).
        magnitudes: of each, float32 (B, S).
    """

    operations: np.ndarray
    magnitudes: np.ndarray

    def slice(self, part: slice) -> Chain:
        """The chains of some images."""
        return Chain(self.operations[part], self.magnitudes[part])


def draw(config: AugmentConfig, batch: int, size: Size, seed: int, step: int) -> Chain:
    """Draw for a global batch of `batch` images of `size` (height, width) at `step`."""
    chosen = part(POLICIES, "augment", config.policy, config.options)
    policy = chosen(config, batch, size, numpy_generator(seed, "augment", step, 6))
    jitter = _jitter(config, batch, numpy_generator(seed, "augment", step, 7))
    return Chain(
        np.concatenate([policy.operations, jitter.operations], axis=1),
        np.concatenate([policy.magnitudes, jitter.magnitudes], axis=1).astype(np.float32),
    )


@dataclass(frozen=True)
class Plan:
    """Chains as `apply` takes them: what the device is sent, and how many images do what.

    Attributes:
        rows: for each stage which images come one after another, as positions in the order of the
            stage before; at last in the batch's own order: int64 (S + 1, B).
        numbers: what families are told of the images of each stage, float32 (S, B, NUMBERS).
        counts: images of each operation, in the order of FAMILIES, int64 (S, operations).
    """

    rows: np.ndarray
    numbers: np.ndarray
    counts: np.ndarray


def plan(chain: Chain, channels: int, size: Size) -> Plan:
    """Sort images of so many channels, and of `size` (height, width), by their operations."""
    as_it_is = ["color"] * (channels == 1) + ["sharpness"] * (min(size) <= 2)
    kinds = chain.operations.T.copy()
    kinds[np.isin(kinds, [NAMES.index(name) for name in as_it_is])] = NAMES.index("identity")
    orders = np.argsort(_RANK[kinds], axis=1, kind="stable")  # S B
    here = np.arange(len(chain.operations))
    told = np.empty((*orders.shape, NUMBERS), np.float32)
    rows = []
    for stage, order in enumerate(orders):
        rows.append(np.argsort(here)[order])
        here = order
        magnitudes, of = chain.magnitudes[order, stage], kinds[stage, order]
        for kind in np.unique(of):
            told[stage, of == kind] = numbers(NAMES[kind], magnitudes[of == kind], size)
    counts = np.array([np.bincount(_RANK[of], minlength=len(NAMES)) for of in kinds])
    return Plan(np.stack([*rows, np.argsort(here)]), told, counts)


def apply(images: Tensor, counts: np.ndarray, rows: Tensor, told: Tensor) -> Tensor:
    """Send uint8 images (B, C, H, W) through chains: a `Plan`, two of its arrays on the device."""
    for stage, order, of in zip(counts, rows, told, strict=False):
        images = images.index_select(0, order)
        start, first, changed = 0, 0, []
        for family in FAMILIES:
            own = stage[first : first + len(family.rows)].tolist()
            first, end = first + len(own), start + sum(own)
            if start < end:
                changed.append(family.apply(images[start:end], of[start:end], own))
            start = end
        images = torch.cat(changed)
    return images.index_select(0, rows[-1]) if len(counts) else images


def no_policy(config: AugmentConfig, batch: int, size: Size, rng: np.random.Generator) -> Chain:
    """Nothing."""
    return Chain(np.zeros((batch, 0), np.int64), np.zeros((batch, 0)))


def randaugment(config: AugmentConfig, batch: int, size: Size, rng: np.random.Generator) -> Chain:
    """`config.operations` random operations of one magnitude (Cubuk et al. 2020)."""
    shape = (batch, config.operations)
    kinds = rng.integers(_SPACE, size=shape)
    return Chain(kinds, _magnitudes(kinds, np.full(shape, config.magnitude), _ranges(size), rng))


def trivialaugment(
    config: AugmentConfig, batch: int, size: Size, rng: np.random.Generator
) -> Chain:
    """One random operation of a random magnitude (TrivialAugment Wide, Mueller & Hutter 2021)."""
    kinds = rng.integers(_SPACE, size=(batch, 1))
    ranges = _ranges(size, shear=0.99, shift=None, turn=135.0, blend=0.99, bits=6)
    return Chain(kinds, _magnitudes(kinds, rng.integers(BINS + 1, size=(batch, 1)), ranges, rng))


def autoaugment(config: AugmentConfig, batch: int, size: Size, rng: np.random.Generator) -> Chain:
    """One of the 25 pairs of operations found for CIFAR-10 (Cubuk et al. 2019, table 7)."""
    pairs, odds, bins = _autoaugment_pairs()
    chosen = rng.integers(len(pairs), size=batch)
    kinds = pairs[chosen]
    magnitudes = _magnitudes(kinds, bins[chosen] * BINS / 9, _ranges(size), rng)
    kinds[rng.random(kinds.shape) >= odds[chosen]] = NAMES.index("identity")
    return Chain(kinds, magnitudes)


def three_augment(config: AugmentConfig, batch: int, size: Size, rng: np.random.Generator) -> Chain:
    """Gray, solarised or blurred, at even odds (3-Augment, Touvron et al. 2022, section 3.4).

    The paper adds augment.color_jitter=0.3.
    """
    kinds = np.array([NAMES.index(name) for name in ("grayscale", "solarize", "blur")])
    chosen = rng.integers(3, size=(batch, 1))
    deviations = rng.uniform(0.1, 2.0, size=(batch, 1))
    magnitudes = np.where(chosen == 2, deviations, 128.0)
    return Chain(kinds[chosen], magnitudes)


POLICIES: dict[str, Callable[[AugmentConfig, int, Size, np.random.Generator], Chain]] = {
    "none": no_policy,
    "randaugment": randaugment,
    "trivialaugment": trivialaugment,
    "autoaugment": autoaugment,
    "three_augment": three_augment,
}


@lru_cache
def _autoaugment_pairs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Operations, probabilities and strengths from 0 to 9, by torchvision: each (25, 2)."""
    from torchvision.transforms.autoaugment import AutoAugment, AutoAugmentPolicy

    number = {name.replace("_", ""): NAMES.index(name) for name in NAMES}
    pairs = AutoAugment(AutoAugmentPolicy.CIFAR10).policies
    said = [[(number[n.lower()], odds, bins or 0) for n, odds, bins in pair] for pair in pairs]
    kinds, odds, bins = np.moveaxis(np.array(said), -1, 0)
    return kinds.astype(np.int64), odds, bins


def _jitter(config: AugmentConfig, batch: int, rng: np.random.Generator) -> Chain:
    """Brightness, contrast and saturation by random factors, in a random order per image."""
    strength = config.color_jitter
    if strength == 0:
        return Chain(np.zeros((batch, 0), np.int64), np.zeros((batch, 0)))
    kinds = np.array([NAMES.index(name) for name in ("brightness", "contrast", "color")])
    order = rng.random((batch, 3)).argsort(axis=1)
    return Chain(kinds[order], rng.uniform(-min(strength, 1.0), strength, (batch, 3)))


def _ranges(
    size: Size, *, shear: float = 0.3, shift: float | None = 150 / 331, turn: float = 30.0,
    blend: float = 0.9, bits: int = 4,
) -> dict[str, tuple[float, float]]:  # fmt: skip
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
    low, high = np.array([ranges.get(name, (0.0, 0.0)) for name in NAMES]).T
    values = low[kinds] + (high - low)[kinds] * bins / BINS
    values = np.where(kinds == NAMES.index("posterize"), np.rint(values), values)
    is_signed = np.isin(kinds, [NAMES.index(name) for name in _SIGNED])
    flips = rng.integers(2, size=kinds.shape)
    magnitudes: np.ndarray = np.where(is_signed & (flips == 1), -values, values)
    return magnitudes
