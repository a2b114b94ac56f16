"""`vit-runs` of broken run folders, and its CSV."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import run
from run_folders import Make, runs_of

from vit.artifacts.run_dir import RunDir
from vit.artifacts.runs import (
    by_images,
)
from vit.artifacts.runs_page import runs_page
from vit.artifacts.runs_table import runs_csv
from vit.cli.runs import overview

# CSV


def test_csv_has_every_run_and_every_score(make: Make) -> None:
    for i in range(5):
        last = make(f"r,{i}", 10.0 * i if i else None, optim__lr=10.0**-i, seed=i)
    rows = list(csv.DictReader(io.StringIO(runs_csv(runs_of(last)))))
    assert [row["run"] for row in rows] == [f"r,{i}" for i in (4, 3, 2, 1, 0)]
    assert [row["val_top1"] for row in rows] == ["40.0", "30.0", "20.0", "10.0", ""]
    assert [float(row["optim.lr"]) for row in rows] == [10.0**-i for i in (4, 3, 2, 1, 0)]
    assert [int(row["seed"]) for row in rows] == [4, 3, 2, 1, 0]
    assert {"state", "test_top1", "test_loss", "step", "seconds", "images_val"} <= rows[0].keys()
    assert [Path(row["folder"]).name for row in rows] == [row["run"] for row in rows]
    assert {row["scored on"] for row in rows} == {*by_images(runs_of(last))}
    assert "versions" not in rows[0]
    printed = run("runs", "--csv", str(last.path.parent), cwd=last.path)
    assert printed.stdout == runs_csv(runs_of(last))


# What is broken


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    done = run("runs", "nowhere", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "nowhere is no folder" in done.stderr


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null", b"- a\n- b", b"a: [",
                                     b'{"event": "val", "top', b"{}", b"[" * 9999,
                                     b'{"val_top1": 1' + b"0" * 399 + b'}',
                                     b'{"val_top1": 1' + b"0" * 5000 + b'}',
                                     b'{"val_top1": NaN, "seconds": 1e999, "params": {"a": []}}',
                                     b'{"event": "val", "epoch": 1' + b"0" * 400 + b', "top1": 1}',
                                     ])  # fmt: skip
@pytest.mark.parametrize("file", ["summary.json", "config.yaml", "metrics.jsonl", "images.json.gz"])
def test_a_broken_file_does_not_stop_it(make: Make, file: str, content: bytes) -> None:
    make("good-1", 60.0, optim__lr=0.1)
    make("good-2", 70.0, optim__lr=0.2)
    broken = make("broken", 65.0, optim__lr=0.3)
    (broken.path / file).write_bytes(content)
    runs = runs_of(broken)
    assert {found.name for found in runs} == {"good-1", "good-2", "broken"}
    for text in (overview(runs), runs_csv(runs)):
        assert all(name in text for name in ("good-1", "good-2", "broken"))
    assert "parallel coordinates" in runs_page("title", runs, broken.path)


def test_yaml_that_expands_without_bound_is_no_config(make: Make) -> None:
    bomb = "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}, *a{i}]\n" for i in range(40))
    last = make("bomb")
    last.config.write_text(f"a0: &a0 [x]\n{bomb}")
    (found,) = runs_of(last)
    assert found.config == {}


def test_names_move_no_cursor(make: Make) -> None:
    make("a\x1b[2J\rb", optim__lr=0.1)
    assert "a\\x1b[2J\\rb" in overview(runs_of(make("c", optim__lr=0.2)))


def test_two_hundred_runs_at_once_and_without_torch(make: Make, finished: Path) -> None:
    for i in range(200):
        last = make(
            f"r{i:03}", 50 + i % 37, optim__lr=1e-3 * (1 + i % 5), model__depth=1 + i % 3, seed=i
        )
    log = (finished / "metrics.jsonl").read_bytes() * 20
    for found in runs_of(last):
        RunDir(found.path).metrics.write_bytes(log)
    page = str(last.path / "page.html")
    code = (
        "import sys; from vit.cli.runs import main; main(); "
        "assert not {'torch', 'hydra', 'omegaconf', 'numpy', 'optuna'} & set(sys.modules)"
    )
    times = []
    for _ in range(2):
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code, str(last.path.parent), "--html", page],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        times.append(time.monotonic() - start)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("finished") > 200
    assert min(times) < 2, times
