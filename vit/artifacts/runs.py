"""Reading the runs below a folder: configs, scores, states, effects of settings. Needs no torch.

Scores of different images do not compare. A sweep's runs differ in some settings; runs that differ
in nothing but the seed belong together.
"""

from __future__ import annotations

import gzip
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from vit.artifacts.run_dir import RunDir
from vit.config.saved import MAIN, main_score
from vit.config.validate import flatten
from vit.errors import ConfigError
from vit.report.interval import wilson
from vit.runtime.files import from_json

NOT_COMPARED = frozenset(
    {
        "seed", "name", "outputs", "resume", "data.root", "data.images", "data.workers",
        "data.memory", "data.cache_dir", "data.fold", "trainer.accumulate",
        "trainer.eval_batch_size", "trainer.log_every", "trainer.save_every", "trainer.keep",
    }
)  # fmt: skip
"""Settings that make no difference between two runs, or only chance does."""
SCORED = ("name", "root", "val_fraction", "test_fraction", "split_seed", "folds")
"""Settings of `data` that say which images a run is scored on."""
ALL = "all"
ENOUGH, SIGNIFICANT = 10, 0.05
"""Scored runs without which no share of the variance is given, and the level of its test."""
NO_SHARE = f"share -: fewer than {ENOUGH} scored runs, or within noise"
APART = "Scores on different images do not compare: best, means and effects are of the same images"


def called(runs: Iterable[Run]) -> str:
    """What the score is called by which runs on the same images are judged."""
    return MAIN[next((run.main for run in runs), "top1")]


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        path: the folder; `name` is its path below the folder that was asked for.
        state: `finished`, `running`, `failed`, or `interrupted`, `pruned` or `killed at step N`.
        summary: content of summary.json.
        config: flat settings, as far as the run has written them, and its `training images`.
        images: stands for those that it is scored on, with all folds of a cross-validation; empty:
            it has no list of them.
    """

    path: Path
    name: str
    state: str
    summary: dict[str, Any]
    config: dict[str, Any]
    images: str

    @property
    def main(self) -> str:
        """The key of `saved.MAIN` that the run is judged by."""
        return main_score(self.summary, "val_")

    def score(self, key: str | None = None) -> float | None:
        """A score in percent (of a run without validation: nothing), or another number; without
        `key` that of validation.
        """
        value = self.summary.get(f"val_{self.main}" if key is None else key)
        return float(value) if isinstance(value, (int, float)) else None

    def interval(self, top1: float | None) -> tuple[float, float] | None:
        """The 95 % interval of a top-1 in percent on its validation images, where these were
        counted; of a mAP there is none.
        """
        counted = self.hits(top1)
        if counted is None:
            return None
        low, high = wilson(*counted)
        return 100 * low, 100 * high

    def hits(self, top1: float | None) -> tuple[int, int] | None:
        """How many of its validation images a top-1 in percent is, and how many there are, as for
        `interval`.
        """
        count = self.score("images_val") or 0
        if self.main != "top1" or top1 is None or not 0 <= top1 <= 100 or count < 1:
            return None
        return round(top1 / 100 * count), int(count)

    def data(self) -> str:
        """What the settings say of the images that it is scored on."""
        given = {key: self.config.get(f"data.{key}") for key in SCORED}
        return ", ".join(f"{k}={v}" for k, v in given.items() if v is not None) or "unknown"


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed or the fold alone, and their settings that differ from those of
    other groups.
    """

    settings: dict[str, Any]
    runs: list[Run] = field(default_factory=list)

    def scores(self, key: str | None = None) -> list[float]:
        """The members' scores, as far as they have one."""
        return [score for run in self.runs if (score := run.score(key)) is not None]

    def spread(self, key: str | None = None) -> str:
        """`97.49 ± 0.31` of several scores, `97.49` of one, `-` of none."""
        scores = self.scores(key)
        deviation = f" ± {stdev(scores):.2f}" if len(scores) > 1 else ""
        return f"{mean(scores):.2f}{deviation}" if scores else "-"

    def out_of_fold(self) -> tuple[int, int] | None:
        """Of a cross-validation how many images were right, and how many there are, each tested by
        the one run that did not see it; None: it is none, or not complete.
        """
        folds = self.runs[0].config.get("data.folds")
        if not folds or sorted(str(run.config["data.fold"]) for run in self.runs) != sorted(
            map(str, range(folds))
        ):
            return None
        scores, counts = self.scores("test_top1"), self.scores("images_test")
        if not len(scores) == len(counts) == folds:
            return None
        pairs = zip(scores, counts, strict=True)
        return sum(round(score / 100 * n) for score, n in pairs), int(sum(counts))


@dataclass(frozen=True)
class Effect:
    """How much one setting mattered: the mean validation score of the runs with each value, and the
    share of the variance of all scores that its value explains (eta squared); None: there are too
    few runs to say, or it is within noise.
    """

    key: str
    means: dict[str, float]
    share: float | None


def read_runs(*folders: Path) -> list[Run]:
    """All runs at or below `folders` (two levels), the best validation score first."""
    found: dict[Path, Path] = {}
    for folder in folders:
        if (folder / "summary.json").is_file() or (folder / "config.yaml").is_file():
            found.setdefault(folder, folder)
        else:
            for pattern in ("config.yaml", "summary.json"):
                for file in sorted([*folder.glob(f"*/{pattern}"), *folder.glob(f"*/*/{pattern}")]):
                    found.setdefault(file.parent, folder)
    runs = [_read(path, folder) for path, folder in found.items()]
    return sorted(runs, key=lambda run: -1.0 if (s := run.score()) is None else s, reverse=True)


def by_images(runs: list[Run]) -> dict[str, list[Run]]:
    """The runs under titles of the images that they are scored on, in the order of the titles.

    A run without a list of its images is counted to one that has the same settings of the data.
    """
    listed = {run.data(): run.images for run in runs if run.images}
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        found[run.images or listed.get(run.data(), run.data())].append(run)
    titled: dict[str, list[Run]] = {}
    for alike in found.values():
        known = max(alike, key=lambda run: len(run.config))
        count = known.summary.get("images_val", "none listed")
        title = f"data: {known.data()}; validation images: {count}"
        while title in titled:
            title += ", others"
        titled[title] = alike
    return dict(sorted(titled.items()))


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

    Only meaningful where settings were varied independently, as in a grid. Within noise is one
    whose means an F-test (one-way analysis of variance; at 5 % divided by the number of settings)
    does not tell apart, or whose lowest mean lies in the 95 % interval of its highest.
    """
    scored = [(run, score) for run in runs if run.config and (score := run.score()) is not None]
    if len(scored) < 2:
        return []
    overall = mean(score for _, score in scored)
    total = sum((score - overall) ** 2 for _, score in scored)
    keys = differing(run for run, _ in scored)
    found = []
    for key in keys:
        by_value: dict[str, list[float]] = defaultdict(list)
        for run, score in scored:
            by_value[str(run.config.get(key))].append(score)
        means = {value: mean(scores) for value, scores in by_value.items()}
        within = sum((x - means[value]) ** 2 for value, scores in by_value.items() for x in scores)
        low, _ = scored[0][0].interval(max(means.values())) or (100.0, 100.0)
        freedom = (len(scored) - len(means)) / 2, (len(means) - 1) / 2
        share = None
        if len(scored) >= ENOUGH and total and freedom[0] and min(means.values()) < low:
            from scipy.special import betainc  # which takes a while

            if betainc(*freedom, within / total) < SIGNIFICANT / len(keys):
                share = 1 - within / total
        found.append(Effect(key, means, share))
    return sorted(found, key=lambda effect: effect.share or 0.0, reverse=True)


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
    try:
        listed = _listed(folder.images.read_bytes())
    except Exception:  # a damaged or missing list fails in many ways
        listed = {}
    scored = {split: listed[split] for split in ("val", "test") if split in listed}
    images = str(scored) if scored else ""
    counts = {f"images_{split}": count for split, (count, _) in scored.items()}
    summary = {**counts, **folder.read_summary()}
    try:
        config = flatten(folder.read_config())
        if config.get("data.folds") and listed:
            images = str(_listed(folder.images.read_bytes(), together=True))
        elif "train" in listed:
            config["training images"] = "{:,} ({})".format(*listed["train"])
        if isinstance(lengths := summary.get("lengths"), list) and len(lengths) > 1:
            config["lengthened"] = f"{' to '.join(map(str, lengths))} steps"
    except ConfigError:
        config = {}
    name = str(path.relative_to(below)) if path != below else path.name
    return Run(path, name, _state(folder, summary), summary, config, images)


@lru_cache
def _listed(content: bytes, *, together: bool = False) -> dict[str, tuple[int, str]]:
    """How many images each split has in the list of a run's, or ALL of them `together`, with a
    digest of which.

    Without hashes of contents names and sizes count: the times of a copy are others.
    """
    plain = from_json(gzip.decompress(content))
    keys = ["names", "labels", "sizes", *(["hashes"] if plain["by_content"] else [])]
    splits = {
        split: list(zip(*(entries[key] for key in keys), strict=True))
        for split, entries in plain["splits"].items()
    }
    if together:
        splits = {ALL: sorted(image for images in splits.values() for image in images)}
    return {
        split: (len(images), blake2b(str(images).encode(), digest_size=4).hexdigest())
        for split, images in splits.items()
    }


def _state(folder: RunDir, summary: dict[str, Any]) -> str:
    state = str(summary.get("state", "running"))
    if state == "running" and not folder.is_locked():
        files = folder.step_files()  # the run would go on from the first
        return f"killed at step {int(files[0].stem.split('-')[1]) if files else 0}"
    if state in ("interrupted", "pruned"):
        return f"{state} at step {summary.get('step', 0)}"
    return state
