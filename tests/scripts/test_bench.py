"""The benchmarks: systems take turns in processes of their own, the page says what was measured."""

import json
import subprocess
import sys
from pathlib import Path

import bench
import bench_input
import bench_step
import pytest
import torch
from contest import Measured, contest
from pictures import noise, save

SCRIPTS = str(Path(bench.__file__).parent)
TINY = bench_step.Shape("tiny", 8, 4, 16, 2, 2, 32, 4, 4, 10)


def player(make):
    """Arguments for python that play with the job that `make` makes, ten images each."""
    text = f"""
import sys, time
sys.path.insert(0, {SCRIPTS!r})
from contest import serve
serve(lambda: {make}, 10)
"""
    return ["-c", text]


def sleeper(seconds):
    return player(f"lambda: time.sleep({seconds})")


def test_players_take_turns_and_are_counted_right():
    rounds = []
    found = contest("case", "images", {"slow": sleeper(0.02), "fast": sleeper(0.01)}, 0.1, 3,
                    between=lambda: rounds.append(1))  # fmt: skip
    assert [one.system for one in found] == ["slow", "fast"]
    assert len(rounds) == 3
    for one, seconds in zip(found, (0.02, 0.01), strict=True):
        assert one.unit == "images/s"
        assert len(one.values) == 3
        assert 0.2 * 10 / seconds < one.median <= 10 / seconds


def test_a_player_that_is_not_installed_is_left_out(capsys):
    commands = {"gone": player("__import__('no_such_module')"), "here": sleeper(0.01)}
    assert [one.system for one in contest("case", "images", commands, 0.05, 1)] == ["here"]
    assert "gone is not installed" in capsys.readouterr().err


def test_a_player_that_fails_is_named():
    with pytest.raises(SystemExit, match="raise ValueError ended early"):
        contest("case", "images", {"bad": ["-c", "raise ValueError"]}, 0.05, 1)


@pytest.mark.parametrize("system", ["ours", "timm", "torchvision"])
def test_every_system_steps(system):
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    step = bench_step.SYSTEMS[system](TINY, "fp32", False, torch.device("cpu"), images, labels)
    step()
    step()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of timm's files
@pytest.mark.parametrize("system", [*bench_input.SYSTEMS, "ours, held"])
def test_every_system_reads(system, tmp_path):
    for i in range(bench_input.BATCH):
        save(tmp_path / "photos" / f"class{i % 2}" / f"{i}.jpg", noise(40, 36, seed=i))
    make = bench_input.SYSTEMS.get(system, bench_input.held)
    threads = torch.get_num_threads()
    batches = make(tmp_path / "photos", 32, "randaugment", tmp_path / "scratch")
    batch = next(batches)
    assert batch.shape == (bench_input.BATCH, 3, 32, 32)
    assert batch.dtype == torch.float32
    assert not torch.equal(batch, next(batches))
    assert torch.get_num_threads() == threads


def test_the_page_says_what_was_measured():
    machines = json.loads((bench.DOCS / "benchmarks.json").read_text())
    assert (bench.DOCS / "benchmarks.md").read_text() == bench.page(machines)


def test_ratios_are_ours_to_theirs():
    content = {
        "date": "today", "commit": "c", "versions": {"torch": "3"},
        "measured": [
            vars(Measured("rate", "ours", "images/s", [30.0, 10.0, 20.0])),
            vars(Measured("rate", "peer", "images/s", [10.0])),
            vars(Measured("time", "ours", "s", [5.0])),
            vars(Measured("time", "peer", "s", [10.0])),
        ],
    }  # fmt: skip
    rows = bench.tables(content)[2:6]
    assert rows[0] == "| rate | ours | 20 images/s (10 to 30) |  |  |"
    assert rows[1] == "|  | peer | 10 images/s | 2.00 x |  |"
    assert rows[3] == "|  | peer | 10 s | 2.00 x |  |"


def test_each_part_answers_to_help():
    for script in sorted(Path(SCRIPTS).glob("bench*.py")):
        done = subprocess.run(
            [sys.executable, str(script), "--help"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert ("--parts" if script.stem == "bench_gpu" else "--repetitions") in done.stdout


def test_a_part_without_its_images_stays_as_it_was(monkeypatch, tmp_path, capsys):
    for name in ("benchmarks.json", "benchmarks.md"):
        (tmp_path / name).write_bytes((bench.DOCS / name).read_bytes())
    before = (tmp_path / "benchmarks.json").read_bytes()
    monkeypatch.setattr(bench, "DOCS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--parts", "input", "epoch", "scale"])
    assert bench.main() == 0
    assert (tmp_path / "benchmarks.json").read_bytes() == before
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "input is left out: give --photos and --cifar"
    assert said[1] == "epoch is left out: give --cifar"
