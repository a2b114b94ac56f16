"""metrics.jsonl of a resumed run is what the checkpoint says, or it is told; JSON has no NaN."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vit.artifacts.logger import Logger
from vit.artifacts.run_dir import RunDir
from vit.runtime.files import to_json


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def logged(run: RunDir) -> tuple[int, int, str]:
    """Ten steps, a checkpoint after the eighth: its step and what it says of metrics.jsonl."""
    logger = Logger(run)
    saved = (0, 0, "")
    for step in range(1, 11):
        logger.log("train", step, {"loss": 1 / step})
        if step == 8:
            saved = (step, *logger.durable())
    logger.log("test", 10, {"loss": 0.5})
    logger.close()
    return saved


def steps(run: RunDir) -> list[int]:
    return [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()]


def test_what_came_after_the_checkpoint_is_cut_off(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = logged(run)
    for _ in range(2):
        again = Logger(run, *saved)
        again.log("train", 9, {"loss": 2.0})
        saved = (9, *again.durable())
        again.log("train", 10, {"loss": 2.0})
        again.close()
    Logger(run, *saved).close()
    assert steps(run) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 9]
    assert capsys.readouterr().err == ""


DAMAGES = {
    "shorter": lambda data, at: data[: at - 70],
    "torn": lambda data, at: data[: at - 7],
    "empty": lambda data, at: b"",
    "a digit": lambda data, at: data.replace(b"0.25", b"0.35"),
    "zeros": lambda data, at: data[:100] + bytes(80) + data[180:],
    "a line more": lambda data, at: b'{"event": "note"}\n' + data,
    "a line less": lambda data, at: data.partition(b"\n")[2],
    "no text": lambda data, at: b"\xff\xfe" * 40,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_said_and_never_continued_behind_a_torn_line(
    run: RunDir, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    step, length, digest = logged(run)
    content = DAMAGES[damage](run.metrics.read_bytes(), length)
    run.metrics.write_bytes(content)
    logger = Logger(run, step, length, digest)
    assert "is not as it was at step 8" in capsys.readouterr().err
    logger.log("train", 9, {"loss": 3.0})
    saved = (9, *logger.durable())
    logger.close()
    found = steps(run)  # every line is JSON
    assert found[-1] == 9
    assert found == sorted(found)
    assert (run.path / "metrics-damaged-8.jsonl").read_bytes() == content
    Logger(run, *saved).close()
    assert capsys.readouterr().err == ""


def test_a_missing_file_is_said(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    saved = logged(run)
    run.metrics.unlink()
    Logger(run, *saved).close()
    assert "0 bytes" in capsys.readouterr().err


def test_a_checkpoint_of_an_earlier_version_knows_the_length_alone(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    step, length, _ = logged(run)
    Logger(run, step, length, None).close()
    assert steps(run) == list(range(1, 9))
    Logger(run, step, length - 3, None).close()
    assert "is not as it was" in capsys.readouterr().err


def test_json_has_no_nan() -> None:
    values = {"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": (1.5, None, "nan"), "e": 2}
    for indent in (None, 2):
        text = to_json(values, indent)
        plain = json.loads(text, parse_constant=pytest.fail)
        assert plain == {"a": None, "b": [None, {"c": None}], "d": [1.5, None, "nan"], "e": 2}
    assert to_json({"x": 1}).count(b"\n") == 1


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


def test_curves_of_a_run_that_goes_on_have_no_point_twice(run: RunDir) -> None:
    saved = logged(run)
    again = Logger(run, *saved)
    again.log("train", 9, {"loss": 2.0, "lr": 0.5})
    again.close()
    found = curve(run.board("train"), "curves/loss")
    assert found == [*((k, np.float32(1 / k)) for k in range(1, 9)), (9, 2.0)]
    assert curve(run.board("train"), "details/lr") == [(9, 0.5)]


def test_curves_that_lay_elsewhere_are_drawn_again(run: RunDir) -> None:
    """As those of earlier versions did."""
    saved = logged(run)
    old = run.path / "tensorboard"
    run.board("train").rename(old)
    Logger(run, *saved).close()
    assert curve(run.board("train"), "curves/loss") == [(k, np.float32(1 / k)) for k in range(1, 9)]
    assert len(curve(old, "curves/loss")) == 10
