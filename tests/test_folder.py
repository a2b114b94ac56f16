"""A folder of images: what is listed, and which folders are refused."""

import os
from pathlib import Path

import numpy as np
import pytest
from pictures import (
    BLUE,
    GREEN,
    RED,
    WHITE,
    data_config,
    is_colour,
    pixels_of,
    save,
    write,
)

from vit.config.errors import DataError
from vit.data import folder
from vit.data.sources import load_data_set


def folder_config(root, size=16, **changes):
    return data_config("folder", root=str(root), image_size=size, **changes)


def two_classes(root):
    save(root / "a" / "1.png", RED)
    save(root / "b" / "2.png", BLUE)
    return root


def test_classes_are_sorted_and_names_are_relative(tmp_path):
    for name in ("薔薇", "Tulpe", "Gänseblümchen", "ab"):
        save(tmp_path / name / "z.png")
        save(tmp_path / name / "deep" / "er" / "a.JPG")
    data = folder.load(folder_config(tmp_path))
    assert data.classes == ["Gänseblümchen", "Tulpe", "ab", "薔薇"]
    train = data.splits["train"]
    pairs = [(c, f) for c in data.classes for f in (os.path.join("deep", "er", "a.JPG"), "z.png")]
    assert list(train.names) == [os.path.join(*pair) for pair in pairs]
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert list(data.splits) == ["train"]
    assert pixels_of(train).shape == (8, 3, 16, 16)


def test_only_visible_image_files_are_listed(tmp_path):
    two_classes(tmp_path)
    for name in (".DS_Store", "._1.png", "Thumbs.db", "notes.txt", "1.png.part", "movie.mp4"):
        write(tmp_path / "a" / name, b"no image")
    save(tmp_path / ".git" / "x.png")
    write(tmp_path / "README.md", b"hello")
    data = folder.load(folder_config(tmp_path))
    assert data.classes == ["a", "b"]
    assert list(data.splits["train"].names) == [os.path.join("a", "1.png"), "b/2.png"]


def test_hidden_folders_are_not_listed(tmp_path):
    two_classes(tmp_path)
    save(tmp_path / "a" / ".thumbnails" / "1.png")
    assert len(folder.load(folder_config(tmp_path)).splits["train"]) == 2


def test_every_format_and_its_pixels(tmp_path):
    for i, (ending, colour) in enumerate([("jpg", RED), ("jpeg", GREEN), ("png", BLUE),
                                          ("webp", WHITE), ("bmp", (10, 20, 30)), ("gif", RED),
                                          ("tif", GREEN), ("avif", WHITE)]):  # fmt: skip
        save(tmp_path / f"class{i}" / f"x.{ending}", colour)
    data = folder.load(folder_config(tmp_path))
    pixels = pixels_of(data.splits["train"])
    assert pixels.dtype == np.uint8
    for i, colour in enumerate([RED, GREEN, BLUE, WHITE, (10, 20, 30), RED, GREEN, WHITE]):
        assert is_colour(pixels[i], colour, within=0 if i in (2, 4, 5, 6) else 6), i


def test_named_splits(tmp_path):
    for split, count in (("train", 10), ("val", 2), ("test", 3)):
        for name in "ab":
            for i in range(count):
                save(tmp_path / split / name / f"{i}.png")
    listed = folder.load(folder_config(tmp_path))
    assert listed.classes == ["a", "b"]
    assert listed.splits["val"].names[0] == os.path.join("val", "a", "0.png")
    splits = load_data_set(folder_config(tmp_path)).splits
    assert {k: len(s) for k, s in splits.items()} == {"train": 20, "val": 4, "test": 6}


def test_a_cut_split_reads_its_own_pixels(tmp_path):
    for label, name in enumerate("ab"):
        for i in range(10):
            save(tmp_path / name / f"{i}.png", (label * 100, i * 10, 7))
    splits = load_data_set(folder_config(tmp_path, val_fraction=0.2, test_fraction=0.3)).splits
    assert {k: len(s) for k, s in splits.items()} == {"train": 8, "val": 5, "test": 7}
    for split in splits.values():
        for pixels, label, name in zip(pixels_of(split), split.labels, split.names, strict=True):
            assert "ab"[label] == Path(name).parent.name
            assert is_colour(pixels, (label * 100, int(Path(name).stem) * 10, 7))


def test_load_flat_wants_the_same_classes(tmp_path):
    two_classes(tmp_path)
    assert folder.load_flat(tmp_path, ["a", "b"]).labels.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"missing \['c'\], not expected \['b'\]"):
        folder.load_flat(tmp_path, ["a", "c"])
    with pytest.raises(DataError, match="nowhere is no folder"):
        folder.load_flat(tmp_path / "nowhere", ["a"])


# Unusable folders


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match="nowhere is no folder"):
        folder.load(folder_config(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"1\.png is no folder"):
        folder.load(folder_config(save(tmp_path / "1.png")))


def test_an_empty_class(tmp_path):
    two_classes(tmp_path)
    write(tmp_path / "empty" / "notes.txt", b"no image")
    with pytest.raises(DataError) as error:
        folder.load(folder_config(tmp_path))
    assert f"class folder {tmp_path / 'empty'} holds no image" in str(error.value)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_classes(tmp_path, count):
    for i in range(count):
        save(tmp_path / f"class{i}" / "1.png")
    with pytest.raises(DataError, match=f"{tmp_path} has {count} class folders"):
        folder.load(folder_config(tmp_path))


@pytest.mark.parametrize("split", ["val", "test"])
def test_splits_that_disagree(tmp_path, split):
    two_classes(tmp_path / "train")
    save(tmp_path / split / "a" / "1.png")
    save(tmp_path / split / "c" / "1.png")
    with pytest.raises(DataError) as error:
        folder.load(folder_config(tmp_path))
    assert str(tmp_path / split) in str(error.value)
    assert "missing ['b'], not expected ['c']" in str(error.value)
