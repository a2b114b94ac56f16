"""Tables as files: CSV, TSV and the like as spreadsheets write them, and JSON lines."""

from __future__ import annotations

import codecs
import csv
import glob
import io
import json
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from vit.data.formats import IS_IMAGE, ending_of
from vit.data.sources.scan import read_errors
from vit.errors import DataError, printable, shortened

JSON_LINES = (".jsonl", ".ndjson")
PARQUET = ".parquet"
ENDINGS = (".csv", ".tsv", ".tab", ".txt", *JSON_LINES, PARQUET)
"""Of the files that are read as tables, whatever the case."""
_SEPARATORS = (",", "\t", ";", "|")
LIST_SEPARATOR = "\n"
"""Between the entries of a list in a cell."""
_LOOKED_AT = 50
"""Rows that the separator is told by."""


@dataclass(frozen=True)
class Table:
    """The cells of a table, as text.

    Attributes:
        columns: their names; `column1` and so on, where the file has no line of names.
        rows: by the number of the line that each ends in, a cell for each column.
        problems: what is wrong with rows that are not among these, by their lines.
        encoding: how the file was read.
        lists: columns whose cells are lists, a line each.
        image_columns: those whose cells are names of images that the table holds itself.
    """

    columns: list[str]
    rows: dict[int, list[str]]
    problems: dict[int, str]
    encoding: str
    lists: frozenset[str] = frozenset()
    image_columns: list[str] = field(default_factory=list)

    def place(self, number: int) -> str:
        """What people call the row of that number."""
        return f"line {number}"


def shards_of(path: Path) -> list[Path]:
    """The Parquet files that a path names: itself, all below a folder, or those of a pattern.

    Raises:
        DataError: of files that are numbered `-00000-of-00002` some are missing in the folder.
    """
    if not path.is_dir():
        named = glob.glob(str(path), recursive=True) if ending_of(path.name) == PARQUET else []
        return sorted(map(Path, [str(path)] if path.is_file() and named else named))
    found = sorted(
        file
        for file in path.rglob(f"*{PARQUET}")
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    counts = Counter(re.sub(r"-\d+-of-", "-*-of-", str(file)) for file in found)
    for pattern, count in counts.items():
        if (of := re.search(r"-\*-of-(\d+)", pattern)) and count != int(of[1]):
            raise DataError(f"there are {count} of {int(of[1])} files {pattern}; get the others")
    return found


def read_table(path: Path) -> Table:
    """Read a table; the ending tells JSON lines, the first rows tell the separator.

    The encoding is UTF-8, or UTF-16 with its mark, else cp1252 (Western European Windows).

    Raises:
        DataError: it cannot be read, or holds no row.
    """
    if ending_of(path.name) not in ENDINGS:
        raise DataError(
            f"{path} is no {', '.join(ENDINGS)}, which are read as tables; save it as CSV"
        )
    with read_errors():
        data = path.read_bytes()
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ["utf-16"] if marked else ["utf-8-sig", "cp1252"]:
        try:
            text = data.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    else:
        raise DataError(f"{path} is no text in UTF-8, UTF-16 or cp1252; save it as CSV in UTF-8")
    lines = _json_lines(text) if ending_of(path.name) in JSON_LINES else _separated(text, path)
    columns, rows, problems, lists = lines
    if not rows:
        told = [f"line {number} {why}" for number, why in problems.items()]
        raise DataError(f"{path} holds no row ({shortened(told, 2) or 'it is empty'}); fill it")
    return Table(columns, rows, problems, encoding, frozenset(lists))


Lines = tuple[list[str], dict[int, list[str]], dict[int, str], set[str]]


def _separated(text: str, path: Path) -> Lines:
    separator = _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    found: dict[int, list[str]] = {}
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                found[reader.line_num] = [cell.strip() for cell in cells]
    except csv.Error as error:
        raise DataError(
            f"{path} line {reader.line_num}: {error}; repair the quotes there"
        ) from None
    if not found:
        return [], {}, {}, set()
    first = next(iter(found))
    numbered = [f"column{i}" for i in range(1, len(found[first]) + 1)]
    if any(IS_IMAGE.get(ending_of(cell)) for cell in found[first]):
        columns = numbered
    else:
        columns = [name or number for name, number in zip(found.pop(first), numbered, strict=True)]
    problems = {
        number: f"has {len(cells)} cells, not {len(columns)}"
        for number, cells in found.items()
        if len(cells) != len(columns)
    }
    return columns, {n: cells for n, cells in found.items() if n not in problems}, problems, set()


def _separator(text: str) -> str:
    """That which most of the first rows have as often as the very first; a space, which texts have
    too, if there is no other that half of them have so.
    """

    def agreeing(separator: str) -> float:
        reader = csv.reader(io.StringIO(text[: 2**20], newline=""), delimiter=separator)
        counts = []
        with suppress(csv.Error):
            for cells in islice(reader, _LOOKED_AT):
                counts += [len(cells)] if any(map(str.strip, cells)) else []
        return counts.count(counts[0]) / len(counts) if counts and counts[0] > 1 else 0

    likeliest = max(_SEPARATORS, key=agreeing)
    return likeliest if agreeing(likeliest) > 1 / 2 else " "


def _json_lines(text: str) -> Lines:
    found: dict[int, dict[str, str]] = {}
    problems: dict[int, str] = {}
    lists: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            problems[number] = f"is no JSON object: {printable(line[:40])}"
            continue
        lists |= {key for key, value in values.items() if isinstance(value, list)}
        found[number] = {key: as_text(value) for key, value in values.items() if value is not None}
    columns = list(dict.fromkeys(key for values in found.values() for key in values))
    rows = {n: [values.get(key, "") for key in columns] for n, values in found.items()}
    return columns, rows, problems, lists


def as_text(value: Any) -> str:
    """A value as a cell: of a list a line for each entry."""
    if isinstance(value, list):
        return LIST_SEPARATOR.join(map(as_text, value))
    return value.strip() if isinstance(value, str) else json.dumps(value)
