"""What a run says while it trains: its length, lines that fit, and a copy in its folder."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import SMALL, lines, run

from vit.data.task import ONE_LABEL
from vit.runtime import console
from vit.training.clock import due, times_due
from vit.training.components import Components
from vit.training.reporter import PAUSE, WARM_UP, Reporter

BATCH = 64


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.took: dict[str, float] = {}

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    by_hand = Clock()
    monkeypatch.setattr("vit.training.reporter.time", by_hand)
    return by_hand


def reporting(
    clock: Any, steps: int, per_epoch: Fraction, loss: float = 1.0, early_stop: int | None = None
) -> Any:
    """A reporter of a run without a model, with 100 images for validation and 300 to test."""
    plan = SimpleNamespace(
        steps=steps, epoch_at=lambda step: step / per_epoch, eval_every=per_epoch,
        save_every=2 * per_epoch,
    )  # fmt: skip
    state = SimpleNamespace(
        step=0, images=0, seconds=0.0, evaluated_at=0, best=None,
        window_means=lambda window, reset: {"loss": loss, "right": 50.0},
    )  # fmt: skip
    trainer = SimpleNamespace(precision="fp32", batch_size=BATCH, early_stop=early_stop)
    parts: Any = SimpleNamespace(
        plan=plan, state=state, val=range(100),
        config=SimpleNamespace(trainer=trainer, data=SimpleNamespace(memory="stream")),
        test=range(300), train=SimpleNamespace(waited=0.0), device=torch.device("cpu"),
        loss=SimpleNamespace(task=ONE_LABEL),
    )  # fmt: skip
    parts.epochs_text = partial(Components.epochs_text, parts)
    return Reporter(parts, clock, None)  # type: ignore[arg-type]


def trained(here: Any, seconds: float, *, compiled: bool = False) -> None:
    here.clock.seconds += seconds
    here.state.step += 1
    here.state.images += 0 if compiled else BATCH
    here.stepped()


@pytest.mark.parametrize("every", [Fraction(1), Fraction(79, 4), Fraction(20), Fraction(1, 3)])
def test_what_is_still_to_come_is_counted(every: Fraction) -> None:
    for end in (1, 40, 79):
        for step in range(end + 1):
            rest = range(step + 1, end + 1)
            assert times_due(step, end, every) == sum(due(s, every) or s == end for s in rest)


def test_the_length_counts_steps_validations_and_saves(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """But neither the first steps nor those that compiled."""
    here = reporting(clock, steps=1000, per_epoch=Fraction(10))
    trained(here, 90.0, compiled=True)
    for _ in range(WARM_UP):
        trained(here, 7.0)
    clock.took = {"validation": 2.0, "save": 3.0}
    for _ in range(4):
        assert capsys.readouterr().out == ""
        trained(here, 0.5)
    left = 992 * 0.5 + (100 + 3) * 2.0 + 50 * 3.0  # three times as many images to test
    assert here._left() == left
    assert capsys.readouterr().out == f"time     about {console.roughly(left)} from here on\n"
    for _ in range(991):
        trained(here, 0.5)
    assert here._left() == 0.5 + (1 + 3) * 2.0 + 3.0
    trained(here, 0.5)
    assert here._left() is None
    assert capsys.readouterr().out == ""


def test_a_length_says_what_it_does_not_know(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    here = reporting(clock, steps=100, per_epoch=Fraction(50), early_stop=3)
    for _ in range(WARM_UP + 1):
        trained(here, 10.0)
    told = "time     at most 16 min from here on, and the validations\n"
    assert capsys.readouterr().out == told


def test_what_is_nearly_over_needs_no_length(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    here = reporting(clock, steps=WARM_UP + 5, per_epoch=Fraction(50))
    for _ in range(WARM_UP + 5):
        trained(here, 0.5)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7, "7 s"), (58, "1 min"), (202, "3 min 20 s"), (3598, "1 h"), (7900, "2 h 10 min"),
     (86_000, "1 d"), (1e6, "11 d 14 h")],
)  # fmt: skip
def test_lengths_are_round(seconds: float, text: str) -> None:
    assert console.roughly(seconds) == text


@pytest.mark.parametrize(
    ("loss", "text"),
    [(0.6931, "0.693"), (99.9996, "100.000"), (2500.0, "2500"), (1e12, "1e+12"),
     (float("nan"), "nan"), (float("inf"), "inf")],
)  # fmt: skip
def test_a_line_has_less_than_100_columns(
    clock: Clock, loss: float, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    here = reporting(clock, 2_000_000, Fraction(400, 7), loss)
    here.state.step = here.state.evaluated_at = 1_900_001
    here.state.best = SimpleNamespace(step=1_900_001)
    here._val_scores = {"loss": loss, "top1": 99.99}
    clock.seconds, here._per_step = 99 * 3600.0, 3.0
    here.state.images = int(987_654 * clock.seconds)
    here.epoch_line(is_end=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert len(line) < 100
    assert line == (
        f"epoch 33250/35000  loss {text} val {text}  top-1 50.00 val 99.99 *  987,654 img/s  "
        f"83:19:57 left"
    )


def test_a_terminal_shows_some_lines_and_the_best_and_the_last(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def said(is_terminal: bool) -> tuple[list[int], list[int]]:
        monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal, raising=False)
        clock.seconds = 0.0
        here = reporting(clock, steps=40, per_epoch=Fraction(2))
        log = tmp_path / f"{is_terminal}.log"
        with console.kept_in(log) as kept:
            kept.start()
            for epoch in range(1, 21):
                clock.seconds += PAUSE / 4
                here.state.step = here.state.evaluated_at = 2 * epoch
                here._val_scores = {"loss": 1.0, "top1": 50.0}
                if epoch in (2, 3, 7, 19):
                    here.state.best = SimpleNamespace(step=2 * epoch)
                here.epoch_line(is_end=True)
            here.close()
        texts = capsys.readouterr().out, log.read_text()
        shown, logged = ([int(n) for n in re.findall(r"epoch +(\d+)/20", text)] for text in texts)
        return shown, logged

    every = list(range(1, 21))
    assert said(True) == ([1, 3, 5, 7, 9, 13, 17, 19, 20], every)
    assert said(False) == (every, every)


def test_who_waits_for_images_is_told_once(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    here = reporting(clock, steps=40, per_epoch=Fraction(2))
    clock.seconds, here.parts.train.waited = 20.0, 9.0
    for _ in range(2):
        here.epoch_line(is_end=True)
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
