"""Augmentation: equal to slow per-image references, drawn per image, the same for any world."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from pictures import augmentation, reader

from vit.data.augment.batch import (
    ERASE_AREA,
    ERASE_ASPECT,
    Draws,
    crop_flip,
    draw,
    draw_crops,
    erase_boxes,
    mix,
    padding,
)
from vit.data.types import CROP_TRIES

EVERYTHING = augmentation(
    crop="padded", flip=0.5, erasing=0.5, mixup=0.8, cutmix=1.0, mix_probability=0.8
)
NOTHING = augmentation(flip=0.0, mix_probability=0.0)
SIZE = (16, 16)
WIDE, TALL = (12, 20), (24, 8)
ALL_SIZES = pytest.mark.parametrize("size", [SIZE, WIDE, TALL], ids=["square", "wide", "tall"])
FIELDS = [field.name for field in fields(Draws)]


def pixels(batch=32, size=SIZE):
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (batch, 3, *size), dtype=np.uint8))


def normalised(batch=32, size=SIZE):
    return reader(size).normalise(pixels(batch, size))


def one_hot(batch=32, classes=7):
    return torch.nn.functional.one_hot(torch.arange(batch) % classes, classes).float()


def draws(config=EVERYTHING, batch=32, size=SIZE, seed=3, step=5):
    return draw(config, batch, size, seed, step)


def assert_same(a, b, names=FIELDS):
    for name in names:
        assert torch.equal(getattr(a, name), getattr(b, name)), name


# Each operation against a loop over images


@ALL_SIZES
def test_crop_flip_is_padding_slicing_and_mirroring(size):
    images, d, pad = pixels(size=size), draws(size=size), padding(EVERYTHING, size)
    assert pad == tuple(round(side / 8) for side in size)
    height, width = size
    result = crop_flip(images, d, pad)
    assert result.dtype == torch.uint8
    for i, image in enumerate(images.numpy()):
        padded = np.pad(image, ((0, 0), (pad[0], pad[0]), (pad[1], pad[1])))
        top, left = d.shift[i].tolist()
        expected = padded[:, top : top + height, left : left + width]
        if d.flip[i]:
            expected = np.flip(expected, axis=2)
        np.testing.assert_array_equal(result[i], expected)


@ALL_SIZES
def test_erase_boxes_fills_the_box_with_the_mean_colour(size):
    images, d = normalised(size=size), draws(size=size)
    before, result = images.clone(), erase_boxes(images, d)
    assert torch.equal(images, before)
    for i, (top, left, bottom, right) in enumerate(d.erase.tolist()):
        expected = images[i].clone()
        expected[:, top:bottom, left:right] = 0
        assert torch.equal(result[i], expected)
    erased = (d.erase[:, 2] > d.erase[:, 0]).float().mean().item()
    assert 0.2 < erased < 0.8


@ALL_SIZES
def test_mixup_and_cutmix_per_image(size):
    images, targets, d = normalised(size=size), one_hot(), draws(size=size)
    result, mixed = mix(images, targets, d)
    kinds = set()
    for i, (top, left, bottom, right) in enumerate(d.cut.tolist()):
        partner, keep = i ^ 1, d.keep[i].item()
        expected = keep * images[i] + (1 - keep) * images[partner]
        expected[:, top:bottom, left:right] = images[partner][:, top:bottom, left:right]
        own = keep - (bottom - top) * (right - left) / (size[0] * size[1])
        torch.testing.assert_close(result[i], expected, rtol=1e-5, atol=1e-5)
        expected_target = own * targets[i] + (1 - own) * targets[partner]
        torch.testing.assert_close(mixed[i], expected_target, rtol=1e-5, atol=1e-6)
        kinds.add((keep < 1, bottom > top))
    assert kinds == {(False, False), (True, False), (False, True)}  # never both at once


def test_unmixed_images_keep_their_bits():
    images, targets, d = normalised(), one_hot(), draws()
    result, mixed = mix(images, targets, d)
    alone = (d.keep == 1) & (d.cut[:, 2] == d.cut[:, 0])
    assert 0 < alone.sum() < len(alone)
    assert torch.equal(result[alone], images[alone])
    assert torch.equal(mixed[alone], targets[alone])


@ALL_SIZES
def test_cutmix_weighs_classes_by_pixels(size):
    config = replace(EVERYTHING, mixup=0.0, mix_probability=1.0)
    d = draws(config, batch=64, size=size)
    number = torch.arange(64.0)[:, None, None, None].expand(64, 3, *size)
    result, targets = mix(number, torch.eye(64), d)
    for i in range(64):
        share = (result[i] == i).float().mean().item()
        assert targets[i, i].item() == pytest.approx(share, abs=1e-6)
        assert targets[i, i ^ 1].item() == pytest.approx(1 - share, abs=1e-6)
        assert set(result[i].unique().tolist()) <= {i, i ^ 1}


@pytest.mark.parametrize("off", ["none", "mixup", "cutmix"])
def test_targets_are_probabilities(off):
    config = replace(EVERYTHING, mix_probability=1.0)
    config = config if off == "none" else replace(config, **{off: 0.0})
    _, targets = mix(normalised(), one_hot(), draws(config))
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(32))
    assert targets.min() >= 0
    assert ((targets > 0).sum(dim=1) <= 2).all()
    assert ((targets > 0).sum(dim=1) == 2).any()


def test_partner_is_the_neighbour():
    d = draws(NOTHING, batch=8)
    swap = replace(d, keep=torch.zeros(8))
    result, targets = mix(normalised(8), torch.eye(8), swap)
    assert torch.equal(result, normalised(8)[[1, 0, 3, 2, 5, 4, 7, 6]])
    assert targets.argmax(dim=1).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]


@ALL_SIZES
def test_no_augmentation_is_the_identity(size):
    images, targets, d = pixels(size=size), one_hot(), draws(NOTHING, size=size)
    assert padding(NOTHING, size) == (0, 0)
    assert draw_crops(NOTHING, 32, 3, 5) is None
    plain = normalised(size=size)
    assert torch.equal(crop_flip(images, d, (0, 0)), images)
    result, mixed = mix(erase_boxes(plain, d), targets, d)
    assert torch.equal(result, plain)
    assert torch.equal(mixed, targets)


# The draws


def test_draws_are_a_function_of_seed_and_step():
    assert_same(draws(), draws())
    for other in (draws(step=6), draws(seed=4)):
        for name in FIELDS:
            assert not torch.equal(getattr(draws(), name), getattr(other, name)), name


def test_draws_differ_between_the_images_of_a_batch():
    d = draws()
    for name in FIELDS:
        assert len(getattr(d, name).unique(dim=0)) > 1, name
    assert len(d.shift.unique(dim=0)) > 8
    assert len(d.keep.unique()) > 8


@pytest.mark.parametrize(
    ("change", "own"),
    [
        ({"crop": "none"}, {"shift"}),
        ({"crop": "resized"}, {"shift"}),
        ({"crop_padding": 0.0}, {"shift"}),
        ({"crop_padding": 0.25}, {"shift"}),
        ({"flip": 0.0}, {"flip"}),
        ({"erasing": 0.0}, {"erase"}),
        ({"mixup": 0.0}, {"keep", "cut"}),
        ({"cutmix": 0.0}, {"keep", "cut"}),
        ({"mix_probability": 0.0}, {"keep", "cut"}),
    ],
)
def test_switching_one_ingredient_leaves_the_others(change, own):
    a, b = draws(), draws(replace(EVERYTHING, **change))
    assert_same(a, b, [name for name in FIELDS if name not in own])
    assert any(not torch.equal(getattr(a, name), getattr(b, name)) for name in own)


def test_random_crops_are_drawn_from_a_stream_of_their_own():
    resized = replace(EVERYTHING, crop="resized")
    crop_uniforms = draw_crops(resized, 32, 3, 5)
    assert crop_uniforms.shape == (32, CROP_TRIES, 4)
    assert ((crop_uniforms >= 0) & (crop_uniforms < 1)).all()
    assert len(np.unique(crop_uniforms)) == crop_uniforms.size
    np.testing.assert_array_equal(
        draw_crops(replace(NOTHING, crop="resized"), 32, 3, 5), crop_uniforms
    )
    for other in (draw_crops(resized, 32, 3, 6), draw_crops(resized, 32, 4, 5)):
        assert not (other == crop_uniforms).any()


def test_cutmix_boxes_do_not_depend_on_mixup():
    both, alone = draws(), draws(replace(EVERYTHING, mixup=0.0))
    cut = both.cut.any(dim=1)
    assert 0 < cut.sum() < alone.cut.any(dim=1).sum()
    assert torch.equal(both.cut[cut], alone.cut[cut])


def test_mixup_shares_do_not_depend_on_cutmix():
    both, alone = draws(), draws(replace(EVERYTHING, cutmix=0.0))
    mixed = both.keep < 1
    assert 0 < mixed.sum() < (alone.keep < 1).sum()
    assert torch.equal(both.keep[mixed], alone.keep[mixed])


def test_one_mixing_off_leaves_only_the_other():
    assert bool((draws(replace(EVERYTHING, mixup=0.0)).keep == 1).all())
    assert not draws(replace(EVERYTHING, cutmix=0.0)).cut.any()
    neither = draws(replace(EVERYTHING, mixup=0.0, cutmix=0.0))
    assert bool((neither.keep == 1).all())
    assert not neither.cut.any()


@pytest.mark.parametrize("world", [2, 4])
def test_slices_are_what_one_process_sees(world):
    images, targets, d = normalised(), one_hot(), draws()
    share = 32 // world
    slices = [slice(r * share, (r + 1) * share) for r in range(world)]
    parts = [
        Draws(**{name: torch.from_numpy(drawn) for name, drawn in d.arrays(s).items()})
        for s in slices
    ]
    assert_same(d, Draws(*(torch.cat([getattr(p, n) for p in parts]) for n in FIELDS)))
    whole = mix(images, targets, d)
    shares = [mix(images[s], targets[s], p) for s, p in zip(slices, parts, strict=True)]
    for together, apart in zip(whole, zip(*shares, strict=True), strict=True):
        assert torch.equal(together, torch.cat(apart))


# Their distributions


def test_distribution_of_flips_and_shifts():
    d = draws(batch=8000)
    assert d.flip.float().mean().item() == pytest.approx(0.5, abs=0.025)
    assert not draws(replace(EVERYTHING, flip=0.0)).flip.any()
    assert draws(replace(EVERYTHING, flip=1.0)).flip.all()
    choices = 2 * padding(EVERYTHING, SIZE)[0] + 1
    assert choices == 5
    pairs = d.shift[:, 0] * choices + d.shift[:, 1]
    counts = torch.bincount(pairs, minlength=choices**2)
    assert len(counts) == choices**2
    expected = 8000 / choices**2
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square < 60  # 24 degrees of freedom: one in 15,000 by chance
    follow = torch.corrcoef(torch.stack([pairs, d.flip.long()]).float())[0, 1]
    assert follow.abs() < 0.05


@pytest.mark.parametrize("size", [WIDE, TALL], ids=["wide", "tall"])
def test_shifts_reach_every_place_of_images_that_are_not_square(size):
    shift = draws(batch=8000, size=size).shift
    for axis, pad in enumerate(padding(EVERYTHING, size)):
        assert shift[:, axis].unique().tolist() == list(range(2 * pad + 1))


@pytest.mark.parametrize("size", [(256, 256), (160, 400), (400, 160)])
def test_distribution_of_erasing(size):
    height, width = size
    boxes = draws(batch=4000, size=size).erase
    erased = boxes[boxes.any(dim=1)]
    assert len(erased) / 4000 == pytest.approx(0.5, abs=0.035)
    assert boxes.min() >= 0
    assert (boxes <= torch.tensor([height, width, height, width])).all()
    sides = (erased[:, 2:] - erased[:, :2]).double()
    assert sides.min() >= 1
    area = sides.prod(dim=1) / (height * width)
    assert 0.018 < area.min() < 0.03
    whole = (sides < torch.tensor(size)).all(dim=1)  # not cut at the border
    assert area[whole].max() < 0.34
    if height == width:
        assert area.max() > 0.32
        assert area.mean().item() == pytest.approx(sum(ERASE_AREA) / 2, abs=0.01)
    low, high = ERASE_ASPECT
    fits = area < 0.1  # never cut at the border, so that the aspect is as it was drawn
    fits &= area * height / width * high < 1
    fits &= area * width / height / low < 1
    assert fits.sum() > 150
    aspect = (sides[:, 0] / sides[:, 1])[fits]
    assert low * 0.95 < aspect.min() < low * 1.2
    assert high / 1.2 < aspect.max() < high * 1.05
    middle = (np.log(low) + np.log(high)) / 2
    assert aspect.log().mean().item() == pytest.approx(middle, abs=0.12)


def test_distribution_of_mixing():
    d = draws(batch=8000)
    mixed, cut = d.keep < 1, d.cut.any(dim=1)
    assert mixed.float().mean().item() == pytest.approx(0.4, abs=0.03)
    assert cut.float().mean().item() == pytest.approx(0.4, abs=0.05)  # a few boxes are empty
    assert d.keep[mixed].min() >= 0.5
    variance = 1 / (4 * (2 * 0.8 + 1))  # of Beta(0.8, 0.8)
    spread = (d.keep[mixed] - 0.5).square().mean().item()
    assert spread == pytest.approx(variance, abs=0.01)
    side = (d.cut[:, 2:] - d.cut[:, :2])[cut]
    assert torch.equal(side[:, 0], side[:, 1])
    area = (side.prod(dim=1).double() / 16**2).mean().item()
    assert area == pytest.approx(0.5, abs=0.03)  # Beta(1, 1) is uniform
    assert d.cut.max() <= 16
    assert d.cut.min() >= 0


@pytest.mark.parametrize("size", [WIDE, TALL], ids=["wide", "tall"])
def test_cutmix_boxes_have_the_shape_of_the_image_and_lie_inside(size):
    d = draws(replace(EVERYTHING, mixup=0.0, mix_probability=1.0), batch=8000, size=size)
    assert d.cut.min() == 0
    assert d.cut.amax(dim=0)[2:].tolist() == list(size)
    sides = (d.cut[:, 2:] - d.cut[:, :2]).double()
    shares = sides / torch.tensor(size)
    assert (shares[:, 0] - shares[:, 1]).abs().max() <= 0.5 / size[0] + 0.5 / size[1] + 1e-9
    assert shares.prod(dim=1).mean().item() == pytest.approx(0.5, abs=0.02)


def test_boxes_lie_anywhere():
    d = draws(replace(EVERYTHING, mixup=0.0, mix_probability=1.0), batch=8000)
    tops, lefts = d.cut[(d.cut[:, 2] - d.cut[:, 0]) == 8, :2].unbind(1)
    for corner in (tops, lefts):
        counts = torch.bincount(corner, minlength=8 + 1)
        expected = len(corner) / (8 + 1)
        assert expected > 40
        assert ((counts - expected) ** 2 / expected).sum() < 30  # 8 degrees of freedom
    assert torch.corrcoef(torch.stack([tops, lefts]).float())[0, 1].abs() < 0.15


@ALL_SIZES
def test_boxes_reach_every_border_of_the_image(size):
    cut = draws(replace(EVERYTHING, mixup=0.0, mix_probability=1.0), batch=8000, size=size).cut
    erase = draws(replace(EVERYTHING, erasing=1.0), batch=8000, size=size).erase
    for boxes in (cut, erase):
        sides = boxes[:, 2:] - boxes[:, :2]
        for axis in (0, 1):
            corners = boxes[sides[:, axis] == size[axis] // 4, axis]
            assert corners.unique().tolist() == list(range(size[axis] - size[axis] // 4 + 1))
