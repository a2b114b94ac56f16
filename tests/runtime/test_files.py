"""Files: put in place together, what was killed is swept, no cell is a formula."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vit.errors import ConfigError
from vit.runtime.files import prepare_folder, staging, to_csv_line, together

NAMES = ("a.txt", "b/c.txt")


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write(folder: Path, text: str, *names: str) -> None:
    with together(folder, NAMES) as staged:
        for name in names:
            (staged / name).parent.mkdir(exist_ok=True)
            (staged / name).write_text(text)


def write_and_fail(folder: Path) -> None:
    with together(folder, NAMES) as staged:
        (staged / "a.txt").write_text("second")
        raise ZeroDivisionError


def test_files_of_two_times_never_stand_together(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    write(folder, "first", *NAMES)
    (folder / "own.txt").write_text("mine")
    write(folder, "second", "a.txt")
    assert content(folder) == {"a.txt": "second", "own.txt": "mine"}
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write(folder, "first", *NAMES)
    with pytest.raises(ZeroDivisionError):
        write_and_fail(folder)
    assert content(tmp_path) == {"out/a.txt": "first", "out/b/c.txt": "first"}


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"output=.*file/out cannot be written"):
        write(tmp_path / "file" / "out", "first", "a.txt")
    with pytest.raises(ConfigError, match=r"key=.*cannot be written .*; choose another folder"):
        prepare_folder("key", tmp_path / "file" / "deep" / "out")
    prepare_folder("key", tmp_path / "deep" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_next_one_sweeps_what_was_killed_and_not_what_is_being_written(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from vit.runtime.files import staging\n"
        "with staging(Path(sys.argv[1])) as path: path.write_text('half'); os._exit(9)"
    )
    for name in ("model.onnx", "other.onnx"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=False)
    assert len(os.listdir(tmp_path)) == 2
    with staging(tmp_path / "model.onnx") as first:
        first.write_text("whole")
        with staging(tmp_path / "model.onnx"):
            assert first.read_text() == "whole"
            assert len(os.listdir(tmp_path)) == 3
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".other.onnx-")


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "a=1", "", 'a,b\n"c'])
def test_no_cell_is_a_formula(name: str) -> None:
    line = to_csv_line([name, -1.5, 2]).decode()
    (cells,) = csv.reader(io.StringIO(line, newline=""))
    assert cells == [f"'{name}" if name[:1] in tuple("=+-@\t\r") else name, "-1.5", "2"]
