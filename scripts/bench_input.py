"""From image files to normalised batches: images per second of one core, ours and the peers'.

    python scripts/bench_input.py --photos ~/photos --cifar ~/cifar10-jpeg/train

Each system decodes in a process of its own, without workers, on one thread; they take turns. The
folders have one sub-folder per class. Large photos are made of `--photos`, 12 megapixels each.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from contest import Measured, contest, serve
from PIL import Image
from torch import Tensor

from vit.config.schema import AugmentConfig, DataConfig
from vit.config.yaml_files import config_dir, load_yaml
from vit.data.loader import TrainLoader
from vit.data.reading.cache import CachedImages, CacheSpec
from vit.data.reading.reader import Reader
from vit.data.reading.workers import WorkerPool
from vit.data.sources.registry import load_data_set
from vit.data.types import FileImages
from vit.runtime.dist import World
from vit.runtime.memory import retain_freed_memory

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BATCH = 64


def main() -> int:
    """Measure and print, or play for one system; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="per system and repetition")
    parser.add_argument(
        "--play", nargs=5, metavar=("SYSTEM", "FOLDER", "SIZE", "POLICY", "SCRATCH")
    )
    args = parser.parse_args()
    if args.play:
        system, folder, size, policy, scratch = args.play
        play(system, Path(folder), int(size), policy, Path(scratch))
    else:
        for measured in measure(args.photos, args.cifar, args.repetitions, args.seconds):
            print(measured, flush=True)
    return 0


def measure(
    photos: Path | None, cifar: Path | None, repetitions: int, seconds: float
) -> list[Measured]:
    """All cases of the folders that are given: images per second."""
    found: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="bench-input-") as temporary:
        scratch = Path(temporary)

        def one(case: str, folder: Path, size: int, policy: str, systems: list[str]) -> None:
            commands = {
                name: [__file__, "--play", name, str(folder), str(size), policy, temporary]
                for name in systems
            }
            found.extend(contest(case, "images", commands, seconds, repetitions))

        if photos is not None:
            for policy in ("none", "randaugment"):
                also = "" if policy == "none" else " and RandAugment"
                one(f"photos to 224 px, crop, flip{also}", photos, 224, policy, list(SYSTEMS))
            large = enlarged(photos, scratch / "large")
            one("12-megapixel photos to 224 px", large, 224, "none",
                ["ours", "torchvision", "timm"])  # fmt: skip
            found += [writing(photos, kind, scratch, repetitions) for kind in ("jpeg", "uint8")]
        if cifar is not None:
            for policy in ("none", "randaugment"):
                also = "" if policy == "none" else " and RandAugment"
                one(f"32-px files, crop, flip{also}", cifar, 32, policy,
                    ["ours", "ours, held", "torchvision", "timm"])  # fmt: skip
    return found


def play(system: str, folder: Path, size: int, policy: str, scratch: Path) -> None:
    """One system on one case, as `contest` asks."""
    torch.set_num_threads(1)

    def make() -> Callable[[], object]:
        return SYSTEMS.get(system, held)(folder, size, policy, scratch).__next__

    serve(make, BATCH)


def enlarged(photos: Path, to: Path) -> Path:
    """As many photos as a batch has, at 4000 x 3000 px, as JPEG of quality 90."""
    files = sorted(file for file in photos.rglob("*") if file.is_file())
    for i, file in enumerate((files * BATCH)[:BATCH]):
        place = to / f"class{i % 2}" / f"{i}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            image.convert("RGB").resize((4000, 3000)).save(place, quality=90)
    return to


def writing(photos: Path, kind: str, scratch: Path, repetitions: int) -> Measured:
    """Making the cache, which happens once."""
    torch.set_num_threads(1)
    images = load_data_set(data_config(photos, 224)).splits["train"].images
    assert isinstance(images, FileImages)
    measured = Measured("photos to the cache, once", f"ours, {kind}", "images/s")
    for number in range(repetitions):
        start = time.perf_counter()
        CachedImages(
            images, scratch / f"{kind}{number}", CacheSpec(kind, 256, 3), WorkerPool(0, 60.0)
        )
        measured.values.append(len(images.names) / (time.perf_counter() - start))
    return measured


def data_config(folder: Path, size: int, **changes: Any) -> DataConfig:
    """A folder, streamed by this process, all of it for training."""
    base = load_yaml((config_dir() / "data/_base.yaml").read_text(), "data")
    return DataConfig(**{
        **base, "name": "folder", "root": str(folder), "image_size": size, "mean": MEAN,
        "std": STD, "val_fraction": 0.0, "test_fraction": 0.0, "memory": "stream", "workers": 0,
        "cache_size": max(round(size * 256 / 224), size), **changes,
    })  # fmt: skip


def ours(folder: Path, size: int, policy: str, scratch: Path, **changes: Any) -> Iterator[Tensor]:
    """Our loader, from the files."""
    retain_freed_memory()
    data = data_config(folder, size, **changes)
    light = load_yaml((config_dir() / "augment/_base.yaml").read_text(), "augment")
    augment = AugmentConfig(**{
        **light, "name": "light", "crop": "padded" if size == 32 else "resized", "flip": 0.5,
        "policy": policy,
    })  # fmt: skip
    reader = Reader.of(data, 16, torch.device("cpu"))
    listed = load_data_set(data)
    train = reader.with_cache({"train": listed.splits["train"]}, data)["train"]
    loader = TrainLoader(train, len(listed.classes), BATCH, augment, "none", 0, reader, World())
    step = 0
    while True:
        yield loader.batch_at(step).images
        step += 1


def cached_jpeg(folder: Path, size: int, policy: str, scratch: Path) -> Iterator[Tensor]:
    """Our loader, from the JPEG cache: later epochs."""
    return ours(folder, size, policy, scratch, cache="jpeg", cache_dir=str(scratch / "jpeg"))


def cached_uint8(folder: Path, size: int, policy: str, scratch: Path) -> Iterator[Tensor]:
    """Our loader, from the uint8 cache: later epochs."""
    return ours(folder, size, policy, scratch, cache="uint8", cache_dir=str(scratch / "uint8"))


def held(folder: Path, size: int, policy: str, scratch: Path) -> Iterator[Tensor]:
    """Our loader with all images in memory, the default of small ones, after the first read."""
    return ours(folder, size, policy, scratch, memory="device")


def torchvision(folder: Path, size: int, policy: str, scratch: Path) -> Iterator[Tensor]:
    """ImageFolder, Pillow and torch's DataLoader."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    crop: Any = v2.RandomCrop(32, padding=4) if size == 32 else v2.RandomResizedCrop(size)
    steps: list[Any] = [crop, v2.RandomHorizontalFlip()]
    steps += [v2.RandAugment()] if policy == "randaugment" else []
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    images = ImageFolder(str(folder), v2.Compose(steps))
    loader = DataLoader(images, BATCH, shuffle=True, drop_last=True)
    for _ in cycle([None]):
        for batch, _labels in islice(loader, len(loader)):
            yield batch


def timm(folder: Path, size: int, policy: str, scratch: Path) -> Iterator[Tensor]:
    """timm's create_dataset and create_loader."""
    data: Any = importlib.import_module("timm.data")
    images = data.create_dataset("", root=str(folder), is_training=True)
    loader = data.create_loader(
        images, (3, size, size), BATCH, is_training=True, use_prefetcher=False, num_workers=0,
        persistent_workers=False, pin_memory=False, mean=tuple(MEAN), std=tuple(STD),
        interpolation="bilinear", color_jitter=None, device=torch.device("cpu"),
        auto_augment="rand-m9-n2-mstd0" if policy == "randaugment" else None,
        **({"scale": (1.0, 1.0), "ratio": (1.0, 1.0)} if size == 32 else {}),
    )  # fmt: skip
    for _ in cycle([None]):
        for batch, _labels in loader:
            yield batch


SYSTEMS: dict[str, Callable[[Path, int, str, Path], Iterator[Tensor]]] = {
    "ours": ours,
    "ours, jpeg cache": cached_jpeg,
    "ours, uint8 cache": cached_uint8,
    "torchvision": torchvision,
    "timm": timm,
}


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
