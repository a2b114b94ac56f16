"""Exporting: write, run what was written, compare with the checkpoint, only then keep it."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from vit.config.commands import ExportConfig
from vit.data.types import Samples
from vit.errors import ConfigError, DataError, ExportError
from vit.export.formats import format_of
from vit.export.parity import BOUNDS, MERGING, Parity, compare, milliseconds
from vit.export.source import Answer, Content, WithPreprocessing, on_pixels
from vit.inference.evaluator import Evaluator
from vit.runtime import console
from vit.runtime.files import move_over, staging, write_atomic

_REMEDIES = {
    "fp32": "take another format",
    "fp16": "take precision=fp32",
    "int8": "take precision=fp16 or fp32",
}


@dataclass(frozen=True)
class Exported:
    """What was written, beside its checkpoint: the parity of their answers, sizes in bytes, and
    milliseconds per image of both, by the number of images at once.

    Attributes:
        others: parity of other programs that run the file, by their names; their times come behind.
    """

    parity: Parity
    sizes: tuple[int, int]
    times: dict[int, list[float]]
    others: dict[str, Parity] = field(default_factory=dict)


def find_images(config: ExportConfig, job: Evaluator) -> tuple[Samples, str]:
    """The images to compare on, and what to call them.

    Raises:
        DataError: there are none, or their classes are not the checkpoint's.
    """
    try:
        split = config.split
        if split is None:
            split = "val" if config.images is None and "val" in job.splits() else "test"
        samples, what = job.find(split)
    except DataError as error:
        hint = (
            "an export is compared with its checkpoint on images: give data.root=<where the "
            "run's data is now> or images=<a folder with one sub-folder for each class>"
        )
        raise DataError([*error.problems, hint]) from None
    if config.limit is None or config.limit >= len(samples):
        return samples, what
    return samples.take(np.linspace(0, len(samples) - 1, config.limit).round().astype(int)), what


def open_trained(config: ExportConfig) -> Evaluator:
    """The model, on the CPU, with what reads its images.

    Raises:
        NoCheckpointError: nothing there, or nothing undamaged.
        ConfigError: it takes no images of this size, cannot merge so many patches, pads its
            images, or its settings are not of this version.
    """
    job = Evaluator.of(Path(config.checkpoint), config.evaluation(), torch.device("cpu"))
    if job.trained.preprocessing["aspect"] == "native":
        raise ConfigError(
            f"{job.trained.path} pads its images and marks the padding (data.aspect=native), which "
            f"exports do not take; train with data.aspect=crop to export"
        )
    return job


def export(
    config: ExportConfig, job: Evaluator, samples: Samples, what: str, output: Path
) -> Exported:
    """Write the model to `output`, unless it does not answer as its checkpoint does on `samples`,
    from `find_images`. What is there is replaced in the end, or stays.

    Raises:
        ConfigError: the format cannot hold the model.
        ExportError: what was written answers otherwise.
        DivergedError: an answer of the checkpoint is not finite.
        DataError: an image is damaged and may not be, or a worker failed.
        DiskFullError: no space.
    """
    writer = import_module(format_of(config.format).module)
    content: Content = writer.write(job.trained, config.merge, config.precision)
    with staging(output) as staged:
        files = {"": content} if isinstance(content, bytes) else content
        for name, part in files.items():
            file = staged / name
            file.parent.mkdir(exist_ok=True)
            write_atomic(file, part)
        answer: Answer = writer.run(staged)
        loader = job.open(samples, what)
        parity, pixels = compare(job.model, answer, loader, job.trained.thresholds)
        job.trained.check(torch.from_numpy(parity.logits[0]))
        merges = config.merge and config.precision == "fp32"
        if broken := parity.broken(MERGING if merges else BOUNDS[config.precision]):
            raise ExportError(
                f"the export does not answer as its checkpoint does and was removed: {broken} "
                f"({len(samples):,} of {what}); {_REMEDIES[config.precision]}"
            )
        both = [on_pixels(WithPreprocessing(job.model, job.trained.preprocessing)), answer]
        runners: dict[str, Answer] = getattr(writer, "others", lambda path: {})(staged)
        others = {
            name: compare(job.model, run, loader, job.trained.thresholds)[0]
            for name, run in runners.items()
        }
        for name, found in others.items():
            if broken := found.broken(BOUNDS[config.precision]):
                console.warn(f"{name} does not answer as the checkpoint does: {broken}")
        counts = dict.fromkeys((1, config.batch_size))
        batches = {count: np.resize(pixels, (count, *pixels.shape[1:])) for count in counts}
        times = {n: milliseconds([*both, *runners.values()], own) for n, own in batches.items()}
        move_over(staged, output)
    sizes = job.trained.path.stat().st_size, sum(map(len, files.values()))
    return Exported(parity, sizes, times, others)
