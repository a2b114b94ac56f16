"""`trainer.minutes`: counted in steps once; the run is then one whose steps were given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import SMALL, run
from composing import changed, problems, sized

from vit.artifacts import checkpoint
from vit.artifacts.run_dir import RunDir
from vit.config.resolve import plan
from vit.config.resume import with_saved
from vit.config.validate import to_plain
from vit.errors import ConfigError
from vit.training.curriculum import rates, segments
from vit.training.pace import Pace, steps_within

IMAGES = 1280


def of_minutes(minutes: float, **settings: Any) -> Any:
    return sized(changed(trainer__epochs=None, trainer__minutes=minutes, **settings))


def pace(config: Any, dropping: float = 0.01, whole: float = 0.03, **others: float) -> Pace:
    step = {rate: dropping if rate else whole for rate in rates(config)}
    return Pace(step, **{"validation": 0.0, "save": 0.0, "rest": 0.0, **others})


def seconds(config: Any, found: Pace, steps: int) -> float:
    length = plan(replace(config, trainer=replace(config.trainer, steps=steps)), IMAGES)
    return found.seconds(config, length)


def test_as_many_steps_as_fit() -> None:
    config = of_minutes(1)
    assert steps_within(config, pace(config, rest=30), IMAGES) == 1000


@pytest.mark.parametrize("minutes", [0.4, 1, 7, 1000])
@pytest.mark.parametrize("end", ["85%", 300, "3ep", "100%"])
def test_all_that_takes_time_is_counted(minutes: float, end: int | str) -> None:
    config = of_minutes(
        minutes, model__patch_dropout=0.5, schedule__patch_dropout_end=end,
        schedule__half_patches_end="40%", trainer__eval_every="1ep",
    )  # fmt: skip
    found = pace(config, validation=2.0, save=0.5, rest=11.0)
    steps = steps_within(config, found, IMAGES)
    assert seconds(config, found, steps) <= 60 * minutes < seconds(config, found, steps + 1)


def test_the_seconds_of_a_run_are_those_of_its_parts() -> None:
    config = of_minutes(
        1, model__patch_dropout=0.5, schedule__patch_dropout_end="80%", trainer__batch_size=64,
        trainer__eval_every="25%", trainer__save_every="2ep",
    )  # fmt: skip
    found = pace(config, validation=2.0, save=0.5, rest=11.0)
    # Of 100 steps, 20 an epoch, 80 drop patches; 4 validations, which save; 3 other saves.
    assert seconds(config, found, 100) == pytest.approx(80 * 0.01 + 20 * 0.03 + 8 + 3.5 + 11)


def test_segments_are_what_the_model_is_fed() -> None:
    config = of_minutes(
        1, model__patch_dropout=0.5, schedule__patch_dropout_end="80%",
        schedule__half_patches_end=30,
    )  # fmt: skip
    length = plan(replace(config, trainer=replace(config.trainer, steps=100)), IMAGES)
    assert list(segments(config, length)) == [(0.75, 30), (0.5, 50), (0.0, 20)]
    assert rates(config) == [0.0, 0.5, 0.75]
    assert rates(of_minutes(1)) == [0.0]


def test_no_time_for_a_step_is_said() -> None:
    config = of_minutes(0.5)
    with pytest.raises(ConfigError, match=r"trainer\.minutes=0\.5 is too short .* take 0\.67;"):
        steps_within(config, pace(config, rest=40), IMAGES)


def test_a_run_is_the_same_as_with_its_steps(tmp_path: Path) -> None:
    done = run("train", *SMALL, "trainer.minutes=0.25", "name=timed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    timed = RunDir(tmp_path / "outputs" / "timed")
    trainer = timed.read_config()["trainer"]
    assert (trainer["epochs"], trainer["minutes"]) == (None, 0.25)
    assert f"minutes  0.25 in all are trainer.steps={trainer['steps']}" in done.stdout
    given = run("train", *SMALL, f"trainer.steps={trainer['steps']}", "name=given", cwd=tmp_path)
    assert given.returncode == 0, given.stderr
    a, b = (
        checkpoint.newest(RunDir(tmp_path / "outputs" / name), print)[1]
        for name in ("timed", "given")
    )
    assert a["step"] == b["step"] == trainer["steps"]
    assert all(torch.equal(a["weights"][key], b["weights"][key]) for key in b["weights"])

    again = run("train", *SMALL, "trainer.minutes=0.25", "name=timed", "resume=auto", cwd=tmp_path)
    assert f"is finished after {trainer['steps']:,} steps" in again.stdout, again.stderr
    longer = run("train", "resume=outputs/timed", "trainer.minutes=1", cwd=tmp_path)
    assert longer.returncode == 2
    assert "trainer.minutes=1 is of a new run" in longer.stderr


def test_what_was_measured_holds_when_a_run_goes_on() -> None:
    saved = to_plain(of_minutes(3, trainer__steps=480))
    assert with_saved(saved, to_plain(of_minutes(3)))["trainer"]["steps"] == 480
    with pytest.raises(ConfigError, match=r"trainer\.steps=480.* trainer\.steps=<in all>"):
        with_saved(saved, to_plain(of_minutes(4)))


def test_one_length_is_given() -> None:
    (problem,) = problems(changed(trainer__epochs=3.0, trainer__minutes=5.0))
    assert "trainer.epochs=3 and trainer.minutes=5 contradict" in problem
