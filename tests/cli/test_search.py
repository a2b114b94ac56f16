"""A search with Optuna: the same trials after any kill, and only the promising go on."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import SMALL, lines
from kill_resume import differences, metrics
from sweeping import TINY, changed, table, written
from together import forked, run_together, train, wait_until

from vit.artifacts.run_dir import RunDir
from vit.artifacts.runs import read_runs
from vit.cli import search as cli_search
from vit.cli import train as cli_train
from vit.cli.overrides import Overrides
from vit.cli.search import run_search, trial_name
from vit.cli.sweep import as_sweep_job
from vit.config.search import Search, to_search
from vit.errors import DivergedError, PrunedRun

optuna = pytest.importorskip("optuna")

# Trials that take no time: `run` tells made-up scores


Told = list[tuple[str, dict[str, Any], str]]


class Dies(BaseException):
    """The process is killed."""


def scores_of(name: str) -> list[float]:
    """Validation top-1 after epochs 1, ..., 4."""
    rng = random.Random(name)
    return [round(rng.uniform(0, 100), 1) + epoch for epoch in range(4)]


def trials(search: Search, folder: Path, told: Told, die_at: Callable[[str], None] = str) -> None:
    """Run a search; `die_at` is told every moment at which it may be killed."""

    def run(name: str, settings: dict[str, Any], should_prune: Any) -> float | None:
        die_at(f"start {name}")
        for epoch, score in enumerate(scores_of(name), 1):
            ends = should_prune(float(epoch), score)
            die_at(f"evaluated {name} {epoch}")
            if ends and epoch < 4:
                told.append((name, settings, f"pruned at {epoch}"))
                die_at(f"pruned {name}")
                raise PrunedRun("pruned")
        told.append((name, settings, "finished"))
        die_at(f"finished {name}")
        return scores_of(name)[-1]

    run_search(search, run, folder)


def journal(folder: Path) -> Any:
    """The study, as Optuna reads it."""
    from optuna.storages.journal import JournalFileBackend

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        backend = JournalFileBackend(str(folder / "study.journal"))
        storage = optuna.storages.JournalStorage(backend)
        return optuna.load_study(study_name="search", storage=storage)


def state_of(folder: Path) -> list[Any]:
    """Every trial: what was drawn, told and decided."""
    return [
        (t.number, t.params, t.state.name, t.value, t.intermediate_values)
        for t in journal(folder).get_trials()
    ]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_trials_are_a_function_of_the_seed(tmp_path: Path, sampler: str) -> None:
    told: dict[str, Told] = {}
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        told[name] = []
        trials(to_search(changed(sampler=sampler, seed=seed)), tmp_path / name, told[name])
    assert told["one"] == told["again"]
    assert told["one"] != told["other"]
    assert [name for name, _, _ in told["one"]] == [trial_name(i) for i in range(8)]
    for _, settings, _ in told["one"]:
        assert 1e-4 <= settings["optim.lr"] <= 1e-1
        assert settings["model.depth"] in (1, 2, 3)
    before = state_of(tmp_path / "one")
    trials(to_search(changed(sampler=sampler)), tmp_path / "one", told["one"])  # no more
    assert len(told["one"]) == 8
    assert state_of(tmp_path / "one") == before


def test_only_the_best_third_goes_on(tmp_path: Path) -> None:
    told: Told = []
    trials(to_search(changed(trials=20)), tmp_path, told)
    for rung in (1, 3):  # epochs
        seen: list[float] = []
        for name, _, fate in told:
            if fate == "finished" or int(fate.split()[-1]) >= rung:
                seen.append(scores_of(name)[rung - 1])
                best = sorted(seen, reverse=True)[: max(len(seen) // 3, 1)]
                assert (fate != f"pruned at {rung}") == (seen[-1] in best), (rung, name)
    assert {fate for _, _, fate in told} == {"pruned at 1", "pruned at 3", "finished"}


MOMENTS = ["asked", "half drawn", "drawn", "start", "evaluated", "pruned", "finished"]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_killed_at_any_moment_it_is_the_same_search(
    tmp_path: Path, moment: str, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = to_search(changed(sampler=sampler))
    whole: Told = []
    trials(search, tmp_path / "whole", whole)

    deaths: set[str] = set()

    def die_at(now: str) -> None:
        if now.startswith(moment) and now not in deaths:  # once at each
            deaths.add(now)
            raise Dies

    draw = cli_search._suggest

    def suggest(trial: Any, key: str, what: Any) -> Any:
        die_at(f"asked {trial.number}")
        value = draw(trial, key, what)
        die_at(f"{'drawn' if key == 'model.depth' else 'half drawn'} {trial.number}")
        return value

    monkeypatch.setattr(cli_search, "_suggest", suggest)
    broken: Told = []
    while True:
        with contextlib.suppress(Dies):
            trials(search, tmp_path / "broken", broken, die_at)
            break
    assert deaths
    assert state_of(tmp_path / "broken") == state_of(tmp_path / "whole")
    assert list({name: (name, *rest) for name, *rest in broken}.values()) == whole


def test_a_trial_that_fails_after_an_evaluation_has_failed(tmp_path: Path) -> None:
    def job(plain: dict[str, Any], overrides: Overrides, should_prune: Any) -> None:
        folder = RunDir(Path(plain["outputs"]) / plain["name"])
        folder.path.mkdir(parents=True)
        assert not should_prune(1.0, 50.0)
        folder.write_summary({"state": "failed", "val_top1": 50.0})  # the best so far
        raise DivergedError("no more")

    section = changed(trials=1)
    nothing = Overrides([])
    settings = {"search": section, "optim": {}, "model": {}}
    as_sweep_job(job, tmp_path, nothing)(settings, nothing)
    (trial,) = journal(tmp_path).get_trials()
    assert (trial.state.name, trial.value) == ("FAIL", None)


# Real runs

ASHA = [
    "-m", *(a for a in TINY if not a.startswith(("trainer.steps", "trainer.eval_every"))),
    "sweep=asha_lr_wd", "search.trials=7", "search.min_epochs=1", "trainer.epochs=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """The unbroken search."""
    done = run_together(1, *ASHA, "name=whole", cwd=folder)
    assert done.returncode == 0, done.stdout
    return folder / "outputs" / "whole"


def test_a_search_prunes_and_a_second_start_does_nothing(folder: Path, whole: Path) -> None:
    found = sorted(read_runs(whole), key=lambda found: found.name)
    assert [one.name for one in found] == [trial_name(i) for i in range(7)]
    seen: list[float] = []
    for one, trial in zip(found, journal(whole).get_trials(), strict=True):
        first = next(line for line in lines(one.path / "metrics.jsonl") if line["event"] == "val")
        assert trial.intermediate_values[1] == first["top1"]
        seen.append(first["top1"])
        is_pruned = first["top1"] not in sorted(seen, reverse=True)[: max(len(seen) // 3, 1)]
        assert one.state == ("pruned at step 20" if is_pruned else "finished")
        assert one.config["optim.lr"] == float(f"{trial.params['optim.lr']:.4g}")
        assert RunDir(one.path).step_files()
    assert {one.state.split()[0] for one in found} == {"pruned", "finished"}

    before = {file: file.stat().st_mtime_ns for file in whole.glob("trial-*/*[!k]")}
    assert written(whole).items() <= before.items() or before
    done = run_together(1, *ASHA, "name=whole", cwd=folder)
    assert done.returncode == 0, done.stdout
    assert "===" not in done.stdout
    assert {file: file.stat().st_mtime_ns for file in whole.glob("trial-*/*[!k]")} == before


def test_a_killed_search_ends_like_an_unbroken_one(folder: Path, whole: Path) -> None:
    rng, broken = random.Random(0), folder / "outputs" / "broken"
    before: dict[Path, int] = {}
    for _ in range(3):
        more = len(list(broken.glob("*/metrics.jsonl"))) + rng.randint(1, 2)
        with forked(1, train, [*ASHA, "name=broken"], folder, folder / "said.txt"):
            wait_until(lambda more=more: len(list(broken.glob("*/metrics.jsonl"))) >= more)
            time.sleep(rng.uniform(0, 0.4))
        assert before.items() <= written(broken).items()
        before = written(broken)
    done = run_together(1, *ASHA, "name=broken", cwd=folder)
    assert done.returncode == 0, done.stdout
    assert table(broken) == table(whole)
    for one in read_runs(whole):
        assert metrics(RunDir(one.path)) == metrics(RunDir(broken / one.name))


def test_a_search_is_part_of_a_sweep(tmp_path: Path) -> None:
    done = run_together(1, "-m", "sweep=asha_lr_wd", "search.trials=0", "search.x=1", cwd=tmp_path)
    assert done.returncode == 2
    assert "search.trials=0 must" in done.stdout
    assert "search.x is no known key" in done.stdout
    done = run_together(1, "+search.trials=3", cwd=tmp_path)
    assert done.returncode == 2
    assert "start it with -m" in done.stdout


def dies_pruning(*args: Any) -> None:
    """Train, but be killed between the checkpoint of a pruned run and the word that it is one."""
    failure = cli_train.failure

    def die(error: Exception) -> dict[str, Any]:
        if isinstance(error, PrunedRun):
            os._exit(9)
        return failure(error)

    cli_train.failure = die  # type: ignore[assignment]
    train(*args)


def test_a_search_that_is_killed_while_it_prunes(folder: Path, whole: Path) -> None:
    args = [*ASHA, "name=died"]
    with forked(1, dies_pruning, args, folder, folder / "said.txt") as (process,):
        process.join(60)
        assert process.exitcode == 9
    done = run_together(1, *args, cwd=folder)
    assert done.returncode == 0, done.stdout
    assert table(folder / "outputs" / "died") == table(whole)


def test_a_pruned_run_can_be_gone_on_with(folder: Path, whole: Path) -> None:
    pruned = next(found for found in read_runs(whole) if found.state.startswith("pruned"))
    copied = RunDir(folder / "outputs" / "copied")
    shutil.copytree(pruned.path, copied.path)
    done = run_together(1, "resume=outputs/copied", cwd=folder)
    assert done.returncode == 0, done.stdout
    assert copied.read_summary()["state"] == "finished"
    own = [f"{key}={pruned.config[key]}" for key in ("optim.lr", "optim.weight_decay")]
    args = [arg for arg in ASHA if arg != "-m" and not arg.startswith(("sweep", "search"))]
    never = run_together(1, *args, *own, "name=never", cwd=folder)
    assert never.returncode == 0, never.stdout
    assert differences(RunDir(folder / "outputs" / "never"), copied) == []


def test_a_failing_trial_is_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    (tmp_path / "mine" / "sweep").mkdir(parents=True)
    section = changed(trials=4, space={"model.heads": [2, 3], "optim.lr": [1e-3, 2e-3]})
    (tmp_path / "mine" / "sweep" / "odd.yaml").write_text(
        "# @package _global_\n" + yaml.safe_dump({"search": section})
    )
    args = ["--config-dir", "mine", "-m", "sweep=odd", *TINY, "name=s"]
    done = run_together(1, *args, cwd=tmp_path)
    assert done.returncode == 1
    found = sorted(read_runs(tmp_path / "outputs" / "s"), key=lambda one: one.name)
    trials = journal(tmp_path / "outputs" / "s").get_trials()
    assert len(found) == len(trials) == 4
    for one, trial in zip(found, trials, strict=True):
        fails = one.config["model.heads"] == 3
        assert trial.state.name == ("FAIL" if fails else "COMPLETE")
        assert one.state == ("failed" if fails else "finished")
        assert (one.path / "error.txt").exists() == fails
        assert trial.value == one.score()
    assert {one.state for one in found} == {"failed", "finished"}
    assert SMALL[0] == "model.dim=16"  # which three heads do not divide
