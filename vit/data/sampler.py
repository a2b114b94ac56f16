"""The sampler: shuffled epochs as one stream, classes balanced if wanted.

Legend: N images, K classes.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from vit.runtime.seeding import numpy_generator


class Sampler:
    """The concatenation of epochs, each N long and with an order of its own.

    Args:
        labels: class numbers (N,).
        seed: decides the order.
        balanced: an epoch draws every class equally often (to one image): a small class repeats
            its images, a large one shows a part of them, another in each epoch. Otherwise an
            epoch shows every image once.
    """

    def __init__(self, labels: np.ndarray, seed: int, balanced: bool) -> None:
        self.labels = labels
        self.seed = seed
        self.balanced = balanced
        self._epoch = lru_cache(maxsize=2)(self._shuffle)

    def positions(self, start: int, stop: int) -> np.ndarray:
        """Images number `start` to `stop` of the stream, as positions in the split."""
        number = np.arange(start, stop)
        epoch, offset = np.divmod(number, len(self.labels))
        epochs = range(epoch[0], epoch[-1] + 1)
        return np.concatenate([self._epoch(e)[offset[epoch == e]] for e in epochs])

    def _shuffle(self, epoch: int) -> np.ndarray:
        rng = numpy_generator(self.seed, "order", epoch)
        count = len(self.labels)
        if not self.balanced:
            return rng.permutation(count)
        classes = rng.permutation(np.unique(self.labels))  # the first ones get what is left over
        shares = count // len(classes) + (np.arange(len(classes)) < count % len(classes))
        drawn = []
        for label, share in zip(classes, shares, strict=True):
            members = np.flatnonzero(self.labels == label)
            rounds = [rng.permutation(members) for _ in range(-(-share // len(members)))]
            drawn += [np.concatenate(rounds)[:share]] if share else []
        return rng.permutation(np.concatenate(drawn))


def positive_weights(labels: np.ndarray) -> np.ndarray:
    """Images without a label for each with it, float32 (K,), of labels 0 or 1 (N, K): by this
    weight both count alike; 1 for labels that no image has.
    """
    counts = labels.sum(axis=0, dtype=np.int64)
    weights: np.ndarray = np.where(counts, (len(labels) - counts) / np.maximum(counts, 1), 1.0)
    return weights.astype(np.float32)


def class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """N / (K' * n_k) for each class of n_k images, where K' classes have some: float32 (K,).

    Their mean over the images is 1.
    """
    counts = np.bincount(labels, minlength=classes)
    present = np.count_nonzero(counts)
    weights: np.ndarray = len(labels) / (present * np.maximum(counts, 1))
    return weights.astype(np.float32)
