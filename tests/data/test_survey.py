"""Surveys of data sets: what is there twice, odd or damaged, and what is said of it."""

import numpy as np
import pytest
from pictures import data_config, encoded, noise, save, write
from PIL import Image

from vit.data.sources.registry import cut_data_set, list_data_set
from vit.data.survey import Survey, _near, _standard, contradict, leak, perceptual_hashes
from vit.data.survey_page import counts, findings, how_split


def scene(seed, size=(96, 64)):
    """Smooth, as photos are."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def surveyed(root, source="folder", **changes):
    config = data_config(source, root=None if root is None else str(root), **changes)
    listed = list_data_set(config)
    return Survey.of(cut_data_set(listed, config), config), listed, config


def names(sets):
    return [[seen.name for seen in images] for images in sets]


@pytest.fixture
def photos(tmp_path):
    for i in range(40):
        save(tmp_path / "ab"[i % 2] / f"{i:02}.png", scene(i))
    return tmp_path


def test_copies_are_told_from_what_looks_alike_and_contradictions_come_first(photos):
    first = photos / "a" / "00.png"
    write(photos / "b" / "copy.png", first.read_bytes())
    write(photos / "b" / "05copy.png", (photos / "b" / "05.png").read_bytes())
    save(photos / "a" / "small.jpg", scene(2).resize((60, 40)), quality=60)
    save(photos / "a" / "dark.png", scene(4).point(lambda value: value // 2))
    survey, _, _ = surveyed(photos, val_fraction=0, test_fraction=0)
    assert names(survey.same) == [["a/00.png", "b/copy.png"], ["b/05.png", "b/05copy.png"]]
    assert [*map(contradict, survey.same)] == [True, False]
    assert names(survey.alike) == [["a/02.png", "a/small.jpg"], ["a/04.png", "a/dark.png"]]
    assert not any(map(leak, survey.same + survey.alike))


def test_copies_across_splits_are_told(tmp_path):
    for split, i in (("train", 0), ("train", 1), ("train", 2), ("test", 3), ("test", 1)):
        save(tmp_path / split / "ab"[i % 2] / f"{i}.png", scene(i))
        save(tmp_path / split / "ba"[i % 2] / f"{i}x.png", scene(10 * i + 50))
    survey, listed, config = surveyed(tmp_path)
    (copies,) = [images for images in survey.same if images[0].name.endswith("/1.png")]
    assert leak(copies)
    splits = how_split(listed, survey.data, config)
    assert [line.split(": ")[0] for line in splits] == [
        f"{name} {len(own)}" for name, own in survey.data.splits.items()
    ]
    assert splits[-1].endswith(": as the data has it")
    told = findings(survey, splits, [])["same"]
    assert told[0].endswith("across splits, 0 across classes")
    assert any("train/b/1.png = test test/b/1.png" in line for line in told)


def test_images_of_one_colour_and_other_scenes_do_not_look_alike(tmp_path):
    for i in range(60):
        save(tmp_path / "ab"[i % 2] / f"{i}.png", scene(i))
        save(tmp_path / "ab"[i % 2] / f"flat{i}.png", (4 * i, 4 * i, 9), (40, 40))
    survey, _, _ = surveyed(tmp_path)
    assert survey.alike == survey.same == []


def test_pairs_that_differ_in_up_to_four_bits_are_all_found():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (30, 32, 32))
    small = np.concatenate(
        [base + rng.integers(-k, k + 1, base.shape) for k in (1, 20, 40, 60, 90)]
    )
    small = small.clip(0, 255).astype(np.uint8)
    hashes = perceptual_hashes(small)
    found = {tuple(sorted(pair)) for part in _near(hashes, small) for pair in part.T.tolist()}
    standard = _standard(small).reshape(len(small), -1)
    bits = np.bitwise_count(hashes[:, None] ^ hashes[None])
    wanted = np.argwhere(np.triu((standard @ standard.T >= 0.9) & (bits <= 4), 1))
    assert len(wanted) > 20
    assert {tuple(pair) for pair in wanted.tolist()} <= found
    assert all(bits[pair] <= 8 for pair in found)


def test_sizes_formats_damage_and_odd_shapes(photos):
    save(photos / "a" / "line.png", (9, 9, 9), (300, 20))
    save(photos / "b" / "dot.bmp", scene(99).resize((8, 8)))
    save(photos / "b" / "gray.jpg", noise(90, 60, "L"))
    write(photos / "a" / "cut.jpg", encoded(noise(90, 60), "JPEG")[:-300])
    write(photos / "a" / "page.jpg", b"<html>")
    survey, listed, config = surveyed(photos)
    told = findings(survey, how_split(listed, survey.data, config), ["beware"])
    assert told["sizes"] == ["8x8 to 64x96 px, median 64x96"]
    kinds = ["BMP RGB 1", "JPEG L 1", "JPEG RGB 1", "PNG RGB 41", "unknown 1"]
    assert sorted(told["formats"][0].split(", ")) == kinds
    assert told["odd"][0].startswith("2 very elongated or small: ")
    assert {seen.name for seen in survey.odd()} == {"a/line.png", "b/dot.bmp"}
    assert "a/cut.jpg (Premature end of JPEG file)" in told["damaged"][0]
    assert told["damaged"][0].startswith("2 of 45: ")
    assert told["warning"] == ["beware"]
    damaged = {seen.name for seen in survey.images if seen.damage}
    assert damaged == {"a/cut.jpg", "a/page.jpg"}


@pytest.mark.parametrize("source", ["digits", "folder", "groups", "folds", "limit"])
def test_the_counts_and_origins_are_those_of_the_splits(source, photos):
    changes = {
        "groups": {"group": r"(\d)\.png"}, "folds": {"folds": 4, "fold": 1},
        "limit": {"limit_per_class": 3},
    }.get(source, {})  # fmt: skip
    given = ("digits", None) if source == "digits" else ("folder", photos)
    survey, listed, config = surveyed(given[1], given[0], **changes)
    rows = counts(survey)
    assert sum(row[-1] for row in rows.values()) == len(survey.images)
    for at, own in enumerate(survey.data.splits.values()):
        assert sum(row[at] for row in rows.values()) == len(own)
    told = " ".join(how_split(listed, survey.data, config))
    wanted = {
        "groups": "by a hash of its group", "folds": "data.fold=1 of data.folds=4",
        "limit": "by data.limit_per_class=3",
    }  # fmt: skip
    assert wanted.get(source, "by a hash of its name") in told
