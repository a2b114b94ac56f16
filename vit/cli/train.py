"""`vit-train`: compose the settings, build the parts, train, say where the result is."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit.artifacts.run_dir import RunDir, is_run
from vit.cli import front
from vit.cli.answers import failure
from vit.cli.overrides import Overrides
from vit.config.checks import OF_FILES
from vit.config.resume import migrate
from vit.config.saved import MAIN
from vit.config.schema import RunConfig
from vit.config.validate import to_config
from vit.data.sources.layout import check_folder, check_table
from vit.errors import ConfigError, DiskFullError, NoCheckpointError, VitError
from vit.runtime import console
from vit.runtime.dist import World, leave, process_group, world
from vit.runtime.memory import retain_freed_memory
from vit.runtime.signals import StopRequest, import_torch, stop_with_parent

if TYPE_CHECKING:
    from vit.training.components import Components, ShouldPrune


def main() -> None:
    """Entry point of `vit-train`."""
    leave(front.run("train", train))


def never(epoch: float, score: float) -> bool:
    """No search wants the run to end."""
    return False


def train(plain: dict[str, Any], overrides: Overrides, should_prune: ShouldPrune = never) -> Path:
    """Train one run on composed settings, or go on with one; alone or as one of torchrun's.

    `should_prune` is told (epoch, validation score) and ends the run by answering True.

    Returns:
        The run's folder.
    """
    processes = world()
    with StopRequest() as stop:
        if isinstance(plain["resume"], str) and plain["resume"] != "auto":
            plain = saved_settings(Path(plain["resume"]), overrides)
        config = to_config(plain, processes.size, complete=False)
        if config.data.name in OF_FILES:  # a slip in the path is answered without torch, too
            check = check_table if config.data.name == "table" else check_folder
            check("data.root", Path(str(config.data.root)))
        if "TORCHELASTIC_RUN_ID" in os.environ:  # of torchrun's processes, whatever their number
            stop_with_parent()
        with process_group(processes, lambda: _takes_cuda(config)):
            if not processes.is_main:
                console.mute()
            run, is_new = processes.broadcast(lambda: run_folder(config))
            processes.broadcast(run.lock)
            try:
                _train(config, overrides.keys, run, stop, processes, should_prune)
            except Exception as error:
                if isinstance(error, OSError) and not run.checkpoints.is_dir():
                    raise VitError(
                        f"{run.path} was moved or deleted while it trained; if it is elsewhere, go "
                        f"on there with vit-train resume=<its folder>"
                    ) from None
                if is_new and processes.is_main and not run.has_progress():
                    run.discard()
                elif isinstance(error, DiskFullError):
                    way = f"resume={run.path}" if run.step_files() else "name=<another name>"
                    raise DiskFullError(f"{error}: vit-train {way}") from None
                raise
            finally:
                run.unlock()
            return run.path


def _takes_cuda(config: RunConfig) -> bool:
    from vit.runtime.device import select_device

    return select_device(config.trainer.device, key="trainer.device").type == "cuda"


def saved_settings(folder: Path, overrides: Overrides) -> dict[str, Any]:
    """The settings of a run, with the user's own values on top.

    Raises:
        NoCheckpointError: `folder` is no run.
        ConfigError: an override picks a group (`model=small`) instead of giving a value.
    """
    if not is_run(folder):
        raise NoCheckpointError(f"resume={folder} is no run folder (it has no config.yaml)")
    run = RunDir(folder)
    plain = migrate(run.read_config())
    for override in overrides.parsed:
        section, _, name = override.key_or_group.rpartition(".")
        if not str(override.input_line).startswith("+"):
            raise ConfigError(
                f"{override.input_line} picks a group, which a resumed run cannot change; leave it "
                f"out, or start a new run"
            )
        place = plain
        for part in filter(None, section.split(".")):
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{override.key_or_group} is no known key; {section} is a value")
        place[name] = override.value()
    return {**plain, "resume": str(folder), "name": None}


def run_folder(config: RunConfig) -> tuple[RunDir, bool]:
    """The run's folder, and whether it is new.

    Raises:
        ConfigError: the name is taken, or the folder cannot be made.
    """
    outputs = Path(config.outputs).expanduser()
    if config.resume not in (None, "auto"):
        return RunDir(Path(str(config.resume))), False
    if config.resume == "auto" and (outputs / str(config.name)).is_dir():
        return RunDir(outputs / str(config.name)), False
    parts = [config.data.name, config.model.name, f"{datetime.now():%Y%m%d-%H%M%S}"]
    default = "-".join(part for part in parts if part != "auto")
    return RunDir.create(outputs, config.name or default, unique=config.name is not None), True


def _train(
    config: RunConfig, user_keys: frozenset[str], run: RunDir, stop: StopRequest, processes: World,
    should_prune: ShouldPrune,
) -> None:  # fmt: skip
    began = time.monotonic()
    import_torch()  # here: an error in the settings is answered without it
    from vit.training.setup import set_up
    from vit.training.trainer import Trainer

    with console.kept_in(run.said) as kept:
        parts = set_up(config, user_keys, run, stop, processes, should_prune, began)
        if parts is None:
            return
        kept.start()
        retain_freed_memory()  # from here on: what loading the data freed has gone back

        went_on_at, before = parts.state.step, parts.state.best
        lengths = run.read_summary().get("lengths", []) if went_on_at else []
        lengths = list(dict.fromkeys([*lengths, parts.plan.steps]))

        def note(state: str, scores: dict[str, float], more: Mapping[str, Any]) -> None:
            if processes.is_main:
                run.write_summary({**parts.summary(state, scores), "lengths": lengths, **more})

        note("running", {}, {})
        try:
            scores = Trainer(parts).fit()
        except Exception as error:
            note("failed", {}, failure(error))
            raise
        finally:
            stop.deferred = False
            parts.train.close()
            parts.logger.close()
        note("finished", scores, {})
        if processes.is_main:
            kept_before = before is not None and parts.state.best is before
            _print_result(parts, scores, kept_before, time.monotonic() - began)


def _print_result(
    parts: Components, scores: dict[str, float], kept_before: bool, seconds: float
) -> None:
    import numpy as np

    from vit.artifacts.runs import curve
    from vit.training.verdict import advice, judged, judged_labels

    key = parts.loss.task.score
    tops = {split: scores.get(f"{split}_{key}") for split in ("val", "test")}
    told = "  ".join(
        f"{split} {MAIN[key]} {top:.2f}" for split, top in tops.items() if top is not None
    )
    folder, train = parts.run.path, parts.train.labels.cpu().numpy()
    verdict: list[str] = []
    for split, loader in (("test", parts.test), ("val", parts.val)):
        top = tops[split]
        if not verdict and loader is not None and top is not None:
            of = np.delete(loader.labels.cpu().numpy(), list(loader.corrupt.reasons), axis=0)
            one = train.ndim == 1
            words = judged(top, of, train, parts.classes) if one else judged_labels(top, of)
            verdict = [f"{split}: {words}"]
    verdict += advice(
        curve(folder, "val", "loss"), parts.epoch, len(train) / len(parts.classes),
        started=parts.config.model.weights is not None or parts.config.data.name not in OF_FILES,
        kept=parts.state.best.epoch if parts.state.best else 0.0,
    )  # fmt: skip
    if best := parts.state.best:
        before = ", from before it went on: none since was better" * kept_before
        verdict.append(
            f"kept: the weights of epoch {parts.epochs_text(best.step)} of "
            f"{parts.epochs_text(parts.state.step)}, best on validation (the last *){before}"
        )
    training, took = map(console.duration, (parts.state.seconds, seconds))
    lines = [
        f"\n{told or 'done'}  in {folder}",
        *verdict,
        f"time: {took} with start-up, compiling and scoring; steps of the whole run {training}",
        f"vit-eval {folder}",
        f"vit-predict {folder} <images>",
        f"tensorboard --logdir {folder}",
    ]
    console.say("\n  ".join(lines))


if __name__ == "__main__":
    main()
