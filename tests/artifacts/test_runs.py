"""`vit-runs`: states, seeds, effects and what compares."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from run_folders import Make, runs_of
from scipy.stats import f_oneway

from vit.artifacts.run_dir import RunDir
from vit.artifacts.runs import (
    APART,
    NO_SHARE,
    Group,
    Run,
    by_images,
    curve,
    differing,
    effects,
    groups,
    read_runs,
)
from vit.artifacts.runs_page import runs_page
from vit.artifacts.runs_table import WIDE, first_place, runs_table
from vit.cli.runs import overview
from vit.report.interval import difference, wilson

HELD_OUT = 185
"""Digits that are for validation by default."""


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
    for line in text[1:]:
        name, top1, low, to, high, count, *state = line.split()
        assert (top1, to, count) == ("50.00", "to", f"{HELD_OUT}")
        assert float(low) < 50 < float(high)
        assert " ".join(state).startswith(states[name] if name != "running" else "killed at step 0")


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
    assert found[1].spread() == "91.17 ± 1.26"  # by hand: 273.5 / 3, sqrt(3.1667 / 2)
    values = scores[1e-3]
    assert found[1].spread() == f"{mean(values):.2f} ± {stdev(values):.2f}"
    assert (found[2].spread(), Group({}).spread()) == ("80.00", "-")
    text = overview(runs_of(last))
    assert re.search(r"^0\.001-1 and 2 more +91\.17 ± 1\.26 .* 3/3 .* optim.lr=0\.001$", text, re.M)
    assert re.search(r"^0\.01-0 and 1 more +80\.00 .* 1/2 .* optim.lr=0\.01$", text, re.M)
    assert "different images" not in text


def test_the_share_of_a_setting_is_eta_squared(make: Make) -> None:
    grid = {(1e-3, 0.02): 20.0, (1e-3, 0.1): 24.0, (3e-3, 0.02): 80.0, (3e-3, 0.1): 84.0}
    for (lr, wd), top1 in grid.items():
        for seed in range(3):
            last = make(
                f"{lr}-{wd}-{seed}", top1 + seed, optim__lr=lr, optim__weight_decay=wd, seed=seed
            )
    make("failed", None, "failed", optim__lr=9.0)
    runs = runs_of(last)
    first, second = effects(runs)
    # All around 53: lr 12 x 30^2 = 10,800; weight decay 12 x 2^2 = 48; seeds 4 x 2 = 8.
    assert (first.key, second.key) == ("optim.lr", "optim.weight_decay")
    assert first.share == pytest.approx(10_800 / 10_856)
    assert second.share is None  # F = 48 / (10,808 / 10), p = 0.84
    assert first.means == {"0.001": 23.0, "0.003": 83.0}
    assert second.means == {"0.02": 51.0, "0.1": 55.0}
    text = overview(runs)
    assert re.search(r"^optim\.lr +99 %  ", text, re.M)
    assert re.search(r"^optim\.weight_decay +-  .*0\.02: 51\.00", text, re.M)
    assert NO_SHARE in text
    few = [run for run in runs if run.score() is not None][:9]
    assert {effect.share for effect in effects(few)} == {None}
    assert "0.003: 83" in overview(few)


def test_a_share_is_of_more_than_the_noise_of_so_few_images(make: Make) -> None:
    for i in range(12):
        last = make(f"{i}", 50.0 + 4 * (i % 2) + 0.01 * i, model__depth=1 + i % 2)
    (effect,) = effects(runs_of(last))
    assert effect.share is None  # 4 of 100, among so few images
    for found in runs_of(last):
        RunDir(found.path).write_summary({**found.summary, "images_val": 100_000})
    (effect,) = effects(runs_of(last))
    assert effect.share == pytest.approx(1.0, abs=0.01)


def test_the_f_test_is_scipys(make: Make) -> None:
    rng, level = random.Random(0), []
    for trial in range(40):
        runs = [
            Run(Path(f"{i}"), f"{i}", "finished", {"val_top1": rng.gauss(50 + trial * (i % 3), 9)},
                {"a": i % 3}, "")
            for i in range(12)
        ]  # fmt: skip
        ((effect,), scores) = effects(runs), [[r.score() for r in runs[k::3]] for k in range(3)]
        p = f_oneway(*scores).pvalue
        assert (effect.share is None) == (p >= 0.05)
        level.append(p)
    assert min(level) < 0.05 < max(level)


@pytest.mark.parametrize("count", [4, 12])
def test_equal_scores_have_no_cause(make: Make, count: int) -> None:
    for i in range(count):
        last = make(f"{i}", 50.0, model__depth=1 + i % 2)
    (effect,) = effects(runs_of(last))
    assert effect.share is None
    assert effects(runs_of(last)[:1]) == []
    alone = [dataclasses.replace(run, summary={"val_top1": 50.0}) for run in runs_of(last)]
    assert effects(alone)[0].share is None


def test_values_that_no_two_runs_share_explain_nothing(make: Make) -> None:
    for i in range(12):
        last = make(f"{i}", 8.0 * i, optim__lr=10.0**-i)
    (effect,) = effects(runs_of(last))
    assert effect.share is None


# What compares


def relisted(folder: RunDir, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the list of a run's images."""
    plain = json.loads(gzip.decompress(folder.images.read_bytes()))
    change(plain)
    folder.images.write_bytes(gzip.compress(json.dumps(plain).encode()))


def test_other_images_are_another_heading(make: Make) -> None:
    make("a", 90.0, seed=0, data__root="here")
    make("moved", 70.0, seed=1, data__root="there")  # the same images
    fewer = make("fewer", 80.0, data__val_fraction=0.3)
    relisted(fewer, lambda plain: plain["splits"]["val"]["names"].pop())
    changed = make("changed", 60.0)
    relisted(changed, lambda plain: plain["splits"]["test"]["hashes"].reverse())
    runs = runs_of(changed)
    lists = by_images(runs)
    assert [[run.name for run in alike] for alike in lists.values()] == [
        ["a", "moved"], ["changed"], ["fewer"]
    ]  # fmt: skip
    assert len(lists) == 3
    text = overview(runs)
    assert text.count("data: name=digits") == 3
    assert "80.00 ± 14.14" in text  # of 90 and 70 alone
    assert text.endswith(APART)
    page = runs_page("title", runs, changed.path.parent)
    assert (page.count("<h2>"), page.count("<svg")) == (3, 3)  # curves
    assert APART in page
    assert overview(runs[:1]).startswith("run ")


def test_without_a_list_the_settings_say_which_images(make: Make) -> None:
    make("listed", 90.0, data__root="here")
    for name, root in (("old", "here"), ("elsewhere", "there")):
        make(name, 80.0, data__root=root).images.unlink()
    broken = make("broken", 70.0, data__root="here")
    broken.images.write_bytes(b"\x1f\x8b damaged")
    lists = by_images(runs_of(broken)).values()
    assert [sorted(run.name for run in alike) for alike in lists] == [
        ["broken", "listed", "old"], ["elsewhere"]
    ]  # fmt: skip


def test_runs_on_other_training_images_are_no_seeds_of_one_another(make: Make) -> None:
    for seed in range(3):
        last = make(f"{seed}", 80.0 + seed, seed=seed)
    relisted(last, lambda plain: plain["splits"]["train"]["hashes"].reverse())
    runs = runs_of(last)
    assert len(by_images(runs)) == 1
    assert differing(runs) == ["training images"]
    assert sorted(len(group.runs) for group in groups(runs)) == [1, 2]


def test_times_of_files_do_not_tell_images_apart(make: Make) -> None:
    for name in ("a", "b"):
        last = make(name)
        relisted(last, lambda plain: plain.update(by_content=False))
    relisted(last, lambda plain: plain["splits"]["val"]["hashes"].reverse())
    assert len(by_images(runs_of(last))) == 1


def test_the_interval_is_of_the_images_that_were_scored(make: Make, finished: Path) -> None:
    (run,) = read_runs(finished)
    assert run.summary["images_val"] == HELD_OUT
    assert run.interval(50.0) == pytest.approx([100 * b for b in wilson(HELD_OUT // 2, HELD_OUT)])
    for count in (0, -1, None, "many"):
        last = make(f"{count}")
        last.write_summary({"state": "finished", "val_top1": 50.0, "images_val": count})
    make("wrong", 150.0)
    old = make("old")
    old.write_summary({"state": "finished", "val_top1": 50.0})  # counted in its list
    found = {run.name: run.interval(run.score()) for run in runs_of(last)}
    assert {name for name, interval in found.items() if interval} == {"old"}


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """Examples a, c and d of Newcombe 1998, table II, method 10."""
    assert difference((56, 70), (48, 80)) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert difference((9, 10), (3, 10)) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    assert difference((10, 10), (0, 20)) == pytest.approx((0.6791, 1.0), abs=5e-5)


def test_the_best_is_named_with_those_not_shown_to_be_worse(make: Make) -> None:
    for name, right in (("a", 175), ("b", 167), ("c", 160)):
        make(name, 100 * right / 185).write_summary(
            {"state": "finished", "val_top1": 100 * right / 185, "images_val": 185}
        )
    runs = runs_of(make("d"))
    *said, command = first_place(runs)
    assert said == ["best on validation: a, 94.59", "not shown to be worse: b"]
    first, second = (str(run.path) for run in runs[:2])
    assert command == f"image by image: vit-eval {first} {second}"
    assert first_place(runs[:1]) == []


def test_what_differs(make: Make) -> None:
    for i, (depth, mixup) in enumerate([(1, 0.0), (2, 0.0), (2, 0.8), (1, 0.0)]):
        last = make(
            f"{i}", seed=i, model__depth=depth, model__heads=depth, augment__mixup=mixup,
            data__workers=i,
        )  # fmt: skip
    # heads change with the depth; seeds, names and places do not count
    assert differing(runs_of(last)) == ["model.depth", "augment.mixup"]
    assert differing(runs_of(last)[:1]) == []


def test_what_the_tool_chooses_is_no_difference(make: Make) -> None:
    for i in range(2):
        last = make(
            f"{i}", seed=i, trainer__accumulate=i + 1, trainer__eval_batch_size=500 >> i,
            data__images=f"/{i}", data__cache_dir=f"/{i}", trainer__keep=2 + i,
        )  # fmt: skip
    assert differing(runs_of(last)) == []
    assert len(groups(runs_of(last))) == 1


def test_a_run_that_was_lengthened_is_no_seed_of_one_that_was_not(make: Make) -> None:
    for i in range(3):
        last = make(f"{i}", seed=i)
    last.write_summary({**last.read_summary(), "lengths": [20, 40]})
    found = groups(runs_of(last))
    assert sorted(len(group.runs) for group in found) == [1, 2]
    assert "lengthened=20 to 40 steps" in overview(runs_of(last))


def test_lines_fit_on_a_screen(make: Make) -> None:
    for i in range(3):
        last = make(
            f"folder-small-20261128-13150{i}", optim__lr=0.1 * i, augment__mixup=0.3 * i,
            trainer__label_smoothing=0.01 * i, model__drop_path=0.02 * i,
        )  # fmt: skip
    text = overview(runs_of(last))
    assert max(map(len, text.split("image by image")[0].splitlines())) < WIDE
    assert re.search(r"^folder-small-\S+2 .*\n    .*optim.lr=0.2", text, re.M)


def test_what_always_differs_is_all_named(make: Make) -> None:
    for i in range(3):
        last = make(f"{i}", optim__lr=0.1 * (i + 1), optim__weight_decay=0.2 * (i + 1))
    assert differing(runs_of(last)) == ["optim.lr", "optim.weight_decay"]
