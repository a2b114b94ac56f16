"""Labels of images as CSV or as JSON lines, a million of them in modest memory.

A name is a file name, of any bytes: those that are no UTF-8 are written as they are in CSV, and in
JSON as Python's lone surrogates (`os.fsencode` makes bytes of them).
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from vit.config.errors import ConfigError
from vit.runtime.files import write_atomic

Labelled = tuple[str, list[tuple[str, float]]]
"""An image's name, and its labels with their probabilities, the most probable first."""


def as_csv(images: Iterable[Labelled], top: int) -> Iterator[bytes]:
    """Lines `image,label,probability,label2,probability2,...` for `top` labels; a header first."""
    numbers = ["", *map(str, range(2, top + 1))]
    head = chain.from_iterable((f"label{n}", f"probability{n}") for n in numbers)
    yield _csv_line(["image", *head])
    for name, labels in images:
        yield _csv_line([name, *chain.from_iterable((label, f"{p:.6f}") for label, p in labels)])


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


def prepare_file(key: str, file: Path) -> None:
    """Make sure, before long work, that `file` can be written.

    Args:
        key: the setting that names it.

    Raises:
        ConfigError: it cannot.
    """
    try:
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        reason = f"{key}={file} cannot be written ({error.strerror})"
        raise ConfigError(f"{reason}; choose another file") from None


def write_labels(file: Path, images: Iterable[Labelled], top: int) -> None:
    """Write the labels, when all are there, in the format that the file's ending names.

    Raises:
        DiskFullError: no space.
    """
    content = bytearray()
    for line in FORMATS[file.suffix.lower()](images, top):
        content += line
    write_atomic(file, memoryview(content))


def _csv_line(cells: Iterable[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(cells)  # whose own line end makes it quote a lone \r as well as \n
    return text.getvalue().removesuffix("\r\n").encode("utf-8", "surrogateescape") + b"\n"
