"""Reading a split: the transform, in memory or streaming, and what a corrupt image means.

Legend: B images of a batch, C channels, N images of a split.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vit.config.schema import ReadConfig
from vit.data.reading.cache import CachedImages, CacheSpec
from vit.data.reading.store import BatchRequest, ImageStore, InMemory, Streaming
from vit.data.reading.transform import Transform
from vit.data.reading.workers import Corrupt, WorkerPool, worker_count
from vit.data.types import FileImages, Samples
from vit.errors import DataError, shortened
from vit.runtime import console
from vit.runtime.dist import ALONE, World
from vit.runtime.files import image_cache

_ROWS = 256


class Normalise:
    """uint8 pixels to what the model was trained on.

    Args:
        mean, std: one value per channel, of pixels in [0, 1].
        device: where the images will be.

    Attributes:
        colour: the mean colour, uint8 (C, 1, 1).
    """

    def __init__(self, mean: list[float], std: list[float], device: torch.device) -> None:
        self.mean = torch.tensor(mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(std, device=device).view(-1, 1, 1)
        self.colour = (255 * self.mean).round().clamp(0, 255).to(torch.uint8)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, C, height, width) -> float32 (pixel / 255 - mean) / std."""
        return images.float().sub_(255 * self.mean).div_(255 * self.std)  # one copy, not three

    def undo(self, images: Tensor) -> Tensor:
        """Normalised images as pixels in [0, 1], for people to look at."""
        return (images * self.std + self.mean).clamp(0, 1)


class CorruptImages:
    """The images of a split that turned out damaged, and whether that may be.

    Args:
        names: of all images of the split.
        share: of them may be damaged, one of however few; None: not one.
    """

    def __init__(self, names: Sequence[str], share: float | None) -> None:
        self.names = names
        self.allowed = None if share is None else allowed_of(share, len(names))
        self.reasons: dict[int, str] = {}
        self._told: set[int] = set()

    def named(self) -> dict[str, str]:
        """The damaged images by name, with the reasons."""
        return {self.names[i]: self.reasons[i] for i in sorted(self.reasons)}

    def news(self) -> dict[str, str]:
        """Those that this was not told before, by name, with the reasons."""
        fresh = sorted(self.reasons.keys() - self._told)
        self._told |= set(fresh)
        return {self.names[i]: self.reasons[i] for i in fresh}

    def note(self, bad: Mapping[int, str]) -> None:
        """Remember damaged images by position, unless they end the run.

        Raises:
            DataError: naming them, up to ten: they are not to be skipped, or too many.
        """
        reasons = {**self.reasons, **bad}
        if not bad or (self.allowed is not None and len(reasons) <= self.allowed):
            self.reasons = reasons
            return
        listed = sorted(reasons)
        shown = shortened([f"{self.names[i]} ({reasons[i]})" for i in listed], 10)
        limit = f"data.bad_image_limit={share_of(len(listed), len(self.names))}"
        allowed, skip = "", f"skip them with data.on_bad_image=skip {limit}"
        if self.allowed is not None:
            allowed = f", {self.allowed} allowed by data.bad_image_limit"
            skip = f"allow them with {limit}"
        raise DataError(
            f"{len(listed)} of {len(self.names)} images cannot be decoded{allowed}; repair or "
            f"remove them, or {skip}: {shown}"
        )


def allowed_of(share: float, images: int) -> int:
    """How many of a split's images `data.bad_image_limit` lets go; one of however few."""
    return max(math.floor(share * images + 1e-9), int(share > 0))


def share_of(count: int, images: int) -> float:
    """The smallest `data.bad_image_limit`, in whole percent, that lets `count` images go."""
    return math.ceil(100 * count / images) / 100


@dataclass(frozen=True)
class Reader:
    """How images are read.

    Attributes:
        transform: what evaluation sees of an image.
        normalise: from pixels to the model's input.
        device: where the images go.
        held: decoded once and held on the device, or streamed from their files.
        pool: decodes.
        world: the processes of this machine hold images in common.
        bad_images: share of a split's images that may be damaged; None: not one.
    """

    transform: Transform
    normalise: Normalise
    device: torch.device
    held: bool
    pool: WorkerPool
    bad_images: float | None
    world: World = ALONE

    @classmethod
    def of(
        cls, config: ReadConfig, patch: int, device: torch.device, world: World = ALONE
    ) -> Reader:
        """The reader that settings describe, for a model with patches of `patch` px."""
        held = config.memory == "device"  # decoded by one process for all of a machine
        workers = worker_count(config.workers, world.local_size, alone=held)
        return cls(
            transform=Transform(
                *config.size,
                len(config.mean),
                config.center_crop,
                patch=patch if config.aspect == "native" else None,
                max_pixels=config.max_pixels,
            ),
            normalise=Normalise(config.mean, config.std, device),
            device=device,
            held=held,
            pool=WorkerPool(workers, config.timeout),
            world=world,
            bad_images=config.bad_image_limit if config.on_bad_image == "skip" else None,
        )

    def with_cache(self, splits: dict[str, Samples], config: ReadConfig) -> dict[str, Samples]:
        """The splits, read from small versions of their images where `data.cache` wants them.

        What is missing or damaged is made here, by one process of each machine with the workers of
        all, which wait for it; of damage it warns.

        Raises:
            DataError: a worker died or hangs.
            ConfigError: the folder cannot be written.
            DiskFullError: no space.
        """
        spec = CacheSpec.of(config)
        if spec is None:
            return splits
        folder = image_cache(config.cache_dir)
        listed = {id(samples.images): samples.images for samples in splits.values()}
        kept: dict[int, CachedImages] = {}
        all_workers = worker_count(config.workers, self.world.local_size, alone=True)
        pool = WorkerPool(all_workers if self.pool.workers else 0, self.pool.timeout)
        for turn in (True, False):  # the first process of a machine makes what the others find
            if turn == (self.world.local_rank == 0):
                for key, images in listed.items():
                    if isinstance(images, FileImages):
                        kept[key] = CachedImages(images, folder, spec, pool, check=turn)
            pool.stop()
            self.world.barrier()
        return {
            split: replace(samples, images=kept.get(id(samples.images), samples.images))
            for split, samples in splits.items()
        }

    def open(
        self, samples: Samples, rows: int, transform: Transform, bad: CorruptImages
    ) -> ImageStore:
        """The store of a split; images to be held are decoded here.

        Args:
            samples: the split.
            rows: most images of a batch.
            transform: from an image to pixels.
            bad: is told the damaged images, of a held split at once.
        """
        damaged: Corrupt = {}
        if isinstance(samples.images, np.ndarray):
            pixels = of_size(samples.images[samples.index], transform)
        elif self.held:
            pixels, damaged = self.world.array_once_per_machine(
                lambda: decode_all(samples, transform, self.pool)
            )
            bad.note(damaged)
        else:
            return Streaming(samples.images, samples.index, rows, transform, self.pool, self.device)
        return InMemory(torch.from_numpy(pixels).to(self.device), damaged, transform)


def of_size(pixels: np.ndarray, transform: Transform) -> np.ndarray:
    """Images (N, C, height, width) at the size of `transform`: those of another size are resized.

    Then they cover it and keep the middle, as images in files.
    """
    if pixels.shape[2:] == (transform.height, transform.width):
        return pixels
    whole = replace(transform, center_crop=1.0)
    return np.stack([whole.render(image) for image in pixels.transpose(0, 2, 3, 1)])


def decode_all(
    samples: Samples, transform: Transform, pool: WorkerPool
) -> tuple[np.ndarray, Corrupt]:
    """All images of a split in files, without random crops.

    Returns:
        uint8 (N, C, height, width), and the damaged ones by position.
    """
    pixels = np.empty((len(samples), *transform.shape), np.uint8)
    bad: Corrupt = {}
    for positions, rows, damaged in _in_order(samples, transform, pool, "decoding"):
        pixels[positions] = rows
        bad |= damaged
    return pixels, bad


def verify(samples: Samples, reader: Reader) -> Corrupt:
    """Decode all images of a split, keep none, and give the damaged ones by position."""
    if isinstance(samples.images, np.ndarray):
        return {}
    decoded = _in_order(samples, reader.transform, reader.pool, "verifying")
    return {position: why for _, _, damaged in decoded for position, why in damaged.items()}


def refuse_damage(found: Iterable[tuple[Samples, Corrupt]], share: float | None) -> None:
    """Let damaged images of splits pass, if `share` of each may be damaged; see `CorruptImages`.

    Raises:
        DataError: naming those of all splits that may not be.
    """
    problems = []
    for samples, damaged in found:
        try:
            CorruptImages(samples.names, share).note(damaged)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)


def _in_order(
    samples: Samples, transform: Transform, pool: WorkerPool, what: str
) -> Iterator[tuple[np.ndarray, np.ndarray, Corrupt]]:
    """Positions of images, their pixels and the damaged ones, batch by batch, with a bar."""
    assert isinstance(samples.images, FileImages)
    count = len(samples)
    store = Streaming(
        samples.images, samples.index, _ROWS, transform, pool.for_images(count), torch.device("cpu")
    )
    parts = [np.arange(start, min(start + _ROWS, count)) for start in range(0, count, _ROWS)]
    with console.progress(total=count, desc=what) as bar:
        for k in range(-store.ahead, len(parts)):
            if k + store.ahead < len(parts):
                store.submit(k + store.ahead, BatchRequest(parts[k + store.ahead]))
            if k >= 0:
                rows, damaged = store.collect(k, BatchRequest(parts[k]))
                yield parts[k], rows.numpy(), {int(parts[k][r]): why for r, why in damaged.items()}
                bar.update(len(rows))
