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

from vit.data.sources import folder
from vit.data.sources.listing import counted
from vit.data.sources.registry import load_data_set
from vit.errors import DataError


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


def test_load_flat_wants_no_other_classes(tmp_path):
    two_classes(tmp_path)
    both = folder.load_flat(tmp_path, ["a", "b"], "folder")
    assert both.splits["images"].labels.tolist() == [0, 1]
    some = folder.load_flat(tmp_path, ["a", "aa", "b"], "folder")
    assert some.splits["images"].labels.tolist() == [0, 2]
    assert some.notes == [f"{tmp_path} has no image of aa: support 0"]
    with pytest.raises(DataError, match=r"missing c, not expected b"):
        folder.load_flat(tmp_path, ["a", "c"], "folder")
    with pytest.raises(DataError, match="nowhere is no folder"):
        folder.load_flat(tmp_path / "nowhere", ["a"], "folder")


# Splits


def splits_of(root, *folders):
    for name in folders:
        two_classes(root / name)
    return {split: list(s.names) for split, s in folder.load(folder_config(root)).splits.items()}


@pytest.mark.parametrize("names", [
    ("train", "valid", "test"), ("Train", "Test"), ("TRAINING", "Validation", "testing"),
    ("train", "val"),
])  # fmt: skip
def test_spellings_of_splits(tmp_path, names):
    found = splits_of(tmp_path, *names)
    for split, name in zip(found, names, strict=True):
        assert split[:2] == name[:2].lower()
        assert found[split] == [f"{name}/a/1.png", f"{name}/b/2.png"]  # as they lie
    samples = folder.load(folder_config(tmp_path)).splits["train"]
    assert pixels_of(samples).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("two", [("val", "valid"), ("Test", "testing"), ("train", "training")])
def test_two_spellings_of_one_split(tmp_path, two):
    with pytest.raises(DataError, match=f"has {two[0]} and {two[1]}, which are both called"):
        splits_of(tmp_path, *{"train", *two})


def test_images_beside_splits_that_are_no_split(tmp_path):
    write(tmp_path / "notes" / "deep" / "x.txt", b"no image")
    write(tmp_path / "__MACOSX" / "x.jpg", b"")
    assert list(splits_of(tmp_path, "train", "test")) == ["train", "test"]
    save(tmp_path / "extra" / "deep" / "1.png")
    with pytest.raises(DataError, match=r"extra beside it holds images but is no split"):
        splits_of(tmp_path)


def test_train_may_be_a_class(tmp_path):
    for name in ("bus", "car", "train"):
        save(tmp_path / name / "1.png")
    assert folder.load(folder_config(tmp_path)).classes == ["bus", "car", "train"]


@pytest.mark.parametrize("split", ["val", "test"])
def test_classes_without_images_outside_training_have_support_0(tmp_path, split):
    for name in "abcd":
        save(tmp_path / "train" / name / "1.png")
    save(tmp_path / split / "c" / "1.png")
    save(tmp_path / split / "d" / "1.png")
    write(tmp_path / split / "a" / "1.heic", b"")  # and b is missing
    data = folder.load(folder_config(tmp_path))
    assert data.splits[split].labels.tolist() == [2, 3]
    notes = ["left out: 1 .heic", f"{split} has no image of a, b: support 0"]
    assert data.notes == notes
    cut = load_data_set(folder_config(tmp_path, val_fraction=0.5))
    assert cut.notes == notes
    for name in "cd":
        (tmp_path / split / name / "1.png").unlink()
    with pytest.raises(DataError, match=f"{split} holds no image"):
        folder.load(folder_config(tmp_path))


# What is left out


def test_what_is_left_out_is_counted_in_one_line(tmp_path):
    two_classes(tmp_path / "train")
    two_classes(tmp_path / "test")
    for i in range(3):
        write(tmp_path / "train" / "a" / f"{i}.HEIC", b"")
    for name in ("README.md", "train/LICENSE", "test/b/.hidden", "test/b/sub/no. 1\n\x1b[1m of 2"):
        write(tmp_path / name, b"")
    for name in ("1.png", "train/2.png", "train/3.png"):
        save(tmp_path / name)
    (note,) = folder.load(folder_config(tmp_path)).notes
    assert note == (
        f"left out: 3 .heic, 2 images directly in {tmp_path / 'train'} (they have no class), 2 "
        f"without ending, 1 .md, 1 images directly in {tmp_path} (they have no class)"
    )


def test_many_kinds_are_shortened():
    assert counted({f".{i:02}": 20 - i for i in range(15)}).endswith(", 9 .11 and 21 more")


def test_class_names_of_any_bytes(tmp_path):
    names = sorted(["new\nline", "\x1b[31mred", os.fsdecode(b"\xff\xfe"), "薔薇", "a b=c'd\""])
    for name in names:
        save(tmp_path / name / "1.png")
    data = folder.load(folder_config(tmp_path))
    assert data.classes == names
    assert data.splits["train"].labels.tolist() == list(range(5))
    assert pixels_of(data.splits["train"]).shape == (5, 3, 16, 16)


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
    assert "missing b, not expected c" in str(error.value)


def test_many_names_are_shortened(tmp_path):
    for i in range(600):
        (tmp_path / f"class{i:03}").mkdir()
    with pytest.raises(DataError, match=r"class011 and 588 more; expected a") as error:
        folder.load_flat(tmp_path, ["a"], "folder")
    assert "class012" not in str(error.value)


MISPLACED = {
    "an empty folder": ([], "", "it is empty"),
    "a file": (["x.jpg"], "x.jpg", "is no folder but a file; give the folder it lies in"),
    "an archive": (["x.zip"], "x.zip", "unpack it before, if it is an archive"),
    "one level too high": (["deep/my/a/1.jpg", "deep/my/b/1.jpg"], "", "try data.root={}/deep/my"),
    "too high, with splits": (["my/train/a/1.jpg", "my/val/a/1.jpg"], "", "try data.root={}/my"),
    "too high, with other folders": (
        ["images/a/1.jpg", "images/b/1.jpg", "labels/1.xml"], "", "try data.root={}/images",
    ),
    "one level too low": (
        ["train/a/1.jpg", "train/b/2.jpg"], "train/a",
        "if a is itself a class, try data.root={}/train;",
    ),
    "images alone": (["1.jpg", "2.jpg"], "", "put the images into one sub-folder per class"),
    "images and a table": (["1.jpg", "labels.csv"], "", "if the labels are in labels.csv, "),
    "a folder and a table": (["in/1.jpg", "y.parquet"], "", "if the labels are in y.parq"),
    "splits and a table": (
        ["train/1.jpg", "test/2.jpg", "train.csv"], "", "if the labels are in train.csv, try data=",
    ),
    "flat splits": (["train/1.jpg", "val/2.jpg"], "", "train has 0 class folders; put the images"),
    "no train": (["val/a/2.jpg", "Test/a/2.jpg"], "", "but no train folder; add it"),
    "no image that is read": (["1.heic", "2.heic"], "", "it holds no image (left out: 2 .heic)"),
    "a class of others": (["a/1.jpg", "b/1.heic"], "", "b holds no image (left out: 1 .heic);"),
    "a flat test": (
        ["train/a/1.jpg", "train/b/1.jpg", "test/1.jpg"], "",
        "vit-predict <run> {}/test",
    ),
    "an empty test": (["train/a/1.jpg", "train/b/1.jpg", "test/1.txt"], "", "test holds no image"),
}  # fmt: skip
"""Files, the root, and what the answer says."""


@pytest.mark.parametrize("case", MISPLACED)
def test_misplaced_roots_have_a_remedy_each(tmp_path, case):
    files, root, words = MISPLACED[case]
    for name in files:
        write(tmp_path / name, b"")
    with pytest.raises(DataError) as error:
        folder.load(folder_config(tmp_path / root))
    assert words.format(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["1.jpg"], "vit-predict <run> {}"),
        ([], "holds no image (it is empty)"),
        (["1.txt"], "holds no image (left out: 1 .txt)"),
        (["a/1.txt", "b/2.txt"], "holds no image (left out: 2 .txt)"),
        (["test/a/1.jpg", "train/a/1.jpg"], "try images={}/test"),
        (["deep/a/1.jpg", "deep/b/1.jpg"], "try images={}/deep"),
    ],
)
def test_misplaced_images_to_evaluate_have_a_remedy_each(tmp_path, files, words):
    for name in files:
        write(tmp_path / name, b"")
    with pytest.raises(DataError) as error:
        folder.load_flat(tmp_path, ["a", "b"], "folder")
    assert words.format(tmp_path) in str(error.value)


def test_a_class_link_to_nothing(tmp_path):
    two_classes(tmp_path)
    (tmp_path / "rose").symlink_to("missing")
    with pytest.raises(DataError, match=f"{tmp_path}/rose is a link to missing"):
        folder.load(folder_config(tmp_path))
