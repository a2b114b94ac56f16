"""What an evaluation leaves (metrics.json, predictions.csv, a report), and labels of images as CSV
or as JSON lines, a million of them in modest memory.

A name is a file name, of any bytes: those that are no UTF-8 are written as they are in CSV, and in
JSON as Python's lone surrogates (`os.fsencode` makes bytes of them).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from vit.runtime.files import to_csv_line, write_atomic

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), 127)}
"""Characters that HTML may not hold, as codes."""
METRICS, PREDICTIONS, TEMPERATURE = "metrics.json", "predictions.csv", "temperature.json"
PAGE = "report/index.html"
EVALUATION = (METRICS, PREDICTIONS, TEMPERATURE, PAGE)
"""The files of an evaluation, in its folder."""


def write_predictions(folder: Path, predictions: Iterable[tuple[str, str, str, float]]) -> None:
    """Write `predictions.csv`: of each image its name, label, prediction and the probability of it.

    Raises:
        DiskFullError: no space.
    """
    content = bytearray(to_csv_line(["image", "label", "prediction", "probability"]))
    for *names, probability in predictions:
        content += to_csv_line([*names, f"{probability:.6f}"])
    write_atomic(folder / PREDICTIONS, memoryview(content))


def write_page(folder: Path, html: str) -> None:
    """Write `report/index.html`.

    Raises:
        DiskFullError: no space.
    """
    path = folder / PAGE
    path.parent.mkdir()
    write_atomic(path, html.translate(_CONTROL).encode("utf-8", "backslashreplace"))


Labelled = tuple[str, list[tuple[str, float]]]
"""An image's name, and its labels with their probabilities, the most probable first."""


def as_csv(images: Iterable[Labelled], top: int) -> Iterator[bytes]:
    """Lines `image,label,probability,label2,probability2,...` for `top` labels; a header first."""
    numbers = ["", *map(str, range(2, top + 1))]
    head = chain.from_iterable((f"label{n}", f"probability{n}") for n in numbers)
    yield to_csv_line(["image", *head])
    for name, labels in images:
        yield to_csv_line([name, *chain.from_iterable((label, f"{p:.6f}") for label, p in labels)])


def as_json_lines(images: Iterable[Labelled], top: int) -> Iterator[bytes]:
    """One object per line: `image`, and `predictions` of `label` and `probability`."""
    for name, labels in images:
        predictions = [{"label": label, "probability": round(p, 6)} for label, p in labels]
        yield json.dumps({"image": name, "predictions": predictions}).encode() + b"\n"


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
