"""A data set and a run on it, and what may become of the data set afterwards."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pictures import noise, save

from vit.artifacts.run_dir import RunDir
from vit.data.manifest import Manifest

CLASSES = ("daisy", "rose", "tulip")


def draw(root: Path, count: int = 16) -> None:
    """`count` images of each class, every one another."""
    for label, name in enumerate(CLASSES):
        for i in range(count):
            save(root / name / f"{i:02}.png", noise(8, 8, seed=100 * label + i))


class World:
    """A data set and a run on it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "photos"
        self.run = RunDir(folder / "outputs" / "run")
        self.manifest = Manifest.from_bytes(self.run.images.read_bytes())
        self.splits = {name: list(e.names) for name, e in self.manifest.splits.items()}
        names = [name for names in self.splits.values() for name in names]
        self.pixels = {name: (self.root / name).read_bytes() for name in names}
        self.contents = {self.pixels[name] for name in self.splits["train"]}
        self.before = json.loads((folder / "before" / "metrics.json").read_text())

    @property
    def classes(self) -> Path:
        """Where the class folders of the training images are."""
        return self.root / "train" if (self.root / "train").is_dir() else self.root

    def one(self, split: str, number: int = 0) -> Path:
        return self.root / self.splits[split][number]


def scored(world: World, out: Path) -> tuple[dict[str, Any], int]:
    """metrics.json, and how many of the scored images have the content of a training image."""
    with open(out / "predictions.csv", newline="") as file:
        names = [row["image"] for row in csv.DictReader(file)]
    seen = sum((world.root / name).read_bytes() in world.contents for name in names)
    return json.loads((out / "metrics.json").read_text()), seen


def add_one(world: World) -> None:
    save(world.classes / "rose" / "new.png", noise(8, 8, seed=7000))


def add_many(world: World) -> None:
    for i in range(60):
        save(world.classes / CLASSES[i % 3] / f"a{i}.png", noise(8, 8, seed=7000 + i))


def rename_training_file(world: World) -> None:
    world.one("train").rename(world.one("train").with_name("other.png"))


def rename_test_file(world: World) -> None:
    world.one("test").rename(world.one("test").with_name("other.png"))


def rename_all(world: World) -> None:
    for name in (n for names in world.splits.values() for n in names):
        (world.root / name).rename((world.root / name).with_name(f"x{Path(name).name}"))


def swap_contents(world: World) -> None:
    a, b = world.one("train"), world.one("test")
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)


def copy_over_test(world: World) -> None:
    for i in range(2):
        shutil.copy(world.one("train", i), world.one("test", i))


def copy_training_images(world: World) -> None:
    for name in world.splits["train"]:
        shutil.copy(world.root / name, (world.root / name).with_name(f"copy-{Path(name).name}"))


def change_training_file(world: World) -> None:
    save(world.one("train"), noise(8, 8, seed=9000))


def touch(world: World) -> None:
    for name in world.pixels:
        os.utime(world.root / name, (1, 1))


def move_to_other_class(world: World) -> None:
    file = world.one("train")
    file.rename(world.classes / "tulip" / "moved.png")


Words = str | None
CHANGES: dict[str, tuple[Callable[[World], object], Words, Words]] = {
    "nothing": (lambda w: None, None, None),
    "one added": (add_one, "left out: 1 (", "left out: 1 ("),
    "many added": (add_many, "left out: 60 (", "left out: 60 ("),
    "training image removed": (lambda w: w.one("train").unlink(), "!are gone", None),
    "test image removed": (lambda w: w.one("test").unlink(), "!are gone", "of test gone"),
    "validation image removed": (lambda w: w.one("val").unlink(), "!are gone", None),
    "training image renamed": (rename_training_file, "!are gone", "came after"),
    "test image renamed": (rename_test_file, "!are gone", "of test gone"),
    "all renamed": (rename_all, "!holds none of the run's images", "holds none of the images"),
    "contents swapped": (swap_contents, "not bit-exact: 2 (", "of test changed since"),
    "copied over test": (copy_over_test, "not bit-exact: 2 (", "2 of the"),
    "training images copied": (copy_training_images, "came after", "came after"),
    "training image changed": (change_training_file, "not bit-exact: 1 (", None),
    "only touched": (touch, None, None),
    "moved to another class": (move_to_other_class, "!are gone", "came after"),
    "class renamed": (lambda w: (w.classes / "rose").rename(w.classes / "Rosa"), "!Rosa", "!Rosa"),
    "class added": (lambda w: save(w.classes / "iris" / "1.png", noise(8, 8)), "!iris", "!iris"),
    "class removed": (lambda w: shutil.rmtree(w.classes / "rose"), "!rose", "!rose"),
    "list removed": (lambda w: w.run.images.unlink(), "cannot be used", "cannot be used"),
    "list damaged": (lambda w: flip(w.run.images), "cannot be used", "cannot be used"),
    "list of another run": (lambda w: w.run.images.write_bytes(other_list(w)), "it is of other",
                            "it is of other"),
    "list removed and one added": (lambda w: (w.run.images.unlink(), add_one(w)),
                                   "!does not give the same list", "is not known"),
    "list removed and swapped": (lambda w: (w.run.images.unlink(), swap_contents(w)),
                                 "!does not give the same list", "is not known"),
}  # fmt: skip
"""What is done, what `resume` and `vit-eval` say of it; with `!` they refuse."""


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def other_list(world: World) -> bytes:
    plain = json.loads(gzip.decompress(world.run.images.read_bytes()))
    plain["splits"]["train"]["names"].pop()
    return gzip.compress(json.dumps(plain).encode())
