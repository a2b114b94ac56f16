"""The list of a run's images: what it knows them by, and what it says of a changed folder."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from pictures import data_config, noise, save

from vit.data import manifest as manifest_module
from vit.data.manifest import (
    Manifest,
    changed,
    fingerprints,
    known_among,
    restore,
    without,
)
from vit.data.sources.registry import load_data_set
from vit.data.types import DataSet


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for label, name in enumerate("ab"):
        for i in range(30):
            save(tmp_path / "photos" / name / f"{i:02}.png", noise(8, 8, seed=100 * label + i))
    return tmp_path / "photos"


def listed(root: Path, **changes: object) -> DataSet:
    return load_data_set(data_config("folder", root=str(root), image_size=8, **changes))


def names(data: DataSet) -> dict[str, list[str]]:
    return {split: list(samples.names) for split, samples in data.splits.items()}


@pytest.mark.parametrize("most", [10_000, 10])
def test_what_is_written_is_what_is_read(
    root: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(manifest_module, "CONTENT_UP_TO", most)
    data = listed(root, limit_per_class=5)
    manifest = Manifest.of(data, Manifest.of(data).trained())
    again = Manifest.from_bytes(manifest.to_bytes())
    assert again.by_content == (most > 60)
    assert again.digest() == manifest.digest()
    assert (
        again.to_bytes() == manifest.to_bytes() == Manifest.from_bytes(again.to_bytes()).to_bytes()
    )
    assert list(again.splits) == ["train", "val", "test", "train, unused"]
    assert sum(len(entries.names) for entries in again.splits.values()) == 60
    restored = restore(again, data)
    assert names(restored.data) == names(data)
    assert not restored.added
    assert not any(map(len, restored.gone.values()))
    for split, samples in data.splits.items():
        assert changed(again, restored, split) == []
        same = restored.data.splits[split]
        assert [same.images.path(i) for i in same.index] == [
            samples.images.path(i) for i in samples.index
        ]  # fmt: skip


def test_the_digest_does_not_depend_on_where_the_folder_is(root: Path) -> None:
    before = Manifest.of(listed(root)).digest()
    root.rename(root.with_name("moved"))
    assert Manifest.of(listed(root.with_name("moved"))).digest() == before


def test_an_unchanged_set_has_the_images_of_the_cache(root: Path) -> None:
    """Files in the same order, so that the cache's shards are found again."""
    data = listed(root)
    restored = restore(Manifest.of(data), data).data
    assert restored.splits["train"].images.names == data.splits["train"].images.names
    assert restored.splits["val"].images is restored.splits["train"].images


@pytest.mark.parametrize("most", [10_000, 10])
def test_a_touched_file_has_changed_where_times_are_all_that_is_known(
    root: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(manifest_module, "CONTENT_UP_TO", most)
    data = listed(root)
    manifest = Manifest.of(data)
    name = data.splits["train"].names[3]
    os.utime(root / name, ns=(1, 1))
    expected = [] if most > 60 else [name]
    assert changed(manifest, restore(manifest, data), "train") == expected
    save(root / name, noise(9, 9))
    assert changed(manifest, restore(manifest, data), "train") == [name]


def test_images_are_known_by_content_or_by_name_and_size(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.of(listed(root))
    monkeypatch.setattr(manifest_module, "CONTENT_UP_TO", 10)
    by_name = Manifest.of(listed(root))
    trained = manifest.splits["train"].names
    for i, name in enumerate(trained):
        save(tmp_path / "copies" / "ab"[i % 2] / f"x{i}.png", noise(8, 8, seed=5000 + i))
        os.replace(root / name, tmp_path / "copies" / "ab"[i % 2] / f"y{i}.png")
    copies = listed(tmp_path / "copies", val_fraction=0.0, test_fraction=0.0).splits["train"]
    found = known_among(copies, manifest.trained())
    assert [Path(n).name[0] == "y" for n in copies.names] == found.tolist()
    assert not known_among(copies, by_name.trained()).any()


def test_what_was_trained_on_is_left_out(root: Path) -> None:
    known = Manifest.of(listed(root)).trained()
    data = without(listed(root, split_seed=5, test_fraction=0.5), known)
    trained = set(known[0].splits["train"].names)
    assert not trained & {
        *data.splits["test"].names,
        *data.splits.get("val", data.splits["test"]).names,
    }
    assert set(data.unused["test"].names) <= trained
    assert any("left out of test" in note for note in data.notes)
    kept = Manifest.of(data, known)
    assert names(restore(kept, listed(root, split_seed=5, test_fraction=0.5)).data) == names(data)


def test_digits_are_known_by_their_pixels() -> None:
    data = load_data_set(data_config("digits", split_seed=1))
    known = Manifest.of(load_data_set(data_config("digits"))).trained()
    seen = known_among(data.splits["test"], known)
    trained = set(known[0].splits["train"].names)
    by_name = np.array([name in trained for name in data.splits["test"].names])
    assert (seen >= by_name).all()
    assert (seen & ~by_name).sum() <= 5  # some digits are there twice
    left = without(data, known)
    again = restore(Manifest.of(left, known), data)
    assert names(again.data) == names(left)
    pixels = again.data.splits["test"].images[again.data.splits["test"].index]
    sizes, hashes = fingerprints(left.splits["test"], True)
    assert (sizes == pixels[0].nbytes).all()
    assert len(set(hashes.tolist())) > 0.9 * len(hashes)


def test_an_unreadable_file_is_no_known_image(root: Path) -> None:
    data = listed(root)
    (root / data.splits["test"].names[0]).unlink()
    sizes, hashes = fingerprints(data.splits["test"], True)
    assert (sizes[0], hashes[0]) == (-1, 0)
    assert not known_among(data.splits["test"], [Manifest.of(data)])[0]


def test_the_list_holds_text(root: Path) -> None:
    (root / "a" / os.fsdecode(b"\xff.png")).write_bytes((root / "a" / "00.png").read_bytes())
    data = listed(root)
    plain = json.loads(gzip.decompress(Manifest.of(data).to_bytes()))
    assert any(
        "\udcff.png" in name for split in plain["splits"].values() for name in split["names"]
    )
