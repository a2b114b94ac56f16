"""The images of a report: which are shown, as pictures inside the page.

Legend: N images, K classes, H height, W width.
"""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest

import numpy as np
from PIL import Image

from vit.report.multilabel import LabelScores

FULL_MATRIX = 50
"""Up to so many classes the confusion matrix is shown whole, above that its largest entries."""
PAIRS = 60
"""Of those so many."""
MOST = 1000
"""Images in a page."""
_FIRST = 24
_PER_CELL = 20
_RIGHT_PER_CLASS = 4
_SMALLEST, _LARGEST = 96, 384
_PER_PIXEL = 1 / 3
"""Characters that a pixel of a photo takes, about."""
_LOSSLESS = 32


def choose(
    labels: np.ndarray,
    predicted: np.ndarray,
    losses: np.ndarray,
    margin: np.ndarray,
    classes: int,
    issues: Sequence[int] = (),
) -> list[int]:
    """The numbers of the images that a page has, the most telling first, at most MOST.

    Those with the highest loss, likely label errors, those with the smallest margin; then of each
    cell of the confusion matrix those with the highest loss, of right ones with the smallest
    margin; then what is left of the wrong ones, and of all in even steps.

    Args:
        labels, predicted: classes (N,).
        losses, margin: of each, the latter best probability less the second, (N,).
        classes: K; of more than FULL_MATRIX the PAIRS largest cells count.
        issues: numbers of likely label errors, the surest first.
    """
    wrong = np.flatnonzero(labels != predicted)
    wrong = wrong[np.argsort(-losses[wrong], kind="stable")]
    uncertain = np.argsort(margin, kind="stable")
    whole = classes <= FULL_MATRIX
    cells = []
    pairs = Counter(sorted(zip(labels[wrong].tolist(), predicted[wrong].tolist(), strict=True)))
    for (label, guess), _ in pairs.most_common(None if whole else PAIRS):
        inside = wrong[(labels[wrong] == label) & (predicted[wrong] == guess)]
        cells.append(inside[:_PER_CELL].tolist())
    if whole:
        right = uncertain[(labels == predicted)[uncertain]]
        of_class = (right[labels[right] == label] for label in range(classes))
        cells += [numbers[:_RIGHT_PER_CLASS].tolist() for numbers in of_class]
    return _in_order(len(labels), wrong, issues, uncertain, cells)


def choose_labels(found: LabelScores) -> list[int]:
    """As `choose`, by labels, probabilities and thresholds."""
    far = np.abs(found.probabilities - found.thresholds)
    wrong = np.flatnonzero(~found.right)
    cells = []
    for bad in (found.missed, found.wrong):
        for label in np.flatnonzero(bad.any(axis=0)).tolist():
            there = np.flatnonzero(bad[:, label])
            surest = there[np.argsort(-far[there, label], kind="stable")]
            cells.append(surest[:_PER_CELL].tolist())
    worst = wrong[np.argsort(-found.losses[wrong], kind="stable")]
    return _in_order(len(far), worst, (), np.argsort(far.min(axis=1), kind="stable"), cells)


def _in_order(
    count: int, wrong: np.ndarray, issues: Sequence[int], uncertain: np.ndarray,
    cells: Sequence[Sequence[int]],
) -> list[int]:  # fmt: skip
    first = (wrong[:_FIRST].tolist(), issues[:_FIRST], uncertain[:_FIRST].tolist())
    turns = (i for turn in zip_longest(*cells) for i in turn if i is not None)
    steps = np.linspace(0, count - 1, min(count, MOST)).round().astype(int).tolist()
    rest = (*issues, *wrong[:MOST].tolist(), *steps)
    return list(dict.fromkeys(chain(*first, turns, rest)))[:MOST]


def data_uri(image: np.ndarray, side: int = _SMALLEST) -> str:
    """An image, uint8 (H, W, 3) or with alpha (H, W, 4), as text for `src`: at most `side` px,
    never enlarged.

    Small ones and those with alpha are kept to the bit (PNG), others are JPEG.
    """
    picture = Image.fromarray(image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    kind = "PNG" if max(picture.size) <= _LOSSLESS or picture.mode == "RGBA" else "JPEG"
    file = io.BytesIO()
    picture.save(file, kind, optimize=kind == "PNG", quality=80)
    text = base64.b64encode(file.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{text}"


def side_within(budget: int, count: int) -> int:
    """How large `count` pictures may be, in pixels, so that they take about `budget` characters."""
    side = math.isqrt(int(budget / max(count, 1) / _PER_PIXEL))
    return min(max(side, _SMALLEST), _LARGEST)


def within(
    images: Iterator[tuple[int, np.ndarray]], budget: int, side: int = _SMALLEST
) -> dict[int, str]:
    """`data_uri` of numbered images, until they are `budget` characters in all."""
    kept: dict[int, str] = {}
    for number, image in images:
        uri = data_uri(image, side)
        budget -= len(uri)
        if budget < 0:
            break
        kept[number] = uri
    return kept
