"""Batches as a function of the step: `batch_at(step)` is the only clock.

Legend: N images, B global batch.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from vit.config.schema import AugmentConfig
from vit.data import augment
from vit.data.types import Batch, Samples
from vit.runtime.dist import World
from vit.runtime.seeding import numpy_generator


class Normalise:
    """uint8 pixels to what the model was trained on.

    Args:
        mean, std: one value per channel, of pixels in [0, 1].
        device: where the images will be.
    """

    def __init__(self, mean: list[float], std: list[float], device: torch.device) -> None:
        self.mean = torch.tensor(mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(std, device=device).view(-1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, C, S, S) -> float32 (B, C, S, S)."""
        return augment.normalise(images, self.mean, self.std)

    def undo(self, images: Tensor) -> Tensor:
        """Normalised images as pixels in [0, 1], for people to look at."""
        return (images * self.std + self.mean).clamp(0, 1)


class TrainLoader:
    """Augmented training batches, every one full; an epoch may end inside a batch.

    Args:
        samples: the training split, N images; decoded and moved to `device` here.
        classes: number of classes K.
        batch_size: global batch B.
        config: the augmentation.
        normalise: from pixels to the model's input.
        seed: decides order and augmentation.
        device: where the images live.
        world: which share of each global batch is ours.
        workers: processes that decode.
    """

    def __init__(
        self, samples: Samples, classes: int, batch_size: int, config: AugmentConfig,
        normalise: Normalise, seed: int, device: torch.device, world: World, workers: int,
    ) -> None:  # fmt: skip
        self.pixels = torch.from_numpy(samples.read(workers)).to(device)
        self.labels = torch.from_numpy(samples.labels).to(device)
        self.names = samples.names
        self.classes = classes
        self.batch_size = batch_size
        self.config = config
        self.normalise = normalise
        self.seed = seed
        self.device = device
        self.world = world
        self._order = lru_cache(maxsize=2)(self._shuffle)

    def __len__(self) -> int:
        return len(self.labels)

    def indices_at(self, step: int) -> np.ndarray:
        """Which images the global batch of `step` holds, int64 (B,)."""
        position = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epoch, offset = np.divmod(position, len(self))
        index = np.empty(self.batch_size, np.int64)
        for e in range(epoch[0], epoch[-1] + 1):
            index[epoch == e] = self._order(e)[offset[epoch == e]]
        return index

    def batch_at(self, step: int) -> Batch:
        """Our share of the batch that the optimiser's step number `step` (from 0) is taken on."""
        size, share = self.pixels.shape[-1], self.batch_size // self.world.size
        part = slice(self.world.rank * share, (self.world.rank + 1) * share)
        index = torch.from_numpy(self.indices_at(step)[part]).to(self.device)
        draws = augment.draw(self.config, self.batch_size, size, self.seed, step)
        draws = draws.slice(part).to(self.device)

        labels = self.labels[index]
        targets = one_hot(labels, self.classes).float()
        pad = augment.padding(self.config, size)
        images = self.normalise(augment.crop_flip(self.pixels[index], draws, pad))
        if self.config.erasing:
            images = augment.erase_boxes(images, draws)
        if self.config.mixup or self.config.cutmix:
            images, targets = augment.mix(images, targets, draws)
        return Batch(images, labels, targets)

    def _shuffle(self, epoch: int) -> np.ndarray:
        return numpy_generator(self.seed, "order", epoch).permutation(len(self))


class EvalLoader:
    """Images as they are, in order: batch k is samples [k E, (k+1) E).

    Args:
        samples: the split; decoded and moved to `device` here.
        batch_size: E.
        normalise: from pixels to the model's input.
        device: where the images live.
        workers: processes that decode.
    """

    def __init__(
        self, samples: Samples, batch_size: int, normalise: Normalise, device: torch.device,
        workers: int,
    ) -> None:  # fmt: skip
        self.pixels = torch.from_numpy(samples.read(workers)).to(device)
        self.labels = torch.from_numpy(samples.labels).to(device)
        self.names = samples.names
        self.batch_size = batch_size
        self.normalise = normalise

    def __len__(self) -> int:
        """Number of batches; the last may be short."""
        return -(-len(self.labels) // self.batch_size)

    def batch(self, k: int) -> tuple[Tensor, Tensor]:
        """Normalised images (E, C, S, S) and labels (E,) of batch `k`."""
        part = slice(k * self.batch_size, (k + 1) * self.batch_size)
        return self.normalise(self.pixels[part]), self.labels[part]
