"""What the tests of streamed images share: photos of odd sizes, and loaders of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pictures import data_config, noise, reader, save

from vit.data.loader import EvalLoader
from vit.data.reading.workers import WorkerPool
from vit.data.sources import folder
from vit.data.types import Samples

SIZE = (24, 32)
BATCH = 10
ODD_SIZES = [(40, 30), (24, 32), (32, 24), (100, 20), (9, 64), (33, 31), (128, 96)]


def listed(root: Path) -> Samples:
    return folder.load(data_config("folder", root=str(root), image_size=list(SIZE))).splits["train"]


def draw(root: Path, sizes: list[tuple[int, int]]) -> Samples:
    """60 images in three classes, of (height, width) by turns from `sizes`."""
    for label in "abc":
        for i in range(20):
            height, width = sizes[i % len(sizes)]
            ending = ("jpg", "png", "bmp", "jpeg")[i % 4]
            image = noise(width, height, "L" if i == 7 else "RGB", seed=100 * ord(label) + i)
            save(root / label / f"{i:02}.{ending}", image)
    return listed(root)


def in_order(samples: Samples, pool: WorkerPool) -> EvalLoader:
    return EvalLoader(samples, BATCH, replace(reader(SIZE, held=False), pool=pool))
