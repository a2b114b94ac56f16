"""Corruptions: by hand, against scipy and scikit-image's definitions, and as part of vit-eval."""

from __future__ import annotations

import colorsys
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from pictures import array_samples, noise, reader
from PIL import Image
from scipy.ndimage import gaussian_filter

from vit.data.augment.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from vit.data.loader import EvalLoader


def photos(side: int, channels: int = 3, count: int = 4) -> torch.Tensor:
    """Images with edges and flat parts, uint8 (count, channels, side, side + 4)."""
    mode = "RGB" if channels == 3 else "L"
    made = [np.asarray(noise(side + 4, side, mode, seed=i)) for i in range(count)]
    return torch.from_numpy(np.stack(made)).reshape(count, side, side + 4, channels).permute(
        0, 3, 1, 2
    ).contiguous()  # fmt: skip


def psnr(images: torch.Tensor, others: torch.Tensor) -> float:
    error = (images.double() - others.double()).square().mean().item()
    return 10 * float(np.log10(255**2 / error))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 32, 80])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_more_severe_is_worse(name, side, channels):
    images = photos(side, channels)
    before = images.clone()
    made = [corrupt(images, np.arange(4), name, severity) for severity in SEVERITIES]
    assert torch.equal(images, before)
    for worse in made:
        assert (worse.shape, worse.dtype) == (images.shape, torch.uint8)
    quality = [psnr(images, worse) for worse in made]
    assert quality[0] > quality[1] > quality[2]
    assert 3 < quality[2] < quality[0] < 60


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_batch_changes_nothing(name):
    images, numbers = photos(32, count=7), np.array([3, 9, 11, 0, 500, 4, 5])
    whole = corrupt(images, numbers, name, 3)
    assert torch.equal(corrupt(images, numbers, name, 3), whole)
    order = np.array([6, 0, 3])
    assert torch.equal(corrupt(images[order], numbers[order], name, 3), whole[order])
    for i in range(7):
        assert torch.equal(corrupt(images[i : i + 1], numbers[i : i + 1], name, 3)[0], whole[i])


def test_sizes_below_64_have_their_own_constants():
    for name, kind in CORRUPTIONS.items():
        below, above = torch.full((1, 3, 63, 90), 90), torch.full((1, 3, 64, 90), 90)
        for images, strengths in ((below, kind.small), (above, kind.large)):
            images = images.to(torch.uint8)
            images[..., ::7] = 160
            expected = kind.apply(images, np.array([2]), strengths[1])
            assert torch.equal(corrupt(images, np.array([2]), name, 3), expected)
        assert kind.small != kind.large


def test_noise_is_normal_and_another_for_every_image():
    images = torch.full((40, 3, 32, 32), 128, dtype=torch.uint8)
    for severity, strength in zip(SEVERITIES, (0.04, 0.08, 0.10), strict=True):
        added = corrupt(images, np.arange(40), "gaussian_noise", severity).double() - 128
        assert added.mean().item() == pytest.approx(0, abs=0.3)
        assert added.std().item() == pytest.approx(255 * strength, rel=0.01)
        assert torch.unique(added.flatten(1), dim=0).shape[0] == 40
        correlation = np.corrcoef(added[0].flatten(), added[1].flatten())[0, 1]
        assert abs(correlation) < 0.1


@pytest.mark.parametrize("side", [8, 32, 80])
def test_blur_is_scipys(side):
    images = photos(side)
    strengths = (0.4, 0.7, 1.0) if side < 64 else (1, 3, 6)
    for severity, strength in zip(SEVERITIES, strengths, strict=True):
        wide = images.numpy().astype(float)
        expected = gaussian_filter(wide, (0, 0, strength, strength), mode="nearest", truncate=4)
        made = corrupt(images, np.arange(4), "gaussian_blur", severity).numpy()
        assert np.abs(made - expected).max() < 0.51


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows(channels):
    images = photos(32, channels, count=1)
    picture = images[0].permute(1, 2, 0).numpy()
    for severity, quality in zip(SEVERITIES, (80, 58, 40), strict=True):
        file = io.BytesIO()
        Image.fromarray(picture.squeeze()).save(file, "JPEG", quality=quality)
        expected = np.asarray(Image.open(file))
        made = corrupt(images, np.arange(1), "jpeg_compression", severity)[0]
        assert (made.permute(1, 2, 0).numpy().squeeze() == expected).all()


def test_contrast_by_hand():
    row = torch.tensor([[0, 100, 200, 100]], dtype=torch.uint8)
    images = torch.stack([row, row // 2, torch.full_like(row, 7)])[None]  # means 100, 50 and 7
    made = corrupt(images, np.arange(1), "contrast", 3)[0, :, 0].tolist()
    assert made == [[60, 100, 140, 100], [30, 50, 70, 50], [7, 7, 7, 7]]


def test_brightness_by_hand():
    colours = torch.tensor([[0, 0, 0], [200, 100, 50], [250, 125, 0], [255, 255, 255]])
    images = colours.to(torch.uint8).T[None, :, None, :]
    made = corrupt(images, np.arange(1), "brightness", 3)[0, :, 0].T  # 0.15 of 255 is 38.25
    assert made.tolist() == [[38, 38, 38], [238, 119, 60], [255, 128, 0], [255, 255, 255]]
    for before, after in zip(colours.tolist(), made.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(x / 255 for x in before))
        there = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.15, 1))
        assert after == [pytest.approx(255 * x, abs=0.51) for x in there]
    gray = torch.tensor([[0, 100, 250]], dtype=torch.uint8)[None, None]
    assert corrupt(gray, np.arange(1), "brightness", 1).flatten().tolist() == [13, 113, 255]


def test_a_loader_changes_pixels_and_knows_which():
    samples = array_samples(7, (8, 8))
    seen = []

    def invert(pixels: torch.Tensor, index: np.ndarray) -> torch.Tensor:
        seen.append(index.tolist())
        return 255 - pixels

    plain = EvalLoader(samples, 3, reader((8, 8)))
    changed = plain.with_transform(invert)
    for k in range(len(plain)):
        images, labels, index, _ = plain.batch(k)
        others, same_labels, same_index, _ = changed.batch(k)
        undone = 1 - plain.normalise.undo(images)
        torch.testing.assert_close(plain.normalise.undo(others), undone, rtol=0, atol=1e-6)
        assert torch.equal(labels, same_labels)
        assert (index == same_index).all()
    assert seen == [[0, 1, 2], [3, 4, 5], [6]]
    changed.take(np.array([5, 2]))
    assert seen[-1] == [5, 2]


# The command


def test_an_evaluation_tells_what_corruptions_cost(finished: Path, tmp_path: Path) -> None:
    results = []
    for folder, args in (("plain", []), ("one", ["corruptions=true"])):
        args = [f"checkpoint={finished}", f"output={folder}", *args]
        done = run("eval", *args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        results.append(json.loads((tmp_path / folder / "metrics.json").read_text()))
    plain, found = results
    assert "corruptions" not in plain
    table = found.pop("corruptions")
    assert list(table) == list(CORRUPTIONS)
    assert all(len(row) == 3 for row in table.values())
    values = np.array(list(table.values()))
    assert found.pop("corruption_mean") == pytest.approx(values.mean())
    assert found.pop("corruption_drop") == pytest.approx(plain["top1"] - values.mean())
    assert found == plain
    assert values.min() < plain["top1"] - 1
    page = (tmp_path / "one" / "report" / "index.html").read_text()
    section = page.split("<h2>Corruptions</h2>")[1].split("<h2>")[0]
    shown = [float(x) for x in re.findall(r">(\d+\.\d\d)</td>", section)]
    assert shown[0] == pytest.approx(plain["top1"], abs=0.005)
    for row in table.values():
        assert all(any(abs(x - y) < 0.0051 for y in shown) for x in row)
    assert "Corruptions" not in (tmp_path / "plain" / "report" / "index.html").read_text()
