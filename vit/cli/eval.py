"""`vit-eval`: scores and predictions of a trained model, from a path alone."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit.cli import front
from vit.config.compose import to_config, to_eval_config
from vit.config.errors import DataError
from vit.config.schema import DataConfig, EvalConfig
from vit.runtime.memory import keep_memory

if TYPE_CHECKING:
    from vit.data.types import Samples
    from vit.engine.restore import Trained


def main() -> None:
    """Entry point of `vit-eval`."""
    sys.exit(front.run("eval", evaluate))


def evaluate(plain: dict[str, Any], overrides: list[str]) -> None:
    """Score a checkpoint on a split of its own data, or on a folder with the same classes."""
    keep_memory()
    config = to_eval_config(plain)
    # torch is imported here: an error in the settings is answered without it.
    from vit.artifacts import console
    from vit.artifacts.predictions import write_evaluation
    from vit.data.loader import EvalLoader
    from vit.data.reader import POOL_FROM, Reader
    from vit.data.types import DataSet
    from vit.engine.evaluate import predict
    from vit.engine.restore import load_trained
    from vit.runtime.device import select_device

    device = select_device(config.device)
    trained = load_trained(Path(config.checkpoint), device, console.warn)
    # Every image is used once, so files are streamed; few of them without workers.
    data = replace(to_config(trained.config).data, workers=config.data.workers, memory="stream")
    samples, what = find_samples(config, data, trained)
    if len(samples) < POOL_FROM:
        data = replace(data, workers=0)
    reader = Reader.of(data, device)
    samples = reader.keeping(DataSet(trained.classes, {what: samples}), data).splits[what]
    loader = EvalLoader(samples, trained.evaluation["batch_size"], reader)
    predictions = predict(trained.model, loader, device, trained.evaluation["precision"])
    for name, why in loader.bad.news().items():
        console.warn(f"damaged images are left out of the scores: {name} ({why})")
    scores = predictions.scores()
    folder = output_folder(config, trained, what)
    metrics = {
        "checkpoint": str(trained.path),
        "step": trained.step,
        "data": what,
        "images": len(predictions.index),
        "bad_images": loader.bad.named(),
        **scores,
    }
    names = [samples.names[i] for i in predictions.index]
    write_evaluation(folder, metrics, names, trained.classes, predictions)
    print(
        f"{what}: top-1 {scores['top1']:.2f}  top-5 {scores['top5']:.2f}  loss "
        f"{scores['loss']:.4f}  ({len(names):,} images, step {trained.step})\n"
        f"  {folder / 'metrics.json'}\n  {folder / 'predictions.csv'}"
    )


def find_samples(config: EvalConfig, data: DataConfig, trained: Trained) -> tuple[Samples, str]:
    """The images to evaluate on, and what to call them; `data` is the run's.

    Raises:
        DataError: the split does not exist, or the classes are not the checkpoint's.
    """
    from vit.data.sources import load_data_set, load_images

    if config.images is not None:
        folder = Path(config.images)
        return load_images(folder, trained.classes, data), f"images-{folder.resolve().name}"
    if config.data.root is not None:
        data = replace(data, root=config.data.root)
    found = load_data_set(data)
    if found.classes != trained.classes:
        raise DataError(
            f"{data.root or data.name} has the classes {found.classes}, the checkpoint "
            f"{trained.classes}; give the data it was trained on"
        )
    if config.split not in found.splits:
        raise DataError(
            f"split={config.split}: the run's data has none; choose one of "
            f"{', '.join(split for split in found.splits if split != 'train')}"
        )
    return found.splits[config.split], config.split


def output_folder(config: EvalConfig, trained: Trained, what: str) -> Path:
    """Where the results go: as asked, else into the run folder, else beside the file."""
    from vit.artifacts.run_dir import RunDir

    if config.output is not None:
        return Path(config.output)
    run = RunDir.of(trained.path)
    return run.eval_dir(what) if run else trained.path.with_suffix("") / what


if __name__ == "__main__":
    main()
