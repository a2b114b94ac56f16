"""`vit-eval`: scores, predictions and a report of a trained model, from a path alone."""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit.artifacts.predictions import (
    EVALUATION,
    LABEL_ERRORS,
    METRICS,
    PAGE,
    PREDICTIONS,
    write_page,
    write_rows,
)
from vit.artifacts.run_dir import RunDir, results_of
from vit.cli import front
from vit.cli.overrides import Overrides
from vit.config.checks import Check, Complaint
from vit.config.commands import EvalConfig
from vit.config.saved import MAIN
from vit.config.schema import height_width
from vit.config.validate import checked
from vit.runtime import console
from vit.runtime.files import prepare_folder, read_json, to_json, together, write_atomic
from vit.runtime.signals import import_torch

if TYPE_CHECKING:
    from vit.evaluation.review import Evaluation
    from vit.inference.load import Trained


def _saved_is_of_the_weights(how: str, tta: str, merge: int, size: Any) -> Complaint:
    others = {"tta": tta != "none", "merge": merge > 0, "data.image_size": size is not None}
    if how == "save" and any(others.values()):
        given = ", ".join(key for key, is_so in others.items() if is_so)
        yield f"calibration=save keeps what is fitted on the model as it is; leave {given} out"


CHECKS = [Check(("calibration", "tta", "merge", "data.image_size"), _saved_is_of_the_weights)]
"""Contradictions between the settings of `vit-eval`."""


def main() -> None:
    """Entry point of `vit-eval`."""
    sys.exit(front.run("eval", evaluate))


def evaluate(plain: dict[str, Any], overrides: Overrides) -> None:
    """Score a checkpoint on a split of its own data, or on a folder with the same classes."""
    config = checked(EvalConfig, plain, CHECKS)
    place = Path(config.checkpoints[0])
    prepare_folder("output", output_folder(config, RunDir(place).best if place.is_dir() else place))
    import_torch()  # here: an error in the settings is answered without it
    from vit.evaluation import evaluate as evaluation
    from vit.runtime.device import select_device

    done = evaluation.evaluate(config, select_device(config.device))
    typed = (f"{key}={overrides.text(key)}" for key in overrides.typed())
    deliver(config, done, shlex.join(["vit-eval", *typed]))


def deliver(config: EvalConfig, done: Evaluation, typed: str) -> None:
    """Write what came of an evaluation, and say it."""
    from vit.evaluation.review import page
    from vit.inference.calibration import keep
    from vit.report.page import SCORES

    trained, what, metrics = done.trained, done.what, done.metrics
    label = labelled(what, trained, config.merge)
    versus = ""
    if "compared_with" in metrics:
        versus = f"-vs-{results_of(Path(metrics['compared_with']['checkpoint'])).name}"
    folder = output_folder(config, trained.path, label + versus)
    with together(folder, EVALUATION) as staged:
        write_atomic(staged / METRICS, to_json(metrics, 2))
        write_rows(staged / PREDICTIONS, done.rows())
        if done.label_errors:
            write_rows(staged / LABEL_ERRORS, done.label_error_rows())
        if config.report:
            compared, shown = compare(config, trained, what, metrics), facts(trained, metrics)
            with console.OnlyWarned()("the report"):
                write_page(staged, page(done, shown, compared, typed))
    written = [folder / name for name in EVALUATION]
    if config.calibration == "save":
        run = RunDir.of(trained.path)
        with contextlib.nullcontext() if run is None else run.owned():
            keep(trained.path, done.calibration)
        written.append(trained.path)
    other = ""
    if done.comparison:
        a, b = done.comparison.names
        other = f" by {a}, {done.comparison.scores[1]:.2f} by {b}"
    key, second = ("top1", "top5") if trained.thresholds is None else ("map", "macro_f1")
    more = f"  {SCORES[second][0]} {metrics[second]:.2f}"
    if second == "top5" and len(trained.classes) <= 5:  # then it is 100
        more = ""
    lines = [
        f"{label}: {MAIN[key]} {metrics[key]:.2f}{other}{more}  loss {metrics['loss']:.4f}  "
        f"({metrics['images']:,} images, step {trained.step})",
        *([done.comparison.statement] if done.comparison else []),
        *(str(file) for file in written if file.is_file() and file != folder / PAGE),
        *([f"report, for a browser: {folder / PAGE}"] if (folder / PAGE).is_file() else []),
    ]
    console.say("\n  ".join(lines))


def compare(
    config: EvalConfig, trained: Trained, what: str, metrics: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """Scores to be seen side by side: of other images, another size, merged patches, TTA or not.

    Of another folder the other ones are the run's own split, of another image size the run's own,
    of merged patches those without; they are what evaluations of the same weights have left in the
    run folder.
    """
    compared: dict[str, dict[str, float]] = {}
    run, label = RunDir.of(trained.path), labelled(what, trained, config.merge)
    own = what if config.images is None else labelled(config.split, trained, config.merge)
    for other in dict.fromkeys((own, labelled(what, trained, 0))):
        stored = {} if run is None or other == label else read_json(run.eval_dir(other) / METRICS)
        if stored.get("step") == trained.step:
            compared[other] = stored.get("without_tta", stored)
    if compared or "without_tta" in metrics:
        compared[label] = metrics.get("without_tta", metrics)
    if "without_tta" in metrics:
        compared[f"{label}, with mirror images"] = metrics
    return compared


def labelled(what: str, trained: Trained, merge: int) -> str:
    """What was evaluated, and the image size and merged patches that are not the run's own."""
    size = tuple(trained.preprocessing["image_size"])
    if size != height_width(trained.config["data"]["image_size"]):
        what += f"-{size[0]}x{size[1]}"
    return f"{what}-merge{merge}" if merge else what


def facts(trained: Trained, metrics: dict[str, Any]) -> list[str]:
    """What the report says below its heading."""
    bad = len(metrics["bad_images"])
    height, width = metrics["image_size"]
    merge = metrics["merge"]
    own = height_width(trained.config["data"]["image_size"])
    return [
        f"{metrics['images']:,} images",
        f"{len(trained.classes):,} {'classes' if trained.thresholds is None else 'labels'}",
        f"data {trained.config['data']['name']}",
        f"{height} x {width} px" + f" (trained at {own[0]} x {own[1]})" * ((height, width) != own),
        f"{trained.path}, step {trained.step:,}",
        *(["mean of the probabilities of image and mirror image"] * ("without_tta" in metrics)),
        *([f"{merge} patches merged away in each block (none in the overlays)"] * (merge > 0)),
        *([f"{bad} damaged images left out"] * (bad > 0)),
        *([f"{metrics['trained_on']:,} of them trained on"] * bool(metrics["trained_on"])),
    ]


def output_folder(config: EvalConfig, checkpoint: Path, label: str = "") -> Path:
    """Where the results go: as asked, else into the run folder, else beside the file."""
    if config.output is not None:
        return Path(config.output)
    run = RunDir.of(checkpoint)
    return run.eval_dir(label) if run else checkpoint.with_suffix("") / label


if __name__ == "__main__":
    main()
