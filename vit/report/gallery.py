"""The images of a report: which are shown, as thumbnails inside the page.

Legend: N images, K classes, H height, W width.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from PIL import Image

from vit.report.multilabel import LabelScores

FULL_MATRIX = 50
"""Up to so many classes the confusion matrix is shown whole, above that its largest entries."""
MISSED, GIVEN_WRONGLY = 0, 1
"""Second part of a cell of several labels per image."""
_PAIRS = 60
_LISTED = 24
_PER_CELL = 20
_RIGHT_PER_CLASS = 4
_MOST = 1000
_SIDE = 96
_LOSSLESS = 32


@dataclass(frozen=True)
class Chosen:
    """The images of a report, by their number among the N.

    Attributes:
        worst: of the wrong ones those with the highest loss, the highest first.
        uncertain: those with the smallest margin between the two best classes.
        cells: by (true class, predicted class) of the confusion matrix: wrong ones by falling loss,
            right ones by rising margin. Cells of more than FULL_MATRIX classes are the largest
            ones off the diagonal, the largest first. Of several labels per image by (label, MISSED
            or GIVEN_WRONGLY), the surest first.
    """

    worst: list[int]
    uncertain: list[int]
    cells: dict[tuple[int, int], list[int]]

    def in_order(self) -> list[int]:
        """All of them once, the most important first, at most a thousand."""
        turns = (i for turn in zip_longest(*self.cells.values()) for i in turn if i is not None)
        return list(dict.fromkeys([*self.worst, *self.uncertain, *turns]))[:_MOST]


def choose(
    labels: np.ndarray, predicted: np.ndarray, losses: np.ndarray, margin: np.ndarray, classes: int
) -> Chosen:
    """Choose images by classes, losses and margin (best probability less the second), each (N,)."""
    wrong = np.flatnonzero(labels != predicted)
    wrong = wrong[np.argsort(-losses[wrong], kind="stable")]
    uncertain = np.argsort(margin, kind="stable")
    whole = classes <= FULL_MATRIX
    cells: dict[tuple[int, int], list[int]] = {}
    pairs = Counter(sorted(zip(labels[wrong].tolist(), predicted[wrong].tolist(), strict=True)))
    for (label, guess), _ in pairs.most_common(None if whole else _PAIRS):
        inside = wrong[(labels[wrong] == label) & (predicted[wrong] == guess)]
        cells[label, guess] = inside[:_PER_CELL].tolist()
    if whole:
        right = uncertain[(labels == predicted)[uncertain]]
        for label in range(classes):
            if found := right[labels[right] == label][:_RIGHT_PER_CLASS].tolist():
                cells[label, label] = found
    return Chosen(wrong[:_LISTED].tolist(), uncertain[:_LISTED].tolist(), cells)


def choose_labels(found: LabelScores) -> Chosen:
    """Choose images by their labels, probabilities and thresholds."""
    far = np.abs(found.probabilities - found.thresholds)
    wrong = np.flatnonzero(~found.right)
    cells = {}
    for what, bad in ((MISSED, found.missed), (GIVEN_WRONGLY, found.wrong)):
        for label in np.flatnonzero(bad.any(axis=0)).tolist():
            there = np.flatnonzero(bad[:, label])
            surest = there[np.argsort(-far[there, label], kind="stable")]
            cells[label, what] = surest[:_PER_CELL].tolist()
    worst = wrong[np.argsort(-found.losses[wrong], kind="stable")]
    uncertain = np.argsort(far.min(axis=1), kind="stable")
    return Chosen(worst[:_LISTED].tolist(), uncertain[:_LISTED].tolist(), cells)


def data_uri(image: np.ndarray) -> str:
    """An image, uint8 (H, W, 3), as text for `src`: at most 96 px, never enlarged.

    Small ones are kept to the bit (PNG), others are JPEG.
    """
    picture = Image.fromarray(image)
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    kind = "PNG" if max(picture.size) <= _LOSSLESS else "JPEG"
    file = io.BytesIO()
    picture.save(file, kind, optimize=kind == "PNG", quality=80)
    text = base64.b64encode(file.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{text}"


def within(images: Iterator[tuple[int, np.ndarray]], budget: int) -> dict[int, str]:
    """`data_uri` of numbered images, until they are `budget` characters in all."""
    kept: dict[int, str] = {}
    for number, image in images:
        uri = data_uri(image)
        budget -= len(uri)
        if budget < 0:
            break
        kept[number] = uri
    return kept
