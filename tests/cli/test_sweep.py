"""Sweeps: killed, failed, in parallel and pre-empted, the table is that of an unbroken one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch
from kill_resume import differences, metrics
from pictures import noise, save
from sweeping import TINY, table, written
from together import forked, job, run_together, train, wait_until

from vit.artifacts.run_dir import RunDir
from vit.artifacts.runs import read_runs
from vit.cli.sweep import own_gpu

GRID = ["-m", *TINY, "optim.lr=1e-3,3e-3,1e-2", "optim.weight_decay=0.02,0.1", "seed=0,1"]
INSTALLED = {found.name for found in distributions()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweeps")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """The unbroken sweep."""
    done = run_together(1, *GRID, "name=whole", cwd=folder)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(" finished") >= 12
    return folder / "outputs" / "whole"


def test_a_sweep_leaves_a_table_and_a_page(whole: Path) -> None:
    rows = table(whole)
    assert len(rows) == 12
    assert {row["state"] for row in rows} == {"finished"}
    settings = {(row["optim.lr"], row["optim.weight_decay"], row["seed"]) for row in rows}
    assert len(settings) == 12
    page = (whole / "index.html").read_text()
    assert all(row["run"] in page for row in rows)


def test_a_killed_sweep_ends_like_an_unbroken_one(folder: Path, whole: Path) -> None:
    rng, broken = random.Random(0), folder / "outputs" / "broken"
    before: dict[Path, int] = {}
    for _ in range(3):
        begun = len(list(broken.glob("*/metrics.jsonl")))
        more = begun + rng.randint(2, 3)
        with forked(1, train, [*GRID, "name=broken"], folder, folder / "said.txt"):
            wait_until(lambda more=more: len(list(broken.glob("*/metrics.jsonl"))) >= more)
            time.sleep(rng.uniform(0, 0.3))
        now = written(broken)
        assert before.items() <= now.items()
        before = now
    assert 0 < len({file.relative_to(broken).parts[0] for file in before}) < 12
    done = run_together(1, *GRID, "name=broken", cwd=folder)
    assert done.returncode == 0, done.stdout
    assert before.items() <= written(broken).items()
    assert table(broken) == table(whole)
    for found in read_runs(whole):
        assert differences(RunDir(found.path), RunDir(broken / found.name)) == []


def test_a_signal_stops_the_whole_sweep(folder: Path, whole: Path) -> None:
    stopped, said = folder / "outputs" / "stopped", folder / "stopped.txt"
    with forked(1, train, [*GRID, "name=stopped"], folder, said) as (process,):
        wait_until(lambda: len(list(stopped.glob("*/checkpoints/step*"))) >= 3)
        process.terminate()
        process.join(60)
        assert process.exitcode == 128 + signal.SIGTERM
    assert "interrupted and saved at step" in said.read_text()
    assert "val_top1" not in said.read_text()  # no table of half a sweep
    states = [found.state.split()[0] for found in read_runs(stopped)]
    assert states.count("interrupted") == 1
    assert set(states) <= {"finished", "interrupted"}
    done = run_together(1, *GRID, "name=stopped", cwd=folder)
    assert done.returncode == 0, done.stdout
    assert table(stopped) == table(whole)


def test_a_finished_sweep_does_nothing(folder: Path, whole: Path) -> None:
    before = written(whole)
    done = run_together(1, *GRID, "name=whole", cwd=folder)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("is finished") == 12
    assert written(whole) == before


@pytest.mark.skipif("hydra-joblib-launcher" not in INSTALLED, reason="not installed")
def test_jobs_in_parallel_give_the_same_table(folder: Path, whole: Path) -> None:
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "name=parallel"]
    with job("-m", "vit.cli.train", *GRID, *parallel, cwd=folder) as started:
        done = started.finish()
    assert done.returncode == 0, done.stdout
    assert table(folder / "outputs" / "parallel") == table(whole)


# Failures


def test_a_failed_job_is_recorded_and_run_again(tmp_path: Path) -> None:
    for label in "ab":
        for i in range(20):
            save(tmp_path / "here" / label / f"{i}.png", noise(16, 16, seed=ord(label) + i))
    args = ["-m", *TINY, "data=folder", "data.root='here','there'", "data.image_size=16", "name=s"]
    first = run_together(1, *args, "trainer.batch_size=16", cwd=tmp_path)
    assert first.returncode == 1, first.stdout
    assert "1 of 2 jobs did not finish" in first.stdout
    assert "Traceback" not in first.stdout
    folder = tmp_path / "outputs" / "s"
    found = {Path(found.config["data.root"]).name: found for found in read_runs(folder)}
    assert {name: one.state for name, one in found.items()} == {
        "here": "finished", "there": "failed",
    }  # fmt: skip
    assert "failed" in first.stdout.split("at epoch", 1)[1]
    failed = RunDir(found["there"].path)
    assert failed.read_summary()["exit_code"] == 2
    assert "there" in failed.read_summary()["error"]
    assert "root: there" in failed.config.read_text()
    error = (failed.path / "error.txt").read_text()
    assert error.startswith("Traceback")
    assert "DataError" in error or "ConfigError" in error

    good = written(folder)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    again = run_together(1, *args, "trainer.batch_size=16", cwd=tmp_path)
    assert again.returncode == 0, again.stdout
    assert again.stdout.count("is finished") == 1
    assert good.items() <= written(folder).items()
    assert {found.state for found in read_runs(folder)} == {"finished"}
    assert metrics(RunDir(found["here"].path)) == metrics(failed)


def test_a_crash_of_a_job_is_no_crash_of_the_sweep(tmp_path: Path) -> None:
    args = ["-m", *TINY, "optim.lr=1e-3,1e12", "optim.clip_norm=null", "trainer.max_bad_steps=1"]
    done = run_together(
        1, *args, "trainer.log_every=1", "schedule.warmup=0", "name=s", cwd=tmp_path
    )
    assert done.returncode == 1
    found = {one.config["optim.lr"]: one for one in read_runs(tmp_path / "outputs" / "s")}
    assert found[1e-3].state == "finished"
    assert found[1e12].state == "failed"
    assert found[1e12].summary["exit_code"] == 4
    assert "DivergedError" in (found[1e12].path / "error.txt").read_text()


# Submitit


@pytest.mark.skipif("hydra-submitit-launcher" not in INSTALLED, reason="not installed")
def test_a_job_that_is_moved_away_goes_on_by_itself(folder: Path) -> None:
    """SIGUSR2 is how a cluster announces that it takes the machine back."""
    args = [*TINY, "trainer.steps=150", "trainer.save_every=10"]
    alone = run_together(1, *args, "name=alone", cwd=folder)
    assert alone.returncode == 0, alone.stdout
    queued = ["hydra/launcher=submitit_local", "name=queued"]
    queue = folder / "outputs" / "queued"
    with job("-m", "vit.cli.train", "-m", *args, *queued, cwd=folder) as started:
        assert wait_until(lambda: list(queue.glob("*/checkpoints/step*")), started.is_over)
        (task,) = started.members("submitit.core._submit")
        os.kill(task, signal.SIGUSR2)
        done = started.finish()
    assert done.returncode == 0, done.stdout
    logs = [file.read_text() for file in queue.glob(".submitit/*/*.err")]
    assert any("preempted" in text for text in logs)
    (moved,) = read_runs(queue)
    assert moved.state == "finished"
    assert differences(RunDir(folder / "outputs" / "alone"), RunDir(moved.path)) == []


@pytest.mark.parametrize(
    ("process", "given", "gpus", "seen"),
    [
        ("LokyProcess-1", None, 4, "0"),
        ("LokyProcess-3", None, 4, "2"),
        ("LokyProcess-6", None, 4, "1"),
        ("LokyProcess-2", "5,7", 2, "7"),
        ("LokyProcess-2", None, 1, None),
        ("LokyProcess-2", None, 0, None),
        ("MainProcess", None, 4, None),
    ],
)
def test_jobs_side_by_side_have_a_gpu_each(
    process: str, given: str | None, gpus: int, seen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    own_gpu(process)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == seen
