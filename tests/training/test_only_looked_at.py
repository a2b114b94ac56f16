"""What is only looked at ends nothing: pictures that fail, a full disk for them, odd names."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import SMALL, lines
from pictures import noise, save
from tensorboard.summary.writer import record_writer
from torch.utils.tensorboard import summary
from torch.utils.tensorboard.writer import SummaryWriter

from vit.artifacts import checkpoint
from vit.artifacts.run_dir import RunDir
from vit.cli import front
from vit.cli.eval import evaluate
from vit.cli.train import train
from vit.training.monitor import TensorBoardPictures

pytestmark = pytest.mark.slow

ODD = ["a\nb", "\x1b[31mred", "tab\tx", os.fsdecode(b"\xff\xfe")]
SHORT = ["trainer.epochs=2", "trainer.histograms=true"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    return tmp_path


def command(name: str, *args: str) -> int:
    sys.argv = [f"vit-{name}", *args]
    return front.run(name, {"train": train, "eval": evaluate}[name])


def broken(*args: Any, **kwargs: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("owner", "name", "told"), [
    (TensorBoardPictures, "add", "pictures of the validation cannot be made"),
    (SummaryWriter, "add_image", "TensorBoard's curves and pictures cannot be made"),
    (SummaryWriter, "add_scalar", "TensorBoard's curves and pictures cannot be made"),
    (SummaryWriter, "add_histogram", "TensorBoard's curves and pictures cannot be made"),
    (summary, "hparams", "TensorBoard's curves and pictures cannot be made"),
    (SummaryWriter, "__init__", "TensorBoard's curves and pictures cannot be made"),
    (record_writer.RecordWriter, "write", "TensorBoard's curves and pictures cannot be made"),
])  # fmt: skip
def test_a_picture_that_fails_is_one_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    owner: object, name: str, told: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(owner, name, broken)
    assert command("train", *SMALL, *SHORT, "name=r") == 0
    err = capsys.readouterr().err
    assert err.count(told) == 1
    assert "Traceback" not in err
    run = RunDir(folder / "outputs" / "r")
    assert run.read_summary()["state"] == "finished"
    assert lines(run.metrics)[-1]["event"] == "test"


def test_the_checkpoint_comes_before_the_pictures(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(folder / "outputs" / "r")
    there: list[tuple[int, bool]] = []

    def look(self: TensorBoardPictures, model: object, predictions: object, step: int) -> None:
        there.append((step, run.step_file(step).is_file() and run.best.is_file()))

    monkeypatch.setattr(TensorBoardPictures, "add", look)
    assert command("train", *SMALL, *SHORT, "name=r") == 0
    assert there
    assert all(saved for _, saved in there)


def test_odd_class_names_train_and_are_shown_safely(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(ODD):
        for i in range(12):
            save(folder / "photos" / name / f"{i}\n.png", noise(8, 8, seed=100 * number + i))
    data = ["data=folder", "data.root=photos", "data.image_size=8", "trainer.batch_size=8"]
    assert command("train", *SMALL, *data, "trainer.steps=4", "name=r") == 0
    assert command("train", "resume=outputs/r", "trainer.steps=6") == 0
    assert command("eval", "checkpoint=outputs/r") == 0
    shown = "".join(capsys.readouterr())
    assert "\x1b" not in shown
    assert "cannot be made" not in shown
    assert checkpoint.load(folder / "outputs/r/checkpoints/best.pt")["classes"] == sorted(ODD)
    scored = folder / "outputs" / "r" / "eval" / "test"
    rows = json.loads((scored / "metrics.json").read_text())["per_class"]
    assert [row["class"] for row in rows] == sorted(ODD)
    assert "\x1b" not in (scored / "report" / "index.html").read_text(encoding="utf-8")
    # A report that fails leaves the numbers.
    monkeypatch.setattr("vit.evaluation.review.page", broken)
    assert command("eval", "checkpoint=outputs/r", "output=again") == 0
    assert "the report cannot be made" in capsys.readouterr().err
    assert (folder / "again" / "metrics.json").is_file()
