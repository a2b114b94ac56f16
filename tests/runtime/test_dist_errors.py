"""Mistakes and damaged images under torchrun: told once, and no process is left waiting."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from commands import SMALL, lines
from pictures import data_config, noise, save
from together import largest_difference, run_together, torchrun

from vit.artifacts.run_dir import RunDir
from vit.data.sampler import Sampler
from vit.data.sources.registry import load_data_set

pytestmark = pytest.mark.slow

TORN = b"\xff\xd8\xff\xe0 no photo"


def test_a_mistake_is_told_once(tmp_path: Path) -> None:
    with torchrun(2, *SMALL, "model.heads=3", "name=mistake", cwd=tmp_path) as job:
        done = job.finish()
        assert job.members() == []
    assert done.returncode != 0
    assert done.stdout.count("model.dim=16 is not divisible by model.heads=3") == 1
    assert not (tmp_path / "outputs" / "mistake").exists()


PHOTOS = [
    *(a for a in SMALL if not a.startswith("trainer.batch_size")), "data=folder",
    "data.root=photos", "data.image_size=24", "data.memory=stream", "data.val_fraction=0.2",
    "data.test_fraction=0.2", "trainer.batch_size=8", "trainer.epochs=2", "trainer.log_every=1",
    "trainer.eval_batch_size=4", "augment.mixup=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("errors")


@pytest.fixture(scope="module")
def photos(folder: Path) -> dict[str, list[str]]:
    """60 images of two classes; the names of those of each split."""
    for label in "ab":
        for i in range(30):
            image = noise(*((24, 24), (30, 40))[i % 2], seed=ord(label) + i)
            save(folder / "photos" / label / f"{i:02}.jpg", image)
    shares = {"val_fraction": 0.2, "test_fraction": 0.2}
    config = data_config("folder", root=str(folder / "photos"), image_size=24, **shares)
    return {name: list(split.names) for name, split in load_data_set(config).splits.items()}


def test_a_damaged_image_that_one_process_meets_ends_all(
    folder: Path, photos: dict[str, list[str]]
) -> None:
    order = Sampler(np.array([name[0] == "b" for name in photos["train"]]).astype(int), 0, False)
    name = photos["train"][order.positions(3 * 8, 4 * 8)[6]]  # second half of step 3: rank 1
    file = folder / "photos" / name
    whole = file.read_bytes()
    file.write_bytes(TORN)
    try:
        with torchrun(2, *PHOTOS, "name=damaged", cwd=folder) as job:
            start = time.monotonic()
            done = job.finish(60)
            assert job.members() == []
    finally:
        file.write_bytes(whole)
    assert done.returncode != 0
    assert name in done.stdout
    assert time.monotonic() - start < 45


def test_skipped_images_are_counted_as_by_one_process(
    folder: Path, photos: dict[str, list[str]]
) -> None:
    whole = {}
    try:
        for split in photos:
            for i in (1, 4):
                file = folder / "photos" / photos[split][i]
                whole[file] = file.read_bytes()
                file.write_bytes(TORN)
        args = [*PHOTOS, "data.on_bad_image=skip", "data.bad_image_limit=0.2"]
        alone = run_together(1, *args, "name=skip-one", cwd=folder)
        both = run_together(2, *args, "name=skip-two", cwd=folder)
    finally:
        for file, content in whole.items():
            file.write_bytes(content)
    assert (alone.returncode, both.returncode) == (0, 0), alone.stdout + both.stdout
    for log in (alone.stdout, both.stdout):
        assert log.count("damaged images are") == 6
    a, b = (RunDir(folder / "outputs" / f"skip-{name}") for name in ("one", "two"))
    assert largest_difference(a, b) < 1e-5
    assert [line["bad_images"] for line in lines(b.metrics) if line["event"] == "train"][-1] == 2
