"""`vit-eval`: scores, predictions and a report of a trained model, from a path alone."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit.cli import front
from vit.cli.argv import value_of
from vit.config.compose import to_config, to_eval_config
from vit.config.errors import ConfigError, DataError
from vit.config.schema import DataConfig, EvalConfig
from vit.runtime.memory import keep_memory

if TYPE_CHECKING:
    from vit.data.loader import EvalLoader
    from vit.data.reader import Reader
    from vit.data.types import Samples
    from vit.engine.evaluate import Predictions
    from vit.engine.restore import Trained
    from vit.engine.review import Temperature


def main() -> None:
    """Entry point of `vit-eval`."""
    sys.exit(front.run("eval", evaluate))


def evaluate(plain: dict[str, Any], overrides: list[str]) -> None:
    """Score a checkpoint on a split of its own data, or on a folder with the same classes."""
    keep_memory()
    config = to_eval_config(plain)
    # torch is imported here: an error in the settings is answered without it.
    from vit.artifacts import console
    from vit.artifacts.predictions import write_evaluation, write_json, write_page
    from vit.data.reader import POOL_FROM, Reader
    from vit.engine.restore import load_trained
    from vit.engine.review import page, review
    from vit.runtime.device import select_device

    device = select_device(config.device)
    trained = load_trained(Path(config.checkpoint), device, console.warn)
    # Every image is used once or twice, so files are streamed; few of them without workers.
    data = replace(to_config(trained.config).data, workers=config.data.workers, memory="stream")
    data = replace(data, root=config.data.root or data.root)
    samples, what = find_samples(config, data, trained)
    if len(samples) < POOL_FROM:
        data = replace(data, workers=0)
    job = Job(trained, data, Reader.of(data, device), config.tta)
    loader, without, predictions = job.predict(samples, what)
    temperature = fit(config, job, what, predictions)
    result = review(predictions, temperature)
    metrics = {
        "checkpoint": str(trained.path),
        "step": trained.step,
        "data": what,
        "images": len(predictions.index),
        "bad_images": loader.bad.named(),
        "tta": config.tta,
        **result.as_json(trained.classes),
    }
    if without is not predictions:
        scores = review(without, temperature).scores
        metrics["without_tta"] = {key: score.value for key, score in scores.items()}
    folder = output_folder(config, trained, what)
    names = [loader.names[i] for i in predictions.index]
    write_evaluation(folder, metrics, names, trained.classes, predictions)
    written = [folder / "metrics.json", folder / "predictions.csv"]
    if temperature.value is not None:
        written.append((folder if config.output else folder.parent) / "temperature.json")
        about = {key: metrics[key] for key in ("checkpoint", "step", "tta", "temperature")}
        write_json(written[-1], {**about, "split": temperature.split, "images": temperature.images})
    if config.report:
        compared = compare(config, trained, what, metrics)
        shown = facts(trained, metrics)
        html = page(result, trained, loader, what, shown, compared, command(overrides))
        written.append(write_page(folder, html))
    print(
        f"{what}: top-1 {metrics['top1']:.2f}  top-5 {metrics['top5']:.2f}  loss "
        f"{metrics['loss']:.4f}  ({len(names):,} images, step {trained.step})",
        *written,
        sep="\n  ",
    )


@dataclass(frozen=True)
class Job:
    """What predictions are made with.

    Attributes:
        trained: the model.
        data: the run's data settings.
        reader: of the images.
        tta: `none` or `flip`.
    """

    trained: Trained
    data: DataConfig
    reader: Reader
    tta: str

    def predict(self, samples: Samples, what: str) -> tuple[EvalLoader, Predictions, Predictions]:
        """The loader, predictions of the images alone, and as asked for (the same without TTA).

        Raises:
            DataError: an image is damaged and may not be, or a worker failed.
        """
        from vit.artifacts import console
        from vit.data.loader import EvalLoader
        from vit.data.types import DataSet
        from vit.engine.evaluate import predict, with_mirror_images

        trained, flips = self.trained, self.tta == "flip"
        kept = self.reader.keeping(DataSet(trained.classes, {what: samples}), self.data)
        loader = EvalLoader(kept.splits[what], trained.evaluation["batch_size"], self.reader)
        precision = trained.evaluation["precision"]
        predictions = predict(
            trained.model, loader, self.reader.device, precision, logits=True, mirrored=flips
        )
        for name, why in loader.bad.news().items():
            console.warn(f"damaged images are left out of the scores: {name} ({why})")
        return loader, predictions, with_mirror_images(predictions) if flips else predictions


def fit(config: EvalConfig, job: Job, what: str, predictions: Predictions) -> Temperature:
    """Fit a temperature on the run's validation split, as far as it has one that can be read."""
    from vit.engine.review import Temperature, fitted

    if what == "val":
        return fitted(predictions)
    try:
        splits = find_splits(job.data, job.trained)
        if "val" not in splits:
            return Temperature(None, why="the run has no validation images to fit it on")
        return fitted(job.predict(splits["val"], "val")[-1])
    except ConfigError as error:
        return Temperature(None, why=f"the run's validation images cannot be used ({error})")


def find_samples(config: EvalConfig, data: DataConfig, trained: Trained) -> tuple[Samples, str]:
    """The images to evaluate on, and what to call them; `data` is the run's.

    Raises:
        DataError: the split does not exist, or the classes are not the checkpoint's.
    """
    from vit.data.sources import load_images

    if config.images is not None:
        folder = Path(config.images)
        return load_images(folder, trained.classes, data), f"images-{folder.resolve().name}"
    splits = find_splits(data, trained)
    if config.split not in splits:
        raise DataError(
            f"split={config.split}: the run's data has none; choose one of "
            f"{', '.join(split for split in splits if split != 'train')}"
        )
    return splits[config.split], config.split


def find_splits(data: DataConfig, trained: Trained) -> dict[str, Samples]:
    """The splits of the run's data.

    Raises:
        DataError: it is missing, or the classes are not the checkpoint's.
    """
    from vit.data.sources import load_data_set

    found = load_data_set(data)
    if found.classes != trained.classes:
        raise DataError(
            f"{data.root or data.name} has the classes {found.classes}, the checkpoint "
            f"{trained.classes}; give the data it was trained on"
        )
    return found.splits


def compare(
    config: EvalConfig, trained: Trained, what: str, metrics: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """Scores to be seen side by side: of the run's own split, without and with mirror images.

    Those of the split are what an evaluation of the same weights has left in the run folder.
    """
    from vit.artifacts.predictions import read_metrics
    from vit.artifacts.run_dir import RunDir

    compared: dict[str, dict[str, float]] = {}
    run = RunDir.of(trained.path)
    if config.images is not None and run is not None:
        stored = read_metrics(run.eval_dir(config.split))
        if stored.get("step") == trained.step:
            compared[config.split] = stored.get("without_tta", stored)
    if compared or "without_tta" in metrics:
        compared[what] = metrics.get("without_tta", metrics)
    if "without_tta" in metrics:
        compared[f"{what}, with mirror images"] = metrics
    return compared


def facts(trained: Trained, metrics: dict[str, Any]) -> list[str]:
    """What the report says below its heading."""
    bad = len(metrics["bad_images"])
    return [
        f"{metrics['images']:,} images",
        f"{len(trained.classes):,} classes",
        f"data {trained.config['data']['name']}",
        f"{trained.path}, step {trained.step:,}",
        *(["mean of the probabilities of image and mirror image"] * ("without_tta" in metrics)),
        *([f"{bad} damaged images left out"] * (bad > 0)),
    ]


def command(overrides: list[str]) -> str:
    """What was typed."""
    keys = [override.lstrip("+").partition("=")[0] for override in overrides]
    return shlex.join(["vit-eval", *(f"{key}={value_of(overrides, key)}" for key in keys)])


def output_folder(config: EvalConfig, trained: Trained, what: str) -> Path:
    """Where the results go: as asked, else into the run folder, else beside the file."""
    from vit.artifacts.run_dir import RunDir

    if config.output is not None:
        return Path(config.output)
    run = RunDir.of(trained.path)
    return run.eval_dir(what) if run else trained.path.with_suffix("") / what


if __name__ == "__main__":
    main()
