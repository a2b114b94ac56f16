"""A sweep: every job in its own folder, failures recorded, a table at the end."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vit.artifacts.run_dir import RunDir
from vit.artifacts.runs import read_runs
from vit.cli.argv import safe_name
from vit.cli.runs import overview, write_page
from vit.config.compose import dump_yaml
from vit.config.errors import InterruptedRun, VitError

Job = Callable[[dict[str, Any], list[str]], object]


class SweepInterrupted(BaseException):
    """A signal stopped the job that was running; the sweep stops with it."""

    def __init__(self, error: InterruptedRun) -> None:
        super().__init__(error)  # which pickles: a job may run in a process of its own
        self.error = error


class SweepFailedError(VitError):
    """Some jobs of a sweep failed; the others ran."""


def as_sweep_job(job: Job, folder: Path, common: list[str]) -> Job:
    """`job` as one of many: named by its overrides, resumed if it was killed, never fatal.

    Args:
        job: trains one run.
        folder: the sweep's folder.
        common: the overrides as typed; what a job has besides them names it.
    """

    def run_one(plain: dict[str, Any], overrides: list[str]) -> None:
        name = job_name(overrides, common)
        print(f"\n=== {name}", flush=True)
        try:
            job({**plain, "outputs": str(folder), "name": name, "resume": "auto"}, overrides)
        except InterruptedRun as error:
            raise SweepInterrupted(error) from None
        except Exception as error:
            _record(folder / name, plain, error)

    return run_one


def job_name(overrides: list[str], common: list[str]) -> str:
    """A job's name: the overrides that are its own, so that it is found again by them.

    Args:
        overrides: of the job, as Hydra gives them: `++model.depth=2`.
        common: as typed, with every value of a sweep: `++model.depth=2,4`.
    """
    typed = _last_values(common)
    own = {k: v for k, v in _last_values(overrides).items() if typed.get(k) != v}
    return safe_name("_".join(f"{key}-{value}" for key, value in own.items()))


def _last_values(overrides: list[str]) -> dict[str, str]:
    pairs = (override.lstrip("+").partition("=") for override in overrides)
    return {key: value for key, equals, value in pairs if equals}


def report(folder: Path) -> None:
    """Print the sweep's table.

    Raises:
        SweepFailedError: not every job finished.
    """
    runs = read_runs(folder)
    print(f"\n{overview(runs)}")
    page = folder / "index.html"
    write_page(page, str(folder), runs)
    print(f"\n  {page}")
    failed = [run.name for run in runs if run.state != "finished"]
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
    exit_code = error.exit_code if isinstance(error, VitError) else 1
    summary = {**run.read_summary(), "state": "failed", "exit_code": exit_code}
    run.write_summary({**summary, "error": str(error)})
    if isinstance(error, VitError):
        print(f"vit-train: {error}", file=sys.stderr)
    else:
        print(f"vit-train: {error!r}; see {path / 'error.txt'}", file=sys.stderr)
