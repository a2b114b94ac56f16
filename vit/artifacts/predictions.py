"""What an evaluation leaves (metrics.json, predictions.csv, a report), and labels of images as CSV
or as JSON lines, a million of them in modest memory.

A name is a file name, of any bytes: those that are no UTF-8 are written as they are in CSV, and in
JSON as Python's lone surrogates (`os.fsencode` makes bytes of them).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from vit.runtime.files import to_csv_line, write_atomic

METRICS, PREDICTIONS, LABEL_ERRORS = "metrics.json", "predictions.csv", "label_errors.csv"
PAGE = "report/index.html"
SEPARATOR = ";"
"""Between several labels of an image."""
EVALUATION = (METRICS, PREDICTIONS, LABEL_ERRORS, PAGE, "temperature.json")
"""The files of an evaluation, in its folder; the last one is of earlier versions."""


def write_rows(file: Path, rows: Iterable[Sequence[str | float]]) -> None:
    """Write a table as CSV: rows of texts and probabilities, the head first.

    Raises:
        DiskFullError: no space.
    """
    content = bytearray()
    for row in rows:
        content += to_csv_line([f"{x:.6f}" if isinstance(x, float) else x for x in row])
    write_atomic(file, memoryview(content))


def write_page(folder: Path, html: str) -> None:
    """Write `report/index.html`.

    Raises:
        DiskFullError: no space.
    """
    path = folder / PAGE
    path.parent.mkdir()
    write_atomic(path, html.encode("utf-8", "backslashreplace"))


class Labelled(NamedTuple):
    """What a model says of an image.

    Attributes:
        name: of the image.
        labels: with their probabilities, the most probable first.
        given: those that it has by their thresholds, of several labels per image; None: of one.
        set: those of which one is the true one in the cases that were asked for; None: not asked.
        unknown: it is unlike the images that the model knows, and has neither labels nor a set;
            None: not asked.
    """

    name: str
    labels: list[tuple[str, float]]
    given: list[str] | None = None
    set: list[str] | None = None
    unknown: bool | None = None

    def own(self) -> dict[str, Any]:
        """What it has of `labels` (those given), `set` and `unknown`, by these names."""
        found = {"labels": self.given, "set": self.set, "unknown": self.unknown}
        return {name: value for name, value in found.items() if value is not None}


def as_csv(images: Iterable[Labelled], top: int) -> Iterator[bytes]:
    """Lines `image,label,probability,label2,probability2,...` for `top` labels; a header first.

    Behind the name of the image stands what it has of `labels`, `set` and `unknown` (yes or no).
    """
    numbers = ["", *map(str, range(2, top + 1))]
    head = chain.from_iterable((f"label{n}", f"probability{n}") for n in numbers)
    for number, image in enumerate(images):
        own = image.own()
        if number == 0:
            yield to_csv_line(["image", *own, *head])
        cells = (("no", "yes")[x] if isinstance(x, bool) else joined(x) for x in own.values())
        pairs = list(chain.from_iterable((label, f"{p:.6f}") for label, p in image.labels))
        yield to_csv_line([image.name, *cells, *pairs, *[""] * (2 * top - len(pairs))])


def joined(labels: Iterable[str]) -> str:
    """Several labels as one cell."""
    return SEPARATOR.join(labels)


def as_json_lines(images: Iterable[Labelled], top: int) -> Iterator[bytes]:
    """One object per line: `image`, what it has of `labels`, `set` and `unknown`, and `predictions`
    of `label` and `probability`.
    """
    for image in images:
        predictions = [{"label": label, "probability": round(p, 6)} for label, p in image.labels]
        line = {"image": image.name, **image.own(), "predictions": predictions}
        yield json.dumps(line).encode() + b"\n"


FORMATS: dict[str, Callable[[Iterable[Labelled], int], Iterator[bytes]]] = {
    ".csv": as_csv,
    ".jsonl": as_json_lines,
}
"""The formats by the ending of the file."""


def write_labels(file: Path, images: Iterable[Labelled], top: int) -> None:
    """Write the labels, when all are there, in the format that the file's ending names.

    Raises:
        DiskFullError: no space.
    """
    content = bytearray()
    for line in FORMATS[file.suffix.lower()](images, top):
        content += line
    write_atomic(file, memoryview(content))
