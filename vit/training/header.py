"""The header of a run: what it is, and warnings about its data."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

from vit.config.checks import FITTED_TO_DATA, OF_FILES
from vit.config.schema import RunConfig
from vit.config.validate import flatten, to_plain
from vit.data.reading.decode import sizes_of
from vit.data.task import ONE_LABEL, task_of
from vit.data.types import DataSet, FileImages
from vit.errors import shortened
from vit.model.vit import VisionTransformer
from vit.runtime import console
from vit.runtime import device as runtime_device
from vit.training.components import Components
from vit.training.state import flops_per_image, parameter_count

FEW = 300
"""With fewer training images a class, on average, one is told of weights to start from."""
_USUAL = 224
"""Side of images that weights are fine-tuned at."""
_UNEVEN = 10
"""How much rarer than the most frequent class one is told to be."""


def announce(parts: Components, data: DataSet, start: list[str]) -> None:
    """The header: what this run is, and where."""
    config, device = parts.config, parts.device
    versions = console.versions()
    commit = console.commit()
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    model, shape = parts.state.model, parts.state.model.config
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' * (count > 1)}" if device.type == "cpu" else ""
    processes = f"{parts.world.size} x " if parts.world.size > 1 else ""
    epochs = parts.epochs_text(parts.plan.steps)
    lines = [
        f"vit-train {versions['vit-train']}{f' ({commit})' if commit else ''}, "
        f"torch {versions['torch']}, python {versions['python']}",
        f"device   {processes}{runtime_device.describe(device)}{threads}, "
        f"{config.trainer.precision}, {parts.rate / 1e12:.2f} TFLOP/s in matrix products",
        f"data     {config.data.name}: {sizes}; {len(data.classes)} {parts.loss.task.classes}, "
        f"{'x'.join(map(str, shape.image_size))} px",
        *_about(config, data),
        f"model    {config.model.name}: patch {shape.patch_size}, dim {shape.dim}, depth "
        f"{shape.depth}, heads {shape.heads}; {parameter_count(model):,} parameters, "
        f"{flops_per_image(model) / 1e9:.3g} GFLOPs per image",
        f"plan     {parts.plan.steps:,} steps of {config.trainer.batch_size} images, "
        f"{epochs} epoch{'s' * (epochs != '1')}",
        *start,
        *([f"teacher  {config.distill.teacher}"] if config.distill.teacher is not None else []),
        f"folder   {_relative(parts.run.path)}",
        *([f"resumed  at step {parts.state.step}"] if parts.state.step else []),
    ]
    console.say("\n".join(map(_wrapped, lines)))


def _wrapped(line: str) -> str:
    """A line of less than 100 columns, or several; but one to copy from stays whole."""
    if line.startswith(("folder ", "note ")):
        return line
    return textwrap.fill(
        line, 99, subsequent_indent=" " * 9, break_long_words=False, break_on_hyphens=False
    )


def chosen(asked: RunConfig, config: RunConfig, brought: Collection[str] = ()) -> list[str]:
    """A line on what was chosen for the images, where their files may be of any size; and not
    `brought` by weights.
    """
    before, after = flatten(to_plain(asked)), flatten(to_plain(config))
    waited = (
        (key, after[key]) for key in FITTED_TO_DATA if before[key] == "auto" and key not in brought
    )
    values = [f"{k}={f'{v:g}' if isinstance(v, float) else v}" for k, v in waited]
    if config.data.name not in OF_FILES or not values:
        return []
    return [f"chosen   {' '.join(values)}, for these images and this device; what you give wins"]


def doubts(config: RunConfig, data: DataSet) -> list[str]:
    """What a person would want to know of the data before training, each with the remedy."""
    train = data.splits["train"]
    task = task_of(train.labels)
    counts = task.counts(train.labels, len(data.classes))
    balance = "sampler" if task is ONE_LABEL else "loss"
    batch, images = config.trainer.batch_size, len(train)
    most, least = int(counts.argmax()), int(counts.argmin())
    missing = [name for name, count in zip(data.classes, counts, strict=True) if count == 0]
    single = [name for name, count in zip(data.classes, counts, strict=True) if count == 1]
    found = {
        f"trainer.batch_size={batch} is more than the {images:,} training images, so a step shows "
        f"some of them again; try a smaller one": batch > images,
        f"no training image of {shortened(missing)}; try another data.split_seed": bool(missing),
        f"one training image alone: {shortened(single)}; add more": bool(single),
        "no validation images, so the last weights are kept and not the best; give "
        "data.val_fraction=0.1": "val" not in data.splits,
        "no test images; give data.test_fraction=0.1 or a test folder": "test" not in data.splits,
        f"{shortened([data.classes[least]])} has {counts[least]:,} training images, "
        f"{shortened([data.classes[most]])} {counts[most]:,}; try data.balance={balance}": (
            config.data.balance == "none" and 0 < counts[least] * _UNEVEN <= counts[most]
        ),
    }
    for split, samples in data.splits.items():
        if task is not ONE_LABEL and split != "train":
            there = task.counts(samples.labels, len(data.classes))
            unseen = [name for name, count in zip(data.classes, there, strict=True) if not count]
            found[f"no {split} image has {shortened(unseen)}, so it counts in no score there"] = (
                bool(unseen)
            )
    return [problem for problem, is_so in found.items() if is_so]


def slow_size(model: VisionTransformer) -> list[str]:
    """That the image size of weights is large for a CPU, and what a usual one would take."""
    usual = (_USUAL, _USUAL)
    shape = model.config
    if _USUAL % shape.patch_size or min(shape.image_size) <= _USUAL:
        return []
    times = flops_per_image(model) / flops_per_image(model, size=usual)
    return [
        f"data.image_size={list(shape.image_size)} is that of the weights, and takes long on a "
        f"CPU: data.image_size={_USUAL} needs 1/{times:.0f} of the time"
    ]


def _about(config: RunConfig, data: DataSet) -> list[str]:
    """Lines on the classes, the files, and how they were listed and cut."""
    train = data.splits["train"]
    task = task_of(train.labels)
    counts = task.counts(train.labels, len(data.classes))
    named = [f"{name} {count:,}" for name, count in zip(data.classes, counts, strict=True)]
    if task is not ONE_LABEL and (none := int((train.labels.sum(axis=1) == 0).sum())):
        named.append(f"none of them {none:,}")
    lines = [f"{task.classes:<8} {shortened(named)}"]
    if isinstance(data.splits["train"].images, FileImages):
        held = "held decoded" if config.data.memory == "device" else "streamed"
        described = _described(sizes_of(data.splits["train"]), len(data.splits["train"]))
        lines.append(f"files    {described}; {held}")
        if config.model.weights is None and counts.mean() < FEW:
            lines.append(
                f"note     {counts.mean():.0f} images a class are few to start from nothing; "
                f"better: vit-train experiment=finetune model.weights=<file or timm/...> "
                f"data.root={shlex.quote(str(config.data.root))}"
            )
    lines += [f"note     {note}" for note in data.notes]
    if data.small:
        lines.append(
            f"note     {shortened(data.small)}: too few images for an exact share, so which one is "
            f"held out may change when images come or go"
        )
    return lines


def _described(sizes: np.ndarray, total: int) -> str:
    if not len(sizes):
        return "of unknown size"
    low, middle, high = (np.sort(sizes, axis=0)[at] for at in (0, len(sizes) // 2, -1))
    looked_at = f" in {len(sizes)} of them" if len(sizes) < total else ""
    spread = f" ({low[0]}x{low[1]} to {high[0]}x{high[1]}{looked_at})" * bool((low != high).any())
    return f"{middle[0]}x{middle[1]} px{spread}"


def _relative(path: Path) -> Path:
    """The path as seen from here, where it lies below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
