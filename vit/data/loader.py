"""Batches as a function of the step: `batch_at(step)` is the only clock.

Legend: N images, B global batch, E evaluation batch.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vit.config.schema import AugmentConfig
from vit.data.augment import batch as augment
from vit.data.augment import policies
from vit.data.padding import split_padding, zero_padding
from vit.data.reading.cache import CachedImages
from vit.data.reading.decode import sizes_of
from vit.data.reading.reader import CorruptImages, Reader
from vit.data.reading.store import BatchRequest
from vit.data.reading.transfer import Transfer
from vit.data.reading.transform import Transform
from vit.data.reading.workers import Corrupt, WorkerPool
from vit.data.sampler import Sampler, class_weights
from vit.data.task import ONE_LABEL, task_of
from vit.data.types import Batch, FileImages, Samples
from vit.errors import DataError
from vit.runtime.dist import ALONE, World

_LARGER = 1.25
"""So much larger is worth reading files again."""
Change = Callable[[Tensor, np.ndarray], Tensor]
"""uint8 images (E, C, height, width) and their positions in the split (E,) -> such images."""
Shown = tuple[Tensor, Tensor, np.ndarray, Tensor | None]
"""Normalised images (E, C, height, width), labels (E,) or (E, K), positions in the split (E,), and
which patches exist, bool (E, patches); None: all do."""


class Loader:
    """Batches of a split by number, each planned once and asked for ahead of its use.

    Args:
        samples: the split.
        reader: how the images are read.
        transform: from an image to pixels.
        rows: most images of a batch of ours.
        batches: how many there are; None: without end.

    Attributes:
        task: what its labels are.
        waited: seconds until images were there that were not when they were asked for.
    """

    def __init__(
        self, samples: Samples, reader: Reader, transform: Transform, rows: int, batches: int | None
    ) -> None:
        self.names = samples.names
        self.reader = reader
        self.device = reader.device
        self.normalise = reader.normalise
        self.task = task_of(samples.labels)
        self.labels = torch.from_numpy(samples.labels).to(reader.device)
        self.corrupt = CorruptImages(samples.names, reader.bad_images)
        self.store = reader.open(samples, rows, transform, self.corrupt)
        self.batches = batches
        self.waited = 0.0
        self._submitted: dict[int, BatchRequest] = {}

    def request_at(self, k: int) -> BatchRequest:
        """What batch number `k` holds."""
        raise NotImplementedError

    def _plan(self, k: int) -> BatchRequest:
        """What batch number `k` holds; best asked for in order: later ones are rendered ahead."""
        last = k + self.store.ahead
        if self.batches is not None:
            last = min(last, self.batches - 1)
        for number in self._submitted.keys() - set(range(k, last + 1)):
            del self._submitted[number]
        try:
            for number in range(k, last + 1):
                if number not in self._submitted:
                    request = self.request_at(number)
                    self.store.submit(number, request)
                    self._submitted[number] = request
            return self._submitted.pop(k)
        except DataError:
            self._submitted.clear()
            raise

    def _collect(
        self, k: int, request: BatchRequest, sent: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Corrupt]:
        """Batch number `k`, which was planned: see `ImageStore.collect`."""
        start = time.perf_counter()
        try:
            return self.store.collect(k, request, sent)
        except DataError:
            self._submitted.clear()
            raise
        finally:
            self.waited += time.perf_counter() - start


class TrainLoader(Loader):
    """Augmented training batches, every one full; an epoch may end inside a batch.

    Args:
        samples: the training split, N images.
        classes: number of classes.
        batch_size: global batch B.
        config: the augmentation.
        balance: `none`, `sampler` (classes are drawn equally often) or `loss` (they weigh equally;
            of several labels `Loss` sees to that).
        seed: decides order and augmentation.
        reader: how the images are read.
        world: which share of each global batch is ours.
        mix_end: no mixup and cutmix from this step on.
    """

    def __init__(
        self, samples: Samples, classes: int, batch_size: int, config: AugmentConfig, balance: str,
        seed: int, reader: Reader, world: World, mix_end: float = math.inf,
    ) -> None:  # fmt: skip
        share = batch_size // world.size
        low, high = config.crop_scale
        scale = (low, high) if config.crop == "resized" else None
        transform = replace(reader.transform, center_crop=1.0, crop_scale=scale)
        super().__init__(samples, reader, transform, share, None)
        self.classes = classes
        self.batch_size = batch_size
        self.config = config
        self.seed = seed
        self.mix_end = mix_end
        self.size = (reader.transform.height, reader.transform.width)
        self.order = Sampler(samples.labels, seed, balance == "sampler")
        self.part = slice(world.rank * share, (world.rank + 1) * share)
        weights = samples.weights
        if balance == "loss" and self.task is ONE_LABEL:
            own = class_weights(samples.labels, classes)[samples.labels]
            weights = own if weights is None else own * weights
        self.features: Tensor | None = None
        self._known = {"labels": samples.labels}
        if weights is not None:
            self._known["weights"] = weights
        self._send = Transfer(self.device)
        self._thread = ThreadPoolExecutor(1, "draws")
        self._next: dict[int, Future[tuple[dict[str, np.ndarray], policies.Plan]]] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def close(self) -> None:
        """End the workers."""
        self._thread.shutdown()
        self.reader.pool.stop()

    def indices_at(self, step: int) -> np.ndarray:
        """Which images the global batch of `step` holds, int64 (B,).

        With `augment.repeats` every image comes so often in a row of the stream, and within a
        batch not beside itself, where mixup would find it.
        """
        number = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        place, turn = np.divmod(number, self.config.repeats)
        images = self.order.positions(int(place[0]), int(place[-1]) + 1)
        index: np.ndarray = images[(place - place[0])[np.argsort(turn, kind="stable")]]
        return index

    def request_at(self, k: int) -> BatchRequest:
        """Which images our share of step `k` holds, and how they are cropped."""
        crop_uniforms = augment.draw_crops(self.config, self.batch_size, self.seed, k)
        return BatchRequest(self.indices_at(k), crop_uniforms).part(self.part)

    def batch_at(self, step: int) -> Batch:
        """Our share of the batch that the optimiser's step number `step` (from 0) is taken on.

        Raises:
            DataError: an image is damaged and may not be, or a worker failed.
        """
        if self.features is not None:
            index = self.indices_at(step)[self.part]
            sent = self._send({"positions": index, **self._known_of(index)})
            images = self.features[sent["positions"]]
            targets = self.task.targets(sent["labels"], self.classes)
            return Batch(images, sent["labels"], targets, weights=sent.get("weights"))
        request = self._plan(step)
        arrays, plan = self._drawn(step)
        sent = self._send(
            {
                **self.store.arrays(request), **arrays, "rows": plan.rows,
                "numbers": plan.numbers, **self._known_of(request.positions),
            }
        )  # fmt: skip
        draws = augment.Draws(**{name: sent[name] for name in arrays})
        pixels, known = self._pixels(step, request, sent)
        pixels, mask = split_padding(pixels, self.reader.transform.patch, self.normalise.colour)

        targets = self.task.targets(known["labels"], self.classes)
        weights = known.get("weights")
        pixels = augment.crop_flip(pixels, draws, augment.padding(self.config, self.size), mask)
        pixels = policies.apply(pixels, plan.counts, sent["rows"], sent["numbers"])
        images = self.normalise(pixels)
        if self.config.erasing:
            images = augment.erase_boxes(images, draws)
        images = zero_padding(images, mask)
        if (self.config.mixup or self.config.cutmix) and step < self.mix_end:
            if weights is None:
                images, targets = augment.mix(images, targets, draws, mask)
            else:
                images, targets, weights = augment.mix_weighted(
                    images, targets, weights, draws, mask
                )
            mask = None if mask is None else augment.mixed_mask(mask, draws)
        return Batch(images, known["labels"], targets, mask, weights)

    def _drawn(self, step: int) -> tuple[dict[str, np.ndarray], policies.Plan]:
        """What is drawn for our share; on a GPU, while the step before is still under way."""
        known = self._next.pop(step, None)
        drawn = self._draw(step) if known is None else known.result()
        if self.device.type != "cpu":
            self._next = {step + 1: self._thread.submit(self._draw, step + 1)}
        return drawn

    def _draw(self, step: int) -> tuple[dict[str, np.ndarray], policies.Plan]:
        draws = augment.draw(self.config, self.batch_size, self.size, self.seed, step)
        chain = policies.draw(self.config, self.batch_size, self.size, self.seed, step)
        channels = self.reader.transform.channels
        plan = policies.plan(chain.slice(self.part), channels, self.size)
        return draws.arrays(self.part), plan

    def see_once(
        self, images: EvalLoader, features: Callable[[Tensor, Tensor | None], Tensor]
    ) -> None:
        """Compute what all later batches hold in place of images.

        Args:
            images: those of this split, as evaluation sees them; a damaged one gives way to the
                next.
            features: images (E, C, height, width) and their mask -> (E, D).

        Raises:
            DataError: an image is damaged and may not be, or a worker failed.
        """
        found, good = [], []
        for pixels, _, index, mask in images:
            found.append(features(pixels, mask))
            good.append(index)
        self.corrupt.note(images.corrupt.reasons)
        place = np.searchsorted(np.concatenate(good), np.arange(len(self)))
        computed = torch.cat(found)
        self.features = computed[torch.from_numpy(place % len(computed)).to(self.device)]

    def _known_of(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """What is known of images: their labels, and their weights in the loss."""
        return {name: values[index] for name, values in self._known.items()}

    def _pixels(
        self, step: int, request: BatchRequest, sent: Mapping[str, Tensor]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Pixels of our share, and what is known of them: a damaged image gives way to the next."""
        pixels, bad = self._collect(step, request, sent)
        if not bad:
            return pixels, sent
        index = request.positions.copy()
        for row in bad:
            damaged: Corrupt = {0: bad[row]}
            while damaged:
                self.corrupt.note({int(index[row]): damaged[0]})
                index[row] = (index[row] + 1) % len(self)
                other = replace(request, positions=index).part(slice(row, row + 1))
                pixel, damaged = self.store.render(other)
            pixels[row] = pixel[0]
        return pixels, self._send(self._known_of(index))


class EvalLoader(Loader):
    """Images as they are, in order: batch k is samples [k E, (k+1) E), less the damaged ones.

    To iterate over it gives our batches.

    Of W processes, number r takes the batches r, r + W, r + 2 W, ...

    Args:
        samples: the split.
        batch_size: E.
        reader: how the images are read.
        world: the processes that share the batches.
    """

    def __init__(
        self, samples: Samples, batch_size: int, reader: Reader, world: World = ALONE
    ) -> None:
        total = -(-len(samples) // batch_size)
        ours = len(range(world.rank, total, world.size))
        super().__init__(samples, reader, reader.transform, batch_size, ours)
        self.samples = samples
        self.world = world
        self.batch_size = batch_size
        self.change: Change | None = None

    def __len__(self) -> int:
        """Number of rounds in which every process takes a batch, or none in the last."""
        return -(-len(self.labels) // (self.batch_size * self.world.size))

    def __iter__(self) -> Iterator[Shown]:
        assert self.batches is not None
        return map(self.batch, range(self.batches))

    def request_at(self, k: int) -> BatchRequest:
        """The samples of our batch in round `k`."""
        start = (k * self.world.size + self.world.rank) * self.batch_size
        return BatchRequest(np.arange(start, min(start + self.batch_size, len(self.labels))))

    def dummy_batch(self) -> Tensor:
        """One black image, for a process that must take part without a batch."""
        transform = self.reader.transform
        return torch.zeros(
            1, transform.channels, transform.height, transform.width, device=self.device
        )

    def with_transform(self, change: Change) -> EvalLoader:
        """A loader of the same images, changed before they are normalised."""
        other = copy.copy(self)
        other.change = change
        return other

    def enlarged(self, side: int) -> EvalLoader:
        """The same parts of the same images for people to look at: up to `side` px, as far as their
        files have so many. What is in no file stays as the model sees it.
        """
        images = self.samples.images
        if isinstance(images, CachedImages):
            images = images.images
        if not isinstance(images, FileImages):
            return self
        samples = replace(self.samples, images=images)
        seen, sizes = self.reader.transform, sizes_of(samples)
        there = float(np.median(sizes.min(axis=1))) if len(sizes) else 0
        factor = min(side, there) / max(seen.height, seen.width)
        if seen.patch is not None:  # which stays whole
            factor = int(factor)
        if factor < _LARGER:
            return self
        transform = replace(
            seen, height=round(factor * seen.height), width=round(factor * seen.width),
            patch=None if seen.patch is None else int(factor) * seen.patch,
        )  # fmt: skip
        pool = WorkerPool(0, self.reader.pool.timeout)
        reader = replace(self.reader, transform=transform, held=False, pool=pool)
        return EvalLoader(samples, self.batch_size, reader)

    def batch(self, k: int) -> Shown:
        """Our batch in round `k`.

        Raises:
            DataError: an image is damaged and may not be, or a worker failed.
        """
        request = self._plan(k)
        return self._labelled(*self._collect(k, request), request.positions)

    def take(self, positions: np.ndarray) -> Shown:
        """As `batch`, of the samples at `positions` (n,)."""
        return self._labelled(*self.store.render(BatchRequest(positions)), positions)

    def _labelled(self, pixels: Tensor, bad: Corrupt, index: np.ndarray) -> Shown:
        if bad:
            self.corrupt.note({int(index[row]): why for row, why in bad.items()})
            good = np.setdiff1d(np.arange(len(index)), list(bad))
            pixels, index = pixels[torch.from_numpy(good).to(pixels.device)], index[good]
        pixels, mask = split_padding(pixels, self.reader.transform.patch, self.normalise.colour)
        if self.change is not None and len(index):
            pixels = self.change(pixels, index)
        labels = self.labels[torch.from_numpy(index).to(self.device)]
        return zero_padding(self.normalise(pixels), mask), labels, index, mask
