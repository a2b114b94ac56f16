"""What a run says while it trains: lines that fit, its length, and a copy in its folder."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import SMALL, lines, run

from vit.runtime import console
from vit.training import reporter
from vit.training.reporter import Reporter


def reporting(**changes: Any) -> Any:
    """A reporter of a run of 1,000 steps of 50 images in 10 epochs, at step 100 after 20 s."""
    plan = SimpleNamespace(
        steps=1000, epoch_at=lambda step: Fraction(step, 100), eval_every=Fraction(100)
    )
    parts = SimpleNamespace(
        plan=plan, epoch=1.0, val=range(300), train=SimpleNamespace(waited=0.0),
        config=SimpleNamespace(trainer=SimpleNamespace(batch_size=50)),
    )  # fmt: skip
    state = SimpleNamespace(
        step=100, images=5000, evaluated_at=100, best=SimpleNamespace(step=100),
        window_means=lambda *_, **__: {"loss": 1.0, "top1": 50.0},
    )  # fmt: skip
    made = {
        "parts": parts, "state": state, "clock": SimpleNamespace(seconds=20.0), "_began": 0.0,
        "_val_scores": {"loss": 2.0, "top1": 25.0}, "_last_line": -1e9, "_told_waiting": False,
        **changes,
    }  # fmt: skip
    here = object.__new__(Reporter)
    vars(here).update(made)
    return here


def test_a_line_says_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    reporting().epoch_line(is_end=True, is_last=False)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        "epoch 1.0/10  loss 1.000 top-1 50.00  val loss 2.000 top-1 25.00 *  250 img/s  "
        "3:04 left"  # 900 steps of 50 images, and nine times a third of 300, at 250 a second
    )
    reporting().epoch_line(is_end=True, is_last=True)
    assert capsys.readouterr().out.endswith("img/s  0:20\n")


def test_lines_stay_below_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    here = reporting()
    here.parts.plan.epoch_at = lambda step: Fraction(123456, 1000)
    here.parts.epoch, here.state.images, here.clock.seconds = 103.21, 55_000_000, 5000.0
    here.parts.plan.steps, here.parts.config.trainer.batch_size = 40_000, 4096
    here.epoch_line(is_end=True, is_last=False)
    assert 80 < len(capsys.readouterr().out) <= 100


def test_a_terminal_gets_a_line_every_few_seconds_and_the_file_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    now = [100.0]
    monkeypatch.setattr(reporter.time, "monotonic", lambda: now[0])
    here = reporting()
    with console.kept_in(tmp_path / "train.log") as kept:
        kept.start()
        for second in range(10):
            now[0] = 100.0 + second
            here.epoch_line(is_end=True, is_last=second == 9)
    assert len(capsys.readouterr().out.splitlines()) == 4  # at 0, 3, 6 and 9 seconds
    assert len((tmp_path / "train.log").read_text().splitlines()) == 10


def test_who_waits_for_images_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    here = reporting()
    here.parts.train.waited = 9.0
    for _ in range(2):
        here.epoch_line(is_end=True, is_last=False)
    (told,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("waiting")]
    assert "45 % of the time" in told
    assert "data.workers" in told


def test_what_cannot_be_kept_is_only_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.kept_in(tmp_path / "nowhere" / "train.log") as kept:
        kept.start()
        console.say("hello")
    assert capsys.readouterr().out == "hello\n"
    console.say("not kept")
    with console.kept_in(tmp_path / "train.log"):
        console.say("this comes to nothing")
    assert not (tmp_path / "train.log").exists()
    assert not (tmp_path / "nowhere").exists()


def test_the_run_folder_has_what_was_said(tmp_path: Path) -> None:
    first = run("train", *SMALL, "trainer.epochs=3", "name=a", cwd=tmp_path)
    log = tmp_path / "outputs/a/train.log"
    assert log.read_text() == first.stdout
    again = run("train", "resume=outputs/a", "trainer.epochs=4", cwd=tmp_path)
    assert log.read_text() == first.stdout + again.stdout
    told = [x for x in log.read_text().splitlines() if re.match(r"epoch \d", x)]
    validations = [x for x in lines(tmp_path / "outputs/a/metrics.jsonl") if x["event"] == "val"]
    assert len(told) == len(validations) == 4


def test_the_bar_never_overshoots(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    whole = console.progress

    def shown(*args: Any, **options: Any) -> Any:
        made.append(whole(*args, **{**options, "disable": False}))
        return made[-1]

    monkeypatch.setattr(console, "progress", shown)
    bar = console.RunBar(12)
    for step in range(6, 13):  # of a run that goes on at step 5
        bar.advance(step)
        assert made[0].n == step <= made[0].total == 12
    assert made[0].initial == 5
    bar.close()
