"""Tables in Parquet files, also with the images inside, as the Hugging Face hub keeps data sets.

A column chunk can only be read whole, and images are read in any order. So the images are copied
once, one after the other, into a file of the image cache for each file of the table (a pack); the
Parquet file is asked again only for one that is damaged there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vit.data.manifest import content_hash
from vit.data.sources.layout import split_of
from vit.data.sources.table_file import LIST_SEPARATOR, Table
from vit.data.types import FileImages, PackedImage
from vit.errors import DataError, first_line, printable, shortened
from vit.runtime import console
from vit.runtime.files import disk_errors, locked, move_over, staging, write_errors

_AT_ONCE = 32
"""Images held in memory while they are copied."""
_PER_IMAGE = np.dtype([("end", "<u8"), ("hash", "<u8")])
"""What stands at the end of a pack for each row: where its image ends, and a hash of it."""


@dataclass(frozen=True)
class ParquetTable(Table):
    """A table in one or several Parquet files.

    Attributes:
        shards: the files.
        titles: what they are called; of a single one nothing.
        starts: how many rows come before each.
        leaves: what of each column of images holds the content of their files.
    """

    shards: list[Path] = field(kw_only=True)
    titles: list[str] = field(kw_only=True)
    starts: list[int] = field(kw_only=True)
    leaves: dict[str, str] = field(kw_only=True)

    def place(self, number: int) -> str:
        """`row 7`, or `row 7 of train-00001-of-00002.parquet`."""
        return _place(number, self.starts, self.titles)

    def images_in(self, column: str, folder: Path) -> PackedImages | None:
        """The images that a column of `leaves` holds, copied to `folder` where they are not there
        already; None: it holds nothing but paths.

        Raises:
            ConfigError: the folder cannot be written.
            DiskFullError: no space.
        """
        leaf = self.leaves[column]
        with write_errors(f"data.cache_dir={folder}", "; choose another"), disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder, wait=True):  # other processes of this run find what one makes
                ends = [*self.starts[1:], len(self.rows)]
                counts = [end - start for start, end in zip(self.starts, ends, strict=True)]
                with console.progress(total=len(self.rows), desc="copying images") as bar:
                    packs = [
                        _pack(shard, leaf, rows, folder, bar)
                        for shard, rows in zip(self.shards, counts, strict=True)
                    ]
        at = self.columns.index(column)
        sizes = np.concatenate([np.diff(pack.ends, prepend=np.uint64(0)) for pack in packs])
        rows = {cells[at]: n - 1 for n, cells in self.rows.items() if sizes[n - 1]}
        return PackedImages([], rows, self.starts, packs) if rows else None


@dataclass(frozen=True)
class _Pack:
    """The images of a shard, one after the other in a file.

    Attributes:
        path: of the file.
        shard: where they come from.
        leaf: of its columns.
        ends: behind the image of each row, in bytes.
        hashes: of their content.
    """

    path: str
    shard: str
    leaf: str
    ends: np.ndarray
    hashes: np.ndarray


@dataclass(frozen=True)
class RowImage:
    """The image file in a row of a Parquet file; see `PackedImage`."""

    name: str
    size: int
    hash: int
    pack: str = ""
    start: int = 0
    shard: str = ""
    leaf: str = ""
    row: int = 0

    def __str__(self) -> str:
        return f"{self.name} in {self.shard}"

    def read(self) -> bytes:
        """Its content: the copy's, if that is undamaged, else that in the Parquet file.

        Raises:
            OSError, ValueError: that is gone or another, too.
        """
        with suppress(OSError), open(self.pack, "rb", buffering=0) as file:
            content = os.pread(file.fileno(), self.size, self.start)
            if content_hash(content) == self.hash:
                return content
        os.stat(self.shard)  # which says if it is gone
        file, row, group = _opened(Path(self.shard)), self.row, 0
        while group < file.num_row_groups and row >= file.metadata.row_group(group).num_rows:
            row -= file.metadata.row_group(group).num_rows
            group += 1
        if group < file.num_row_groups:
            content = _content(file.read_row_group(group, columns=[self.leaf]).column(0)[row])
            if content_hash(content) == self.hash:
                return content
        raise ValueError("the Parquet file has changed")


class PackedImages(FileImages):
    """Images in rows of Parquet files.

    Args:
        names: of the images.
        rows: the row of each image by its name, over all files.
        starts: how many rows come before each file.
        packs: the images of each file.
    """

    def __init__(
        self, names: Sequence[str], rows: Mapping[str, int], starts: list[int], packs: list[_Pack]
    ) -> None:
        super().__init__("", names)
        self.rows = rows
        self.starts = starts
        self.packs = packs

    def of(self, names: Sequence[str]) -> PackedImages:
        """See FileImages."""
        return PackedImages(names, self.rows, self.starts, self.packs)

    def find(self, given: str) -> list[str] | None:
        """The image of that name, if there is one."""
        return [given] if given in self.rows else None

    def path(self, index: int) -> PackedImage:
        """See FileImages."""
        name = self.names[index]
        row = self.rows.get(name)
        if row is None:
            return RowImage(name, -1, 0)
        number = bisect_right(self.starts, row) - 1
        pack, row = self.packs[number], row - self.starts[number]
        start = int(pack.ends[row - 1]) if row else 0
        size, digest = int(pack.ends[row]) - start, int(pack.hashes[row])
        return RowImage(name, size, digest, pack.path, start, pack.shard, pack.leaf, row)


def read_parquet(shards: list[Path]) -> ParquetTable:
    """Read a table of which each of `shards` holds some rows; cells as a CSV file would have them.

    Class numbers of the hub are given by their names. Where shards are named by splits, and there
    is no column `split`, there is one.

    Raises:
        DataError: pyarrow is missing, or files cannot be read, are no parts of one table, or hold
            no row.
    """
    top = os.path.commonpath([shard.parent for shard in shards])
    names = [Path(os.path.relpath(shard, top)) for shard in shards]
    titles = list(map(str, names)) if len(shards) > 1 else [""]
    cells: dict[str, list[str]] = {}
    leaves: dict[str, str] = {}
    starts = [0]
    for shard in shards:
        with _errors(shard):
            file = _opened(shard)
            classes = _class_names(file.schema_arrow)
            fields = {
                f.name: f
                for f in file.schema_arrow
                if _leaf(f) or not f.type.num_fields or _is_list(f)
            }
            lists = {name for name, field in fields.items() if _is_list(field)}
            if cells and [*fields] != [*cells]:
                raise DataError(
                    f"{shard} has the columns {shortened([*fields])}, and {shards[0]} has "
                    f"{shortened([*cells])}; give the files of one table, by a pattern"
                )
            leaves = dict(filter(None, map(_leaf, fields.values())))
            for name, field in fields.items():
                cells.setdefault(name, []).extend(_cells(file, field, classes.get(name)))
            starts.append(starts[-1] + file.metadata.num_rows)
    total = starts.pop()
    if not total:
        raise DataError(f"{shards[0]} holds no row; fill it")
    splits = [split_of(re.split(r"[-.]", name.name)[0]) or name.parent.name for name in names]
    if "split" not in cells and any(map(split_of, splits)):
        counts = np.diff([*starts, total]).tolist()
        cells["split"] = [s for s, n in zip(splits, counts, strict=True) for _ in range(n)]
    for name in leaves:
        count = Counter(cells[name])
        cells[name] = [
            path if path and count[path] == 1 else _place(number, starts, titles)
            for number, path in enumerate(cells[name], 1)
        ]
    rows = dict(enumerate(map(list, zip(*cells.values(), strict=True)), 1))
    return ParquetTable(
        [*cells], rows, {}, "parquet", frozenset(lists), [*leaves],
        shards=shards, titles=titles, starts=starts, leaves=leaves,
    )  # fmt: skip


def _place(number: int, starts: list[int], titles: list[str]) -> str:
    shard = bisect_right(starts, number - 1) - 1
    title = titles[shard]
    return f"row {number - starts[shard]}" + (f" of {title}" if title else "")


def _opened(shard: Path) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(
            f"{shard} needs pyarrow to be read; pip install 'vit-train[parquet]'"
        ) from None
    return ParquetFile(shard, memory_map=True)


@contextmanager
def _errors(shard: Path) -> Iterator[None]:
    """Turn what pyarrow says of a file into a DataError."""
    try:
        yield
    except (OSError, ValueError) as error:  # of which pyarrow's own are kinds
        why = printable(first_line(error))
        raise DataError(f"{shard} cannot be read as Parquet ({why}); get it again") from None


def _leaf(field: Any) -> tuple[str, str] | None:
    """The name of a column that holds the content of files, and its leaf with it: the column
    itself, or `bytes` of a struct.
    """
    from pyarrow import types

    kind, leaf = field.type, field.name
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind, leaf = kind.field("bytes").type, f"{leaf}.bytes"
    return (field.name, leaf) if types.is_binary(kind) or types.is_large_binary(kind) else None


def _class_names(schema: Any) -> dict[str, list[str]]:
    """The classes of columns of numbers, as the hub's `datasets` notes them."""
    with suppress(ValueError, LookupError, TypeError, AttributeError):
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {
            key: own["names"]
            for key, told in features.items()
            if "names" in (own := told.get("feature", told) if isinstance(told, dict) else told[0])
        }
    return {}


def _is_list(field: Any) -> bool:
    """Whether a column has several values in a cell, each a plain one."""
    from pyarrow import types

    kind = field.type
    return (types.is_list(kind) or types.is_large_list(kind)) and not kind.value_type.num_fields


def _cells(file: Any, field: Any, classes: list[str] | None) -> list[str]:
    """The cells of a column; those of images are the paths that stand beside the content."""
    name = field.name
    if _leaf(field) is not None:
        if not field.type.num_fields or field.type.get_field_index("path") < 0:
            return [""] * int(file.metadata.num_rows)
        name = f"{name}.path"
    values = file.read(columns=[name]).column(0).to_pylist()
    if name != field.name:
        values = [row and row["path"] for row in values]

    def text(value: Any) -> str:
        if isinstance(value, list):
            return LIST_SEPARATOR.join(map(text, value))
        if value is None or value != value:
            return ""
        if classes is not None:  # -1: not known
            return classes[value] if 0 <= value < len(classes) else ""
        return str(value).strip()

    return [text(value) for value in values]


def _content(value: Any) -> bytes:
    """The image file in a cell; empty: there is none."""
    plain = value.as_py()
    return (plain["bytes"] if isinstance(plain, dict) else plain) or b""


def _contents(shard: Path, leaf: str) -> Iterator[bytes]:
    """The image file of each row."""
    with _errors(shard):
        for batch in _opened(shard).iter_batches(_AT_ONCE, columns=[leaf]):
            yield from map(_content, batch.column(0))


def _pack(shard: Path, leaf: str, rows: int, folder: Path, bar: Any) -> _Pack:
    """The pack of a shard, from `folder`, or made there."""
    status = shard.stat()
    about = f"{shard.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{leaf}"
    made_of = hashlib.blake2b(os.fsencode(about), digest_size=16).hexdigest()
    path = folder / f"{made_of}.pack"
    if path.exists() and (at := path.stat().st_size - rows * _PER_IMAGE.itemsize) >= 0:
        table = np.fromfile(path, _PER_IMAGE, offset=at)
        if not rows or table["end"][-1] == at:
            bar.update(rows)
            return _Pack(str(path), str(shard), leaf, table["end"], table["hash"])
    table = np.zeros(rows, _PER_IMAGE)
    with staging(path) as staged:
        with open(staged, "wb") as out:
            for row, content in enumerate(_contents(shard, leaf)):
                out.write(content)
                table[row] = out.tell(), content_hash(content)
                bar.update()
            out.write(table.tobytes())
            out.flush()
            os.fsync(out.fileno())
        move_over(staged, path)
    return _Pack(str(path), str(shard), leaf, table["end"], table["hash"])
