"""Sweeps: every job in its own folder, failures recorded, a table at the end."""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit.artifacts.run_dir import RunDir
from vit.artifacts.runs import read_runs
from vit.cli.answers import failure
from vit.cli.argv import safe_name
from vit.cli.overrides import Overrides
from vit.cli.runs import overview, write_page
from vit.cli.search import run_search
from vit.config import plugins
from vit.config.saved import main_score
from vit.config.search import to_search
from vit.config.yaml_files import dump_yaml
from vit.errors import InterruptedRun, InUseError, PrunedRun, VitError, printable
from vit.runtime.signals import stop_with_parent

if TYPE_CHECKING:
    from vit.training.components import ShouldPrune

Job = Callable[..., object]
"""Called with plain settings, the overrides that led to them and, in a search, `should_prune=`."""


class SweepInterrupted(BaseException):
    """A signal stopped the job that was running; the sweep stops with it."""

    def __init__(self, error: InterruptedRun) -> None:
        super().__init__(error)  # which pickles: a job may run in a process of its own
        self.error = error


class SweepFailedError(VitError):
    """Some jobs of a sweep failed; the others ran."""


def as_sweep_job(job: Job, folder: Path, common: Overrides) -> Job:
    """`job` as one of many: named by its overrides, resumed if it was killed, never fatal.

    With a section `search` in its settings it is a whole search.

    Args:
        common: the overrides of all jobs; what a job has besides them names it.
    """

    files = plugins.files()

    def run_one(plain: dict[str, Any], overrides: Overrides) -> None:
        wanted = plain.pop("search", None)
        if wanted is None:
            attempt(plain, overrides, job_name(overrides, common), job)
            return

        def trial(name: str, settings: dict[str, Any], should_prune: ShouldPrune) -> float | None:
            attempt(
                _with(plain, settings), overrides, name, partial(job, should_prune=should_prune)
            )
            summary = RunDir(folder / name).read_summary()
            score = (
                summary.get(f"val_{main_score(summary, 'val_')}")
                if summary.get("state") == "finished"
                else None
            )
            return float(score) if isinstance(score, (int, float)) else None

        run_search(to_search(wanted), trial, folder)

    def attempt(plain: dict[str, Any], overrides: Overrides, name: str, job: Job) -> None:
        print(f"\n=== {name}", flush=True)
        (folder / name / "error.txt").unlink(missing_ok=True)
        if multiprocessing.current_process().name != "MainProcess":  # a launcher started it
            plugins.use_plugins(*files)
            stop_with_parent()
            own_gpu(multiprocessing.current_process().name)
        try:
            job({**plain, "outputs": str(folder), "name": name, "resume": "auto"}, overrides)
        except InterruptedRun as error:
            raise SweepInterrupted(error) from None
        except PrunedRun:
            print("pruned", flush=True)
            raise
        except InUseError as error:
            print(f"vit-train: {printable(str(error))}", file=sys.stderr)
        except Exception as error:
            _record(folder / name, plain, error)

    return run_one


def own_gpu(process: str) -> None:
    """Let this process, one of a launcher's (`LokyProcess-2`), see one GPU, another than others do.

    With more processes than GPUs they share.
    """
    import torch

    number = re.search(r"\d+$", process)
    if number is None or torch.cuda.device_count() < 2:
        return
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = given.split(",") if given else [str(k) for k in range(torch.cuda.device_count())]
    os.environ["CUDA_VISIBLE_DEVICES"] = seen[(int(number[0]) - 1) % len(seen)]


def _with(plain: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Nested settings with some dotted ones replaced."""
    changed = {key: dict(v) if isinstance(v, dict) else v for key, v in plain.items()}
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        (changed[section] if section else changed)[name] = value
    return changed


def job_name(overrides: Overrides, common: Overrides) -> str:
    """A job's name: the overrides that are its own, so that it is found again by them.

    Args:
        overrides: of the job, as Hydra gives them: `++model.depth=2`.
        common: of the sweep, with every value: `++model.depth=2,4`.
    """
    typed = common.typed()
    own = {key: value for key, value in overrides.typed().items() if typed.get(key) != value}
    return safe_name("_".join(f"{key}-{value}" for key, value in own.items()))


def report(folder: Path) -> None:
    """Print the sweep's table.

    Raises:
        SweepFailedError: not every job finished.
    """
    runs = read_runs(folder)
    print(f"\n{overview(runs)}")
    page = folder / "index.html"
    write_page(page, str(folder), runs)
    print(f"\n  {printable(str(page))}")
    done = ("finished", "pruned")
    failed = [run.name for run in runs if not run.state.startswith(done)]
    if failed:
        raise SweepFailedError(
            f"{len(failed)} of {len(runs)} jobs did not finish ({', '.join(failed)}); the same "
            f"command runs just these again"
        )


def _record(path: Path, plain: dict[str, Any], error: Exception) -> None:
    """Note in the job's folder what failed, and how."""
    path.mkdir(parents=True, exist_ok=True)
    run = RunDir(path)
    if not run.config.is_file():
        run.write_config(dump_yaml(plain))
    (path / "error.txt").write_text("".join(traceback.format_exception(error)))
    run.write_summary({**run.read_summary(), **failure(error)})
    if isinstance(error, VitError):
        for problem in str(error).splitlines():
            print(f"vit-train: {printable(problem)}", file=sys.stderr)
    else:
        print(f"vit-train: {error!r}; see {path / 'error.txt'}", file=sys.stderr)
