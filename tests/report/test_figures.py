"""The figures and thumbnails of the report."""

from __future__ import annotations

import io
from base64 import b64decode

import numpy as np
import pytest
from PIL import Image

from vit.report import metrics
from vit.report.chart import chart, nice_ticks, thinned
from vit.report.figures import alike_together, reliability
from vit.report.gallery import data_uri, side_within, within


def test_thumbnails_are_small_and_small_images_exact() -> None:
    rng = np.random.default_rng(0)
    for side, kind in ((8, "PNG"), (32, "PNG"), (33, "JPEG"), (500, "JPEG")):
        image = rng.integers(0, 256, (side, 2 * side if side == 500 else side, 3), np.uint8)
        shown = Image.open(io.BytesIO(b64decode(data_uri(image).partition("base64,")[2])))
        assert (shown.format, max(shown.size)) == (kind, min(side, 96))
        if kind == "PNG":
            assert (np.asarray(shown) == image).all()
    images = [(i, np.zeros((8, 8, 3), np.uint8)) for i in range(9)]
    one = len(data_uri(images[0][1]))
    assert list(within(iter(images), 4 * one + 1)) == [0, 1, 2, 3]


def test_few_pictures_are_large_and_many_are_small() -> None:
    sides = [side_within(12_000_000, count) for count in (1, 100, 400, 1000, 100_000)]
    assert sides == sorted(sides, reverse=True)
    assert (sides[0], sides[-1]) == (384, 96)
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(noise).resize((384, 384)))  # as detailed as a photo
    assert 1000 * len(data_uri(smooth, side_within(12_000_000, 1000))) < 12_000_000


def test_confused_classes_stand_together() -> None:
    counts = 90 * np.eye(6, dtype=int) + 1
    for a, b in ((0, 4), (1, 5), (2, 3)):
        counts[a, b] = counts[b, a] = 40
    order = alike_together(counts)
    assert sorted(order) == list(range(6))
    for a, b in ((0, 4), (1, 5), (2, 3)):
        assert abs(order.index(a) - order.index(b)) == 1
    assert alike_together(np.zeros((2, 2), int)) == [0, 1]
    assert sorted(alike_together(np.zeros((5, 5), int))) == list(range(5))


def test_ticks_are_round_and_hold_the_range() -> None:
    for low, high in ((0.0, 1.0), (0.137, 2.3), (93.0, 97.5), (5.0, 5.0), (0.0, 0.0), (-3.0, 1e6)):
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low
        assert ticks[-1] >= high
        assert 2 <= len(ticks) <= 8
        np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_lines_stay_inside_and_keep_their_mean() -> None:
    points = [(float(i), float(np.sin(i / 50))) for i in range(1, 2001)]
    thin = thinned(points)
    assert len(thin) <= 300
    drawn = chart({"a": points, "b": [(1.0, 0.0)]}, mark=1000.0)
    assert drawn is not None
    assert list(drawn["lines"]) == ["a"]
    xy = np.array([[float(v) for v in p.split(",")] for p in drawn["lines"]["a"].split()])
    assert drawn["left"] <= xy[:, 0].min()
    assert xy[:, 0].max() <= drawn["right"]
    assert drawn["top"] <= xy[:, 1].min()
    assert xy[:, 1].max() <= drawn["bottom"]
    assert chart({"b": [(1.0, 0.0)]}) is None


def test_bars_reach_from_accuracy_to_confidence() -> None:
    bins = metrics.calibration(np.array([0.5, 0.5, 0.9, 0.9]), np.array([1, 1, 1, 0], bool))
    spare, missing = reliability(bins)["bars"]
    assert [bar["too_sure"] for bar in (spare, missing)] == [False, True]
    scale = (240 - 10) / 100
    assert spare["height"] / scale == pytest.approx(50)
    assert missing["height"] / scale == pytest.approx(50)
    assert (spare["gap"] / scale, missing["gap"] / scale) == (pytest.approx(50), pytest.approx(40))
    assert spare["count"] == missing["count"] == 44
