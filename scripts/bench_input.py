"""From image files to normalised batches: images per second and process, ours and the peers'.

    python scripts/bench_input.py ~/photos --size 224
    python scripts/bench_input.py ~/cifar10-jpeg/train --size 32

Each system decodes in this process alone (no workers) on one thread, so that the figure is that of
one core; they are interleaved. The folder has one sub-folder per class.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit.artifacts.console import versions
from vit.config.compose import config_dir, load_yaml
from vit.config.schema import AugmentConfig, DataConfig
from vit.data.loader import TrainLoader
from vit.data.reader import Reader
from vit.data.sources import load_data_set
from vit.data.types import DataSet
from vit.runtime.dist import World

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BATCH = 64


def main() -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=256, help="per repetition")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    speeds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-input-") as cache:
        for policy in ("none", "randaugment"):
            streams = systems(args.folder, args.size, policy, Path(cache))
            for stream in streams.values():
                take(stream, BATCH)  # listing, imports, the cache
            for _ in range(args.repetitions):
                for name, stream in streams.items():
                    speeds.setdefault(f"{name}, {policy}", []).append(take(stream, args.images))
    for name, found in speeds.items():
        low, high = min(found), max(found)
        print(f"{name:<44} {statistics.median(found):9.0f} images/s ({low:.0f} to {high:.0f})")
    if args.json:
        content = {"size": args.size, **versions(), "images_per_second": speeds}
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


def take(stream: Iterator[Tensor], images: int) -> float:
    """Images per second of the next `images`."""
    start, done = time.perf_counter(), 0
    while done < images:
        done += len(next(stream))
    return done / (time.perf_counter() - start)


def systems(folder: Path, size: int, policy: str, cache: Path) -> dict[str, Iterator[Tensor]]:
    """Endless streams of normalised batches, by name."""
    makers: dict[str, Callable[[], Iterator[Tensor]]] = {
        "ours": lambda: ours(folder, size, policy, cache="none", where=cache),
        "ours, cached as jpeg": lambda: ours(folder, size, policy, cache="jpeg", where=cache),
        "ours, cached as uint8": lambda: ours(folder, size, policy, cache="uint8", where=cache),
        "torchvision ImageFolder": lambda: torchvision(folder, size, policy),
        "timm create_loader": lambda: timm(folder, size, policy),
    }
    return {name: make() for name, make in makers.items()}


def ours(folder: Path, size: int, policy: str, cache: str, where: Path) -> Iterator[Tensor]:
    """Our loader, streamed."""
    configs = config_dir()
    base = load_yaml((configs / "data/_base.yaml").read_text(), "data")
    data = DataConfig(**{
        **base, "name": "folder", "root": str(folder), "image_size": size, "mean": MEAN,
        "std": STD, "val_fraction": 0.0, "test_fraction": 0.0, "memory": "stream", "workers": 0,
        "cache": cache, "cache_dir": str(where / cache),
        "cache_size": max(round(size * 256 / 224), size),
    })  # fmt: skip
    light = load_yaml((configs / "augment/_base.yaml").read_text(), "augment")
    augment = AugmentConfig(**{
        **light, "name": "light", "crop": "resized", "flip": 0.5, "policy": policy,
    })  # fmt: skip
    reader = Reader.of(data, torch.device("cpu"))
    listed = load_data_set(data)
    listed = reader.keeping(DataSet(listed.classes, {"train": listed.splits["train"]}), data)
    loader = TrainLoader(
        listed.splits["train"], len(listed.classes), BATCH, augment, "none", 0,
        replace(reader), World(),
    )  # fmt: skip
    step = 0
    while True:
        yield loader.batch_at(step).images
        step += 1


def torchvision(folder: Path, size: int, policy: str) -> Iterator[Tensor]:
    """ImageFolder, Pillow and torch's DataLoader."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    steps: list[Any] = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
    steps += [v2.RandAugment()] if policy == "randaugment" else []
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    images = ImageFolder(str(folder), v2.Compose(steps))
    loader = DataLoader(images, BATCH, shuffle=True, drop_last=True)
    for _ in cycle([None]):
        for batch, _labels in islice(loader, len(loader)):
            yield batch


def timm(folder: Path, size: int, policy: str) -> Iterator[Tensor]:
    """timm's create_dataset and create_loader."""
    data: Any = importlib.import_module("timm.data")
    images = data.create_dataset("", root=str(folder), is_training=True)
    loader = data.create_loader(
        images, (3, size, size), BATCH, is_training=True, use_prefetcher=False, num_workers=0,
        persistent_workers=False, pin_memory=False, mean=tuple(MEAN), std=tuple(STD),
        interpolation="bilinear", color_jitter=None, device=torch.device("cpu"),
        auto_augment="rand-m9-n2-mstd0" if policy == "randaugment" else None,
    )  # fmt: skip
    for _ in cycle([None]):
        for batch, _labels in loader:
            yield batch


if __name__ == "__main__":
    sys.exit(main())
