"""Reading the runs below a folder: configs, scores, states, effects of settings. Needs no torch.

A sweep's runs differ in some settings; runs that differ in nothing but the seed belong together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from vit.artifacts.run_dir import RunDir
from vit.config.validate import flatten
from vit.errors import ConfigError
from vit.runtime.files import from_json

NOT_COMPARED = frozenset({"seed", "name", "outputs", "resume", "data.root", "data.workers"})
"""Settings that make no difference between two runs, or only chance does."""


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        path: the folder; `name` is its path below the folder that was asked for.
        state: `finished`, `running`, `failed`, or `interrupted`, `pruned` or `killed at step N`.
        summary: content of summary.json.
        config: flat settings, as far as the run has written them.
    """

    path: Path
    name: str
    state: str
    summary: dict[str, Any]
    config: dict[str, Any]

    def score(self, key: str = "val_top1") -> float | None:
        """A score in percent (of a run without validation: nothing), or another number."""
        value = self.summary.get(key)
        return float(value) if isinstance(value, (int, float)) else None


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone, and their settings that differ from other groups'."""

    settings: dict[str, Any]
    runs: list[Run] = field(default_factory=list)

    def scores(self, key: str = "val_top1") -> list[float]:
        """The members' scores, as far as they have one."""
        return [score for run in self.runs if (score := run.score(key)) is not None]


@dataclass(frozen=True)
class Effect:
    """How much one setting mattered: the mean validation score of the runs with each value, and the
    share of the variance of all scores that its value explains (eta squared).
    """

    key: str
    means: dict[str, float]
    share: float


def read_runs(folder: Path) -> list[Run]:
    """All runs at or below `folder` (two levels), the best validation score first."""
    if (folder / "summary.json").is_file() or (folder / "config.yaml").is_file():
        found = [folder]
    else:
        patterns = ("*/config.yaml", "*/summary.json", "*/*/config.yaml", "*/*/summary.json")
        found = [file.parent for pattern in patterns for file in sorted(folder.glob(pattern))]
    runs = [_read(path, folder) for path in dict.fromkeys(found)]
    return sorted(runs, key=lambda run: -1.0 if (s := run.score()) is None else s, reverse=True)


def differing(runs: Iterable[Run]) -> list[str]:
    """The settings in which the runs differ, in the order of the settings.

    Of settings that always change together (a width, and the learning rate that follows from it)
    the first stands for all, unless no two runs are alike anyway.
    """
    configs = [run.config for run in runs if run.config]
    keys = dict.fromkeys(key for config in configs for key in config if key not in NOT_COMPARED)
    found: dict[tuple[int, ...], str] = {}
    for key in keys:
        numbers: dict[str, int] = {}
        values = [str(config.get(key)) for config in configs]
        partition = tuple(numbers.setdefault(value, len(numbers)) for value in values)
        if len(numbers) == len(configs):
            partition = (*partition, len(found))
        if len(numbers) > 1:
            found.setdefault(partition, key)
    return list(found.values())


def groups(runs: list[Run]) -> list[Group]:
    """The runs by what they differ in besides the seed, the best mean score first."""
    keys = differing(runs)
    found: dict[str, Group] = {}
    for run in runs:
        settings = {key: run.config[key] for key in keys if key in run.config}
        name = str(settings) if run.config else run.name
        found.setdefault(name, Group(settings)).runs.append(run)
    return sorted(
        found.values(), key=lambda g: mean(g.scores()) if g.scores() else -1.0, reverse=True
    )


def effects(runs: list[Run]) -> list[Effect]:
    """How much each differing setting mattered, the most important first.

    Only meaningful where settings were varied independently, as in a grid.
    """
    scored = [(run, score) for run in runs if run.config and (score := run.score()) is not None]
    if len(scored) < 2:
        return []
    overall = mean(score for _, score in scored)
    total = sum((score - overall) ** 2 for _, score in scored)
    found = []
    for key in differing(run for run, _ in scored):
        by_value: dict[str, list[float]] = {}
        for run, score in scored:
            by_value.setdefault(str(run.config.get(key)), []).append(score)
        between = sum(len(s) * (mean(s) - overall) ** 2 for s in by_value.values())
        means = {value: mean(s) for value, s in by_value.items()}
        found.append(Effect(key, means, between / total if total else 0.0))
    return sorted(found, key=lambda effect: effect.share, reverse=True)


def spread(scores: list[float]) -> str:
    """`97.49 ± 0.31` of several scores, `97.49` of one, `-` of none."""
    if not scores:
        return "-"
    return f"{mean(scores):.2f}" + (f" ± {stdev(scores):.2f}" if len(scores) > 1 else "")


def curve(folder: Path, event: str = "val", key: str = "top1") -> list[tuple[float, float]]:
    """(epoch, value) of every line of an event in a run's metrics.jsonl."""
    points = []
    try:
        with open(RunDir(folder).metrics, encoding="utf-8") as file:
            for text in file:
                if f'"event": "{event}"' in text:
                    line = from_json(text)
                    if isinstance(line.get(key), (int, float)):
                        points.append((float(line["epoch"]), float(line[key])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # what a kill left of the file
    return points


def _read(path: Path, below: Path) -> Run:
    folder = RunDir(path)
    summary = folder.read_summary()
    try:
        config = flatten(folder.read_config())
    except ConfigError:
        config = {}
    name = str(path.relative_to(below)) if path != below else path.name
    return Run(path, name, _state(folder, summary), summary, config)


def _state(folder: RunDir, summary: dict[str, Any]) -> str:
    state = str(summary.get("state", "running"))
    if state == "running" and not folder.is_locked():
        files = folder.step_files()  # the run would go on from the first
        return f"killed at step {int(files[0].stem.split('-')[1]) if files else 0}"
    if state in ("interrupted", "pruned"):
        return f"{state} at step {summary.get('step', 0)}"
    return state
