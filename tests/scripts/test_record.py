"""An entry of the speedrun: run as it is shipped, timed from outside, and looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import record
from pictures import noise, save

RECIPE = "cifar10_cpu5min"


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("speedrun")
    for split, count in (("train", 12), ("val", 2)):
        for number, name in enumerate(record.CLASSES):
            for i in range(count):
                place = folder / "cifar10" / split / name / f"{i:02}.png"
                save(place, noise(32, 32, seed=1000 * number + 100 * len(split) + i))
    return folder, ["data=folder", f"data.root={folder / 'cifar10'}", "data.image_size=32"]


@pytest.fixture(scope="module")
def done(entry: tuple[Path, list[str]]) -> Path:
    folder, place = entry
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["record", RECIPE, *place, "--seeds", "3", f"--folder={folder}"])
        assert record.main() == 0
    return folder / f"{RECIPE}-3"


def test_an_entry_is_read_from_its_run(done: Path) -> None:
    run = record.read(done, 60.0)
    summary = json.loads((done / "summary.json").read_text())
    assert (run.test, run.steps) == (round(summary["test_top1"], 2), summary["step"])
    assert run.tflops == summary["matrix_tflops"] > 0
    assert f"{60 * run.tflops / 0.79:.0f} s at 0.79" in str(run)


def test_its_row_has_mean_and_spread(done: Path) -> None:
    run = record.read(done, 60.0)
    other = record.Run(done, run.test + 2, run.val, run.steps, 80.0, run.tflops)
    told = record.row(RECIPE, [run, other])
    assert told.startswith(f"| {run.test + 1:.2f} ± 1.41 ({run.test:.2f}, {run.test + 2:.2f}) |")
    assert f"| {run.steps:,} | 70 s |" in told


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("model", "weights", "a.pt", "it starts from weights"),
        ("distill", "teacher", "b", "it has a teacher"),
        ("data", "image_size", 64, "it is not CIFAR-10"),
    ],
)
def test_what_an_entry_may_not_be_is_found(
    done: Path, monkeypatch: pytest.MonkeyPatch, section: str, key: str, value: object, words: str
) -> None:
    assert record.broken_rules(done) == []
    config = record.RunDir(done).read_config()
    config[section][key] = value
    monkeypatch.setattr(record.RunDir, "read_config", lambda self: config)
    (broken,) = record.broken_rules(done)
    assert words in broken


def test_test_images_that_were_looked_at_twice_are_found(done: Path) -> None:
    log = done / "metrics.jsonl"
    before = log.read_text()
    log.write_text(before + before.splitlines()[-1] + "\n")
    assert "scored the test images more than once" in record.broken_rules(done)[0]
    log.write_text(before)


def test_a_setting_of_ones_own_is_no_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["record", RECIPE, "optim.lr=0.1"])
    with pytest.raises(SystemExit) as ended:
        record.main()
    assert ended.value.code == 2
