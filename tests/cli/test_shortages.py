"""What runs short or goes away while a run trains: space, open files, its folder, its settings."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import SMALL, run, start
from pictures import noise, save
from together import wait_until

from vit.artifacts.run_dir import RunDir
from vit.errors import DiskFullError
from vit.model.vit import VisionTransformer
from vit.training.setup import _check_space
from vit.training.state import TrainState

pytestmark = pytest.mark.slow


def limited(what: int, most: int, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`vit-train` in a process that may have so much of something."""
    return subprocess.run(
        [sys.executable, "-m", "vit.cli.train", *args], cwd=cwd, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
        preexec_fn=lambda: resource.setrlimit(what, (most, most)),
    )  # fmt: skip


def test_without_a_checkpoint_a_full_disk_asks_for_another_name(tmp_path: Path) -> None:
    args = [*SMALL, "trainer.epochs=3", "name=full"]
    done = limited(resource.RLIMIT_FSIZE, 60_000, *args, cwd=tmp_path)
    assert done.returncode == 5
    (told,) = done.stderr.splitlines()
    assert told.endswith("free some space, then try again: vit-train name=<another name>")
    again = run("train", *args, cwd=tmp_path)
    assert again.stderr == "vit-train: outputs/full exists already; choose another name\n"


def test_with_a_checkpoint_a_full_disk_says_how_to_go_on(tmp_path: Path) -> None:
    args = [*SMALL, "trainer.save_every=5", "name=full", "trainer.epochs=1"]
    assert run("train", *args, cwd=tmp_path).returncode == 0
    more = ["resume=outputs/full", "trainer.epochs=9"]
    done = limited(resource.RLIMIT_FSIZE, 60_000, *more, cwd=tmp_path)
    assert done.returncode == 5
    assert done.stderr.splitlines()[-1].endswith("try again: vit-train resume=outputs/full")
    assert run("train", *more[:1], "trainer.epochs=2", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("free", "outcome"), [(0, "refused"), (20, "refused"), (22, "warned"), (1000, "silent")]
)
def test_the_space_is_looked_at_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    free: int, outcome: str,
) -> None:  # fmt: skip
    model = VisionTransformer(32, 4, 10, dim=192, depth=4, heads=3)  # 7 MB
    state = TrainState(model, None, torch.optim.SGD(model.parameters()), torch.device("cpu"))
    sizes = (0, 0, free * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("", (), {"free": sizes[2]})())
    told = r"takes about 21 MB, and the disk of .* has \d+ MB left; free some, or choose outputs="
    if outcome == "refused":
        with pytest.raises(DiskFullError, match=told):
            _check_space(RunDir(tmp_path), state, keep=2)
    else:
        _check_space(RunDir(tmp_path), state, keep=2)
    assert ("warning: a checkpoint" in capsys.readouterr().err) == (outcome == "warned")


def test_few_open_files_are_one_line(tmp_path: Path) -> None:
    for i in range(40):
        save(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png", noise(20, 20, seed=i))
    args = ["data=folder", "data.root=photos", "data.image_size=16", "data.memory=stream"]
    more = [*SMALL, "data.workers=2", "trainer.batch_size=8", "trainer.steps=2"]
    done = limited(resource.RLIMIT_NOFILE, 12, *args, *more, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "allow more open files (ulimit -n 4096) or give less data.workers" in done.stderr


@pytest.mark.parametrize(
    "change", [lambda run: shutil.move(run, f"{run}-elsewhere"), shutil.rmtree]
)
def test_a_run_folder_that_goes_away_is_one_line(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    process = start("train", *SMALL, "trainer.epochs=900", "name=gone", cwd=tmp_path)
    folder = RunDir(tmp_path / "outputs" / "gone")
    wait_until(lambda: len(folder.step_files()) > 0)
    change(folder.path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert lines == [
        "vit-train: outputs/gone was moved or deleted while it trained; if it is elsewhere, go on "
        "there with vit-train resume=<its folder>"
    ]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 9999, b"a: &a [*a]", b""])
def test_settings_that_are_none_are_one_line(tmp_path: Path, content: bytes) -> None:
    folder = RunDir(tmp_path / "run")
    folder.path.mkdir()
    folder.config.write_bytes(content)
    done = run("train", "resume=run", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("vit-train: run/config.yaml ")
    assert done.stderr.count("\n") == 1


def test_a_run_without_held_out_images_is_evaluated_on_others(tmp_path: Path) -> None:
    args = [*SMALL, "data.val_fraction=0", "data.test_fraction=0", "trainer.steps=2", "name=all"]
    done = run("train", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run("eval", "checkpoint=outputs/all", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "vit-eval: split=test: the run's data has none; give images=<a folder with one sub-folder "
        "for each class>\n"
    )
