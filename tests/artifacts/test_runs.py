"""`vit-runs`: states, seeds, effects, CSV and page, of whole and of broken run folders."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import yaml
from browser import Page, driven, needs_browser
from commands import run

from vit.artifacts.run_dir import RunDir
from vit.artifacts.runs import curve, differing, effects, groups, read_runs, spread
from vit.artifacts.runs_table import runs_csv, runs_table
from vit.cli.runs import overview

HOSTILE = "<script>alert(1)</script>"  # a folder in a folder
Make = Callable[..., RunDir]


@pytest.fixture
def make(finished: Path, tmp_path: Path) -> Make:
    """A function that leaves a run folder like those of real runs, with some settings changed."""
    plain = yaml.safe_load((finished / "config.yaml").read_text())
    summary = json.loads((finished / "summary.json").read_text())

    def one(
        name: str, top1: float | None = 50.0, state: str = "finished", **changes: Any
    ) -> RunDir:
        folder = RunDir(tmp_path / "runs" / name)
        folder.checkpoints.mkdir(parents=True)
        config = json.loads(json.dumps({**plain, "name": name}))
        for key, value in changes.items():
            section, _, last = key.rpartition("__")
            (config[section] if section else config)[last] = value
        folder.write_config(yaml.safe_dump(config, sort_keys=False))
        folder.write_summary({**summary, "state": state, "val_top1": top1, "step": 40})
        shutil.copy(finished / "metrics.jsonl", folder.metrics)
        return folder

    return one


def runs_of(folder: RunDir) -> list[Any]:
    return read_runs(folder.path.parent)


# States


def test_states(make: Make) -> None:
    for state in ("finished", "failed", "interrupted", "pruned"):
        make(state, state=state)
    running, killed = make("running", state="running"), make("killed", state="running")
    make("killed-early", state="running")
    for step in (10, 30, 20):
        killed.step_file(step).touch()
    (killed.checkpoints / "best.pt").touch()
    running.lock()
    try:
        states = {found.name: found.state for found in runs_of(running)}
    finally:
        running.unlock()
    assert states == {
        "finished": "finished", "failed": "failed", "interrupted": "interrupted at step 40",
        "pruned": "pruned at step 40", "running": "running", "killed": "killed at step 30",
        "killed-early": "killed at step 0",
    }  # fmt: skip
    assert {r.name: r.state for r in runs_of(running)}["running"] == "killed at step 0"
    text = runs_table(runs_of(running)).splitlines()
    assert len(text) == 8
    assert all(line.endswith(tuple(states.values())) for line in text[1:] if "running" not in line)


def test_a_real_run_and_a_sweep_below(finished: Path, make: Make, tmp_path: Path) -> None:
    (only,) = read_runs(finished)
    assert (only.name, only.state) == ("done", "finished")
    assert only.score() == only.summary["val_top1"]
    assert len(curve(only.path)) == 3
    assert only.config["model.dim"] == 16
    make("sweep/a")
    make("alone")
    assert {found.name for found in read_runs(tmp_path / "runs")} == {"alone", "sweep/a"}


def test_the_best_come_first(make: Make) -> None:
    for name, top1 in (("b", 70.0), ("none", None), ("a", 90.0), ("zero", 0.0)):
        last = make(name, top1)
    assert [found.name for found in runs_of(last)] == ["a", "b", "zero", "none"]


# Comparisons


def test_seeds_belong_together(make: Make) -> None:
    scores = {1e-3: [91.0, 92.5, 90.0], 3e-3: [95.0, 96.0], 1e-2: [80.0]}
    for lr, values in scores.items():
        for seed, top1 in enumerate(values):
            last = make(f"{lr}-{seed}", top1, optim__lr=lr, seed=seed, data__root=f"/{seed}")
    make("0.01-1", None, "failed", optim__lr=1e-2, seed=1)
    found = groups(runs_of(last))
    assert [group.settings for group in found] == [{"optim.lr": lr} for lr in (3e-3, 1e-3, 1e-2)]
    for group in found:
        assert sorted(group.scores()) == sorted(scores[group.settings["optim.lr"]])
    assert spread([91.0, 92.5, 90.0]) == "91.17 ± 1.26"  # by hand: 274.5 / 3, sqrt(3.1667 / 2)
    values = scores[1e-3]
    assert spread(values) == f"{mean(values):.2f} ± {stdev(values):.2f}"
    assert (spread([80.0]), spread([])) == ("80.00", "-")
    text = overview(runs_of(last))
    assert re.search(r"^0\.001 +91\.17 ± 1\.26 .* 3/3 ", text, re.M)
    assert re.search(r"^0\.01 +80\.00 .* 1/2 ", text, re.M)


def test_the_share_of_a_setting_is_eta_squared(make: Make) -> None:
    grid = {(1e-3, 0.02): 60.0, (1e-3, 0.1): 62.0, (3e-3, 0.02): 70.0, (3e-3, 0.1): 72.0}
    for (lr, wd), top1 in grid.items():
        last = make(f"{lr}-{wd}", top1, optim__lr=lr, optim__weight_decay=wd)
    make("failed", None, "failed", optim__lr=9.0)
    first, second = effects(runs_of(last))
    # All around 66: 36 + 16 + 16 + 36 = 104; lr: 4 x 5^2 = 100; weight decay: 4 x 1^2 = 4.
    assert (first.key, second.key) == ("optim.lr", "optim.weight_decay")
    assert first.share == pytest.approx(100 / 104)
    assert second.share == pytest.approx(4 / 104)
    assert first.means == {"0.001": 61.0, "0.003": 71.0}
    assert second.means == {"0.02": 65.0, "0.1": 67.0}
    assert "96 %" in overview(runs_of(last))


def test_equal_scores_have_no_cause(make: Make) -> None:
    for depth in (1, 2):
        last = make(f"{depth}", 50.0, model__depth=depth)
    (effect,) = effects(runs_of(last))
    assert effect.share == 0.0
    assert effects(runs_of(last)[:1]) == []


def test_what_differs(make: Make) -> None:
    for i, (depth, mixup) in enumerate([(1, 0.0), (2, 0.0), (2, 0.8), (1, 0.0)]):
        last = make(
            f"{i}", seed=i, model__depth=depth, model__heads=depth, augment__mixup=mixup,
            data__workers=i,
        )  # fmt: skip
    # heads change with the depth; seeds, names and places do not count
    assert differing(runs_of(last)) == ["model.depth", "augment.mixup"]
    assert differing(runs_of(last)[:1]) == []


def test_what_always_differs_is_all_named(make: Make) -> None:
    for i in range(3):
        last = make(f"{i}", optim__lr=0.1 * (i + 1), optim__weight_decay=0.2 * (i + 1))
    assert differing(runs_of(last)) == ["optim.lr", "optim.weight_decay"]


# CSV


def test_csv_has_every_run_and_every_score(make: Make) -> None:
    for i in range(5):
        last = make(f"r,{i}", 10.0 * i if i else None, optim__lr=10.0**-i, seed=i)
    rows = list(csv.DictReader(io.StringIO(runs_csv(runs_of(last)))))
    assert [row["run"] for row in rows] == [f"r,{i}" for i in (4, 3, 2, 1, 0)]
    assert [row["val_top1"] for row in rows] == ["40.0", "30.0", "20.0", "10.0", ""]
    assert [float(row["optim.lr"]) for row in rows] == [10.0**-i for i in (4, 3, 2, 1, 0)]
    assert [int(row["seed"]) for row in rows] == [4, 3, 2, 1, 0]
    assert {"state", "test_top1", "test_loss", "step", "seconds"} <= rows[0].keys()
    assert "versions" not in rows[0]
    printed = run("runs", "--csv", str(last.path.parent), cwd=last.path)
    assert printed.stdout == runs_csv(runs_of(last))


# The page


def page_of(folder: Path) -> str:
    file = folder.parent / "deep" / "page.html"
    done = run("runs", str(folder), "--html", str(file), cwd=folder.parent)
    assert (done.returncode, done.stderr) == (0, "")
    return file.read_text()


def test_the_page_shows_everything_and_needs_nothing(make: Make) -> None:
    for i in range(6):
        last = make(f"r{i}", 50.0 + i, optim__lr=10.0**-i, model__pool=("cls", "mean")[i % 2])
    text = page_of(last.path.parent)
    assert "parallel coordinates" in text
    assert "validation top-1 over epochs" in text
    page = Page(text)
    assert sum(tag == "polyline" for tag, _ in page.tags) == 12
    assert sum(tag == "svg" for tag, _ in page.tags) == 2
    assert {f"r{i}: {50 + i:.2f}" for i in range(6)} <= set(page.texts)
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert name not in ("src", "href", "action", "data"), attributes
            assert "://" not in (value or "") or name.startswith("xmlns")
    assert not re.search(r"https?://|url\(|@import|//cdn", text)


def test_hostile_names_are_text(make: Make, tmp_path: Path) -> None:
    for i, name in enumerate((HOSTILE, '"\'&"><img>')):
        make(name, 50.0 + i, model__name=f"{HOSTILE}{i}", optim__lr=10.0**-i)
    (tmp_path / "runs").rename(tmp_path / "<b>runs")
    text = page_of(tmp_path / "<b>runs")
    assert HOSTILE not in text
    page = Page(text)
    assert sum(tag == "script" for tag, _ in page.tags) == 1  # its own
    assert not {"img", "b"} & {tag for tag, _ in page.tags}
    assert any(words.startswith(f"{HOSTILE}: 50") for words in page.texts)
    assert f"{HOSTILE}1" in page.texts


SORT_BY_SCORE = """
  const heads = [...document.querySelectorAll("th[scope=col]")];
  const column = heads.findIndex(head => head.textContent === "val top-1");
  const scores = () => [...document.querySelectorAll("table tbody")][0].rows;
  const texts = () => [...scores()].map(row => parseFloat(row.cells[column].textContent));
  const found = {};
  heads[column].click();
  found.falling = texts();
  heads[column].click();
  found.rising = texts();
  found.wide = document.documentElement.scrollWidth;
  found.view = innerWidth;
  return found;
"""


@needs_browser
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_sorts_the_runs(make: Make, tmp_path: Path, width: int) -> None:
    for i, score in enumerate((51.0, 9.5, 88.0)):
        last = make(f"r{i}", score, model__name=f"{HOSTILE}{i}", optim__lr=10.0**-i)
    found = driven(page_of(last.path.parent), SORT_BY_SCORE, tmp_path, width)
    assert found["falling"] == [88.0, 51.0, 9.5]
    assert found["rising"] == [9.5, 51.0, 88.0]
    assert found["wide"] <= found["view"]


@pytest.mark.parametrize("runs", [0, 1])
def test_few_runs_have_a_page_too(make: Make, tmp_path: Path, runs: int) -> None:
    folder = make("only").path if runs else tmp_path / "empty"
    folder.mkdir(exist_ok=True)
    text = page_of(folder)
    assert f"{runs} runs" in text
    assert "parallel coordinates" not in text
    said = run("runs", str(folder), cwd=tmp_path).stdout
    assert ("only" in said) if runs else (said == "no runs here\n")


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
@pytest.mark.parametrize("file", ["summary.json", "config.yaml", "metrics.jsonl"])
def test_a_broken_file_does_not_stop_it(make: Make, file: str, content: bytes) -> None:
    make("good-1", 60.0, optim__lr=0.1)
    make("good-2", 70.0, optim__lr=0.2)
    broken = make("broken", 65.0, optim__lr=0.3)
    (broken.path / file).write_bytes(content)
    runs = runs_of(broken)
    assert {found.name for found in runs} == {"good-1", "good-2", "broken"}
    for text in (overview(runs), runs_csv(runs)):
        assert all(name in text for name in ("good-1", "good-2", "broken"))
    from vit.artifacts.runs_page import runs_page

    assert "parallel coordinates" in runs_page("title", runs)


def test_yaml_that_expands_without_bound_is_no_config(make: Make) -> None:
    bomb = "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}, *a{i}]\n" for i in range(40))
    last = make("bomb")
    last.config.write_text(f"a0: &a0 [x]\n{bomb}")
    (found,) = runs_of(last)
    assert found.config == {}


def test_names_move_no_cursor(make: Make) -> None:
    make("a\x1b[2J\rb", optim__lr=0.1)
    assert "a\\x1b[2J\\rb" in overview(runs_of(make("c", optim__lr=0.2)))


def test_a_page_that_cannot_be_written_is_told_in_a_line(make: Make, tmp_path: Path) -> None:
    make("one")
    done = run("runs", ".", "--html", "/proc/nowhere/page.html", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("vit-runs: --html=/proc/nowhere/page.html cannot be written")
    assert done.stderr.count("\n") == 1


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
