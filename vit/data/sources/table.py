"""A table of labels: a row per image, with the image's path, its label, and perhaps its split."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vit.config.schema import DataConfig
from vit.data.formats import IS_IMAGE, ending_of
from vit.data.sources import layout
from vit.data.sources.layout import SPLITS, split_of
from vit.data.sources.parquet import PackedImages, ParquetTable, read_parquet
from vit.data.sources.scan import read_errors
from vit.data.sources.table_file import LIST_SEPARATOR, Table, read_table, shards_of
from vit.data.types import DataSet, FileImages, Samples
from vit.errors import DataError, nearest, printable, shortened
from vit.runtime.files import image_cache

MOST_ROWS = 10
"""Rows with problems that are named one by one."""
_LOOKED_AT = 100
_YES, _NO = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}
"""What cells of 0 and 1 hold, in small letters."""
_USUAL = {
    "image_column": (
        "image image_path image_file image_name image_id img img_path path file file_path filepath "
        "file_name filename fname id"
    ),
    "label_column": "label labels class class_name category target species breed diagnosis y",
    "split_column": "split set subset partition",
    "weight_column": "sample_weight",
    "group_column": "",
}  # fmt: skip
"""How columns are usually called, the likeliest first."""


def load(config: DataConfig) -> DataSet:
    """Read `data.root`, with images below `data.images` (default: the folder of the table).

    Images are sorted by class and then by path, as those of a folder, or by path where they have
    several labels; their names are the paths as the table has them. Rows with problems are left out
    with `data.on_bad_image=skip`.

    Raises:
        DataError: no table, no such columns, rows with problems, or too few classes.
    """
    assert config.root is not None
    path = Path(config.root)
    layout.check_table("data.root", path)
    table = _table(path)
    columns = columns_of(table, config, path)
    named = ", ".join(
        f"{key.removesuffix('_column')}s from {', '.join(_names(name))}"
        for key, name in columns.items()
        if name and key != "label_separator"
    )
    told = [f"columns: {named}"] if "auto" in [getattr(config, key) for key in columns] else []
    config = replace(config, **columns)
    files = _files(table, config, path)
    rows = _rows(table, config, path, files)
    trained = sorted({k for row in rows if row.split in (None, "train") for k in row.labels})
    if isinstance(config.label_column, list):
        trained = config.label_column
    fewest = 1 if _has_several(config) else 2
    if len(trained) < fewest:
        raise DataError(
            f"{path} has {len(trained)} classes to train on in its column {config.label_column} "
            f"({shortened(trained) or '-'}); at least {'two are' if fewest == 2 else 'one is'} "
            f"needed"
        )
    unknown = sorted({k for row in rows for k in row.labels} - set(trained))
    if unknown:
        raise DataError(
            f"{path} has no training image of {shortened(unknown)}, which other splits have; add "
            f"some, or take these rows out"
        )
    splits = {
        split or "train": _samples(own, trained, config, files)
        for split in (None, *SPLITS)
        if (own := [row for row in rows if row.split == split])
    }
    return DataSet(trained, splits, notes=[*told, *_notes(table, rows)], settings=columns)


def load_flat(path: Path, classes: list[str], config: DataConfig) -> DataSet:
    """Every image of a table, as the split `images`.

    Args:
        classes: their names.
        config: of the run; its columns are taken where the table has them.

    Raises:
        DataError: as `load`, or labels that are none of `classes`.
    """
    table = _table(path)
    own: dict[str, Any] = {
        key: name
        if isinstance(name := getattr(config, key), list) or name in table.columns
        else "auto"
        for key in ("image_column", "label_column")
    }
    others = dict.fromkeys(("images", "split_column", "weight_column", "group_column"))
    if _has_several(config) and set(classes) <= set(table.columns):
        own.update(label_column=classes, label_separator=None)
    config = replace(config, **{**others, **own})
    config = replace(config, **columns_of(table, config, path, "name them as the run's table"))
    files = _files(table, config, path)
    rows = _rows(table, config, path, files)
    unknown = sorted({k for row in rows for k in row.labels} - set(classes))
    if unknown:
        raise DataError(
            f"{path} has labels that the model does not know: {shortened(unknown)}; it knows "
            f"{shortened(classes)}"
        )
    samples = _samples(rows, classes, config, files)
    return DataSet(classes, {"images": samples}, notes=_notes(table, rows))


def columns_of(
    table: Table, config: DataConfig, path: Path, remedy: str | None = None
) -> dict[str, Any]:
    """The columns, as given or as they are usually called; and `label_separator`, which is known of
    lists.

    Raises:
        DataError: one that is given does not exist or stands twice, or none can be told.
    """
    found: dict[str, Any] = {}
    for key, usual in _USUAL.items():
        given: str | list[str] | None = getattr(config, key)
        if given == "auto" or (given is None and key in ("image_column", "label_column")):
            inside = table.image_columns
            taken = [*inside, *found.values()]
            if key == "image_column" and inside:
                taken = [name for name in table.columns if name not in inside]
            given = _usual(table, usual.split(), taken)
            if given is None and key == "image_column":
                given = inside[0] if inside else _of_images(table)
            if given is None and key == "label_column" and len(table.columns) == 2:
                given = next(name for name in table.columns if name != found["image_column"])
            if given is None and key in ("image_column", "label_column", "group_column"):
                raise DataError(
                    f"{path} has the columns {shortened(table.columns)}, and none is plainly that "
                    f"of the {key.removesuffix('_column')}s; "
                    f"{remedy or f'say which it is with data.{key}=<its name>'}"
                )
        for name in [] if getattr(config, key) == "auto" else _names(given):
            if table.columns.count(name) != 1:
                close = nearest(name, table.columns) or table.columns[0]
                how = "twice" if name in table.columns else "not"
                raise DataError(
                    f"data.{key}={name} is {how} among the columns of {path}: "
                    f"{shortened(table.columns)}; try data.{key}={close}"
                )
        found[key] = given
    found["label_separator"] = config.label_separator
    if config.label_separator is None and table.lists.issuperset(_names(found["label_column"])):
        found["label_separator"] = LIST_SEPARATOR
    return found


def _names(column: str | list[str] | None) -> list[str]:
    """The names of no, one or several columns."""
    return column if isinstance(column, list) else [] if column is None else [column]


def _has_several(config: DataConfig) -> bool:
    """Whether images have several labels."""
    return config.label_separator is not None or isinstance(config.label_column, list)


def _usual(table: Table, usual: list[str], taken: list[Any]) -> str | None:
    plain = {
        name.lower().replace(" ", "_").replace("-", "_"): name
        for name in table.columns
        if table.columns.count(name) == 1 and name not in taken
    }
    return next((plain[name] for name in usual if name in plain), None)


def _of_images(table: Table) -> str | None:
    """The column whose first cells are image files by their endings."""
    first = [cells for _, cells in zip(range(_LOOKED_AT), table.rows.values(), strict=False)]
    for name, column in zip(table.columns, zip(*first, strict=True), strict=True):
        if 2 * sum(IS_IMAGE.get(ending_of(cell), False) for cell in column) > len(column):
            return name
    return None


@dataclass(frozen=True)
class _Row:
    image: str
    labels: list[str]
    split: str | None
    weight: float
    group: str


def _rows(table: Table, config: DataConfig, path: Path, files: _Files | PackedImages) -> list[_Row]:
    """The rows that can be used; others are an error, unless they may be left out."""
    at = {name: i for i, name in enumerate(table.columns)}
    problems, first, found = dict(table.problems), dict[str, int](), dict[int, _Row]()
    with read_errors():
        for number, cells in table.rows.items():
            given, split, weight, group = (
                "" if (name := getattr(config, key)) is None else cells[at[name]]
                for key in ("image_column", "split_column", "weight_column", "group_column")
            )
            image = files.find(given)
            known = split_of(split) if split else None
            labels = _labels({n: cells[at[n]] for n in _names(config.label_column)}, config)
            if not given or (not group and config.group_column is not None):
                problems[number] = f"has no {'group' if given else 'image'}"
            elif isinstance(labels, str):
                problems[number] = labels
            elif image is None:
                problems[number] = f"names {printable(given)}, which is missing"
            elif len(image) > 1:
                problems[number] = f"names {printable(given)}, which may be {shortened(image, 3)}"
            elif config.split_column is not None and known is None:
                problems[number] = (
                    f"is of split {printable(split) or '-'}, not of {'/'.join(SPLITS)}"
                )
            elif (factor := _weight(weight)) is None:
                problems[number] = f"has weight {printable(weight)}, which is no number from 0 on"
            elif (before := first.setdefault(image[0], number)) != number:
                same = found.get(before)
                problems[number] = f"names {printable(image[0])}, as {table.place(before)} does"
                if same is not None and same.labels != labels:
                    problems[number] += " with another label"
                    problems[before] = f"names {printable(image[0])}, as {table.place(number)} does"
                    del found[before]
            else:
                found[number] = _Row(image[0], labels, known, factor, group)
    allowed = config.bad_image_limit * (len(found) + len(problems))
    if problems and (config.on_bad_image == "error" or len(problems) > max(allowed, 1)):
        first_problems = sorted(problems.items())[:MOST_ROWS]
        told = [f"{path} {table.place(n)} {why}" for n, why in first_problems]
        share = -(-100 * len(problems) // (len(found) + len(problems))) / 100
        limit = f" data.bad_image_limit={share}" if len(problems) > max(allowed, 1) else ""
        raise DataError(
            [
                *told,
                *_look_like_several({k for row in found.values() for k in row.labels}),
                f"{len(problems):,} of the {len(found) + len(problems):,} rows of {path} cannot be "
                f"used; repair them, or leave them out with data.on_bad_image=skip{limit}",
            ]
        )
    return list(found.values())


def _labels(cells: dict[str, str], config: DataConfig) -> list[str] | str:
    """The labels of an image, by its cells in the label columns, or what is wrong with them."""
    if isinstance(config.label_column, list):
        other = next((n for n, cell in cells.items() if cell.lower() not in _YES | _NO), None)
        if other is not None:
            return f"has {printable(cells[other]) or 'nothing'} in column {other}, not 0 or 1"
        return [name for name, cell in cells.items() if cell.lower() in _YES]
    (cell,) = cells.values()
    if config.label_separator is None:
        return [cell] if cell else "has no label"
    labels = (label.strip() for label in cell.split(config.label_separator))
    return sorted({label for label in labels if label})


def _weight(text: str) -> float | None:
    """A weight from 0 on; 1 where there is none."""
    try:
        weight = float(text or 1)
    except ValueError:
        return None
    return weight if 0 <= weight < float("inf") else None


def _samples(
    rows: list[_Row], classes: list[str], config: DataConfig, files: _Files | PackedImages
) -> Samples:
    numbers = {name: number for number, name in enumerate(classes)}
    if _has_several(config):
        rows = sorted(rows, key=lambda row: row.image)
        labels = np.zeros((len(rows), len(classes)), np.uint8)
        for own, row in zip(labels, rows, strict=True):
            own[[numbers[label] for label in row.labels]] = 1
    else:
        rows = sorted(rows, key=lambda row: (numbers[row.labels[0]], row.image))
        labels = np.array([numbers[row.labels[0]] for row in rows], np.int64)
    names = [row.image for row in rows]
    weights = np.array([row.weight for row in rows], np.float32)
    return Samples(
        labels, names, files.of(names), np.arange(len(rows)),
        None if config.weight_column is None else weights,
        None if config.group_column is None else [row.group for row in rows],
    )  # fmt: skip


def _table(path: Path) -> Table:
    shards = shards_of(path)
    return read_parquet(shards) if shards else read_table(path)


def _files(table: Table, config: DataConfig, path: Path) -> _Files | PackedImages:
    """The images that rows may name: those in the table, else files."""
    inside = None
    if isinstance(table, ParquetTable) and config.image_column in table.leaves:
        inside = table.images_in(config.image_column, image_cache(config.cache_dir))
    return inside or _Files(_root(config, path))


def _root(config: DataConfig, path: Path) -> str:
    """Where the paths in the table start from."""
    folder = Path(config.images) if config.images else path if path.is_dir() else path.parent
    if not folder.is_dir():
        raise DataError(f"data.images={folder} is no folder; give the one that has the images")
    return str(folder).rstrip(os.sep) or os.sep


def _notes(table: Table, rows: list[_Row]) -> list[str]:
    told = []
    told += _look_like_several({label for row in rows for label in row.labels})
    if table.encoding == "cp1252":
        told.append("the table is not in UTF-8 and was read as cp1252 (Windows)")
    left_out = len(table.rows) + len(table.problems) - len(rows)
    return told + ([f"left out: {left_out:,} rows that cannot be used"] if left_out else [])


def _look_like_several(labels: set[str]) -> list[str]:
    """A line on labels that are made of fewer, if they are."""
    for separator in (";", "|"):
        parts = {part.strip() for label in labels for part in label.split(separator)}
        if len(parts) < len(labels):
            return [
                f"labels such as {shortened(sorted(labels - parts), 2)} look like several; where "
                f'an image may have several or none, give data.label_separator="{separator}"'
            ]
    return []


@dataclass(frozen=True)
class _Files:
    """The files below a folder, each folder listed once, when something in it is asked for."""

    root: str
    _listed: dict[str, set[str]] = field(default_factory=dict)
    _alike: dict[str, dict[str, set[str]]] = field(default_factory=dict)

    def of(self, names: list[str]) -> FileImages:
        """The images in some of them."""
        return FileImages(self.root, names)

    def find(self, given: str) -> list[str] | None:
        """The path of a file: as given, else with an ending, another case or other accents; of
        several that fit, all; None: there is none.
        """
        name = os.path.normpath(given)
        if os.path.isabs(name) and name.startswith(self.root.rstrip(os.sep) + os.sep):
            name = os.path.relpath(name, self.root)
        folder, file = os.path.split(name)
        if folder not in self._listed:
            place = os.path.join(self.root, folder)
            there = os.listdir(place) if os.path.isdir(place) else []
            self._listed[folder] = set(there)
        if file in self._listed[folder]:
            return [name]
        if "\\" in given:
            return self.find(given.replace("\\", "/"))
        if folder not in self._alike:
            alike = self._alike[folder] = defaultdict(set)
            for known in self._listed[folder]:
                if IS_IMAGE.get(ending_of(known)):
                    alike[_folded(known)].add(known)
                    alike[_folded(os.path.splitext(known)[0])].add(known)
        fitting = sorted(self._alike[folder].get(_folded(file), ()))
        return [os.path.join(folder, known) for known in fitting] or None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
