"""Views of an image: torchvision's crops and pixels, on the host and batched alike."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pictures import noise
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import CenterCrop, Resize
from torchvision.transforms.v2.functional import resized_crop

from vit.data.reading.transform import (
    CROP_ASPECT,
    MAX_PIXELS,
    Transform,
    crop_boxes,
    resize,
    resize_boxes,
)
from vit.data.types import CROP_TRIES

BILINEAR = Image.Resampling.BILINEAR
SCALE = (0.08, 1.0)


def crop_uniforms(batch, seed=0):
    """What `batch` random crops are drawn with."""
    return np.random.default_rng(seed).random((batch, CROP_TRIES, 4))


def pixels(image):
    """A Pillow image as (channels, height, width)."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


# Random crops

SIDES = st.integers(1, 600)
SCALES = st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)).map(sorted)


@settings(max_examples=300, deadline=None)
@given(height=SIDES, width=SIDES, scale=SCALES, seed=st.integers(0, 99))
@example(1, 1, [0.08, 1.0], 0)
@example(1, 500, [0.08, 1.0], 0)
@example(500, 1, [0.08, 1.0], 0)
@example(2, 2, [0.001, 0.001], 0)
@example(640, 480, [1.0, 1.0], 0)
def test_crops_lie_inside_the_image(height, width, scale, seed):
    top, left, rows, columns = crop_boxes(crop_uniforms(64, seed), height, width, scale).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (rows >= 1).all()
    assert (columns >= 1).all()
    assert (top + rows <= height).all()
    assert (left + columns <= width).all()


@pytest.mark.parametrize("lot", [0.0, np.nextafter(1.0, 0.0)])
@pytest.mark.parametrize(("height", "width"), [(7, 7), (333, 500), (1, 1), (224, 224)])
def test_the_least_and_the_largest_numbers_lie_inside_too(height, width, lot):
    for fixed in ([lot] * 4, [1e-9, 0.5, lot, lot], [0.5, 0.5, lot, lot]):
        box = crop_boxes(np.tile(fixed, (1, CROP_TRIES, 1)), height, width, (0.001, 1.0))
        top, left, rows, columns = box[0]
        assert 0 <= top <= top + rows <= height
        assert 0 <= left <= left + columns <= width
        assert rows >= 1
        assert columns >= 1


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(375, 500, SCALE), (500, 375, (0.5, 1.0)), (224, 224, (0.08, 0.3)), (200, 900, SCALE)],
)
def test_crops_are_distributed_as_torchvisions(height, width, scale):
    count = 20_000
    image = torch.empty(1, height, width)
    torch.manual_seed(0)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, list(scale), list(CROP_ASPECT)) for _ in range(count)]
    )
    ours = crop_boxes(crop_uniforms(count), height, width, scale)
    at = np.linspace(0.02, 0.98, 25)
    for what in (
        lambda b: b[:, 2] * b[:, 3] / (height * width),
        lambda b: np.log(b[:, 3] / b[:, 2]),
        lambda b: b[:, 0] / np.maximum(height - b[:, 2], 1),
        lambda b: b[:, 1] / np.maximum(width - b[:, 3], 1),
    ):
        a, b = np.quantile(what(ours), at), np.quantile(what(theirs), at)
        # The standard error of a quantile is at most 0.0036 of the range here; ours and theirs.
        np.testing.assert_allclose(a, b, rtol=0, atol=0.025 * max(np.ptp(what(theirs)), 1e-9))


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (1, 500, (0, 249, 1, 1)),
        (500, 1, (249, 0, 1, 1)),
        (100, 1000, (0, 433, 100, 133)),
        (1000, 100, (433, 0, 133, 100)),
        (90, 100, (0, 0, 90, 100)),
    ],
)
def test_where_no_crop_fits_it_is_the_centre(height, width, box):
    """As torchvision: the largest central box of a legal aspect ratio."""
    never = np.zeros((3, CROP_TRIES, 4))
    never[..., 0] = 1 - 1e-9  # the whole area, 3:4 or 4:3
    never[..., 1] = 1 - 1e-9 if width < 1.3 * height else 0
    assert (crop_boxes(never, height, width, (1.0, 1.0)) == box).all()
    torch.manual_seed(0)
    if width > 2 * height or height > 2 * width:  # torchvision cannot draw one that fits either
        theirs = RandomResizedCrop.get_params(
            torch.empty(1, height, width), [1.0, 1.0], list(CROP_ASPECT)
        )
        assert tuple(theirs) == box


def test_the_first_try_that_fits_is_taken():
    tries = crop_uniforms(1)
    tries[0, :3, 0] = 1.0  # the whole area at aspect 4:3 does not fit into a square
    tries[0, :3, 1] = 1.0
    box = crop_boxes(tries, 100, 100, SCALE)
    np.testing.assert_array_equal(box, crop_boxes(np.roll(tries, -3, axis=1), 100, 100, SCALE))


@pytest.mark.parametrize(("height", "width"), [(200, 100), (100, 200)])
def test_a_crop_as_wide_or_as_high_as_the_image_fits(height, width):
    half = np.tile([0.5, 0.5, 0.0, 0.0], (1, CROP_TRIES, 1))  # half of the area, square
    assert crop_boxes(half, height, width, (0.0, 1.0))[0].tolist() == [0, 0, 100, 100]


# Rendering

PHOTOS = [(500, 375), (375, 500), (256, 256), (224, 224), (640, 427), (100, 90), (33, 1), (1, 1)]


def tensor(image):
    """A Pillow image as uint8 (channels, height, width)."""
    return torch.from_numpy(pixels(image).copy())


def array(image):
    """A Pillow image as `render` takes it: (height, width, channels)."""
    return pixels(image).transpose(1, 2, 0).copy()


def torchvision_centre(image, transform):
    """Resize and CenterCrop; Resize gets one number, where the frame is square, or both sides."""
    height, width = (
        round(transform.height / transform.center_crop),
        round(transform.width / transform.center_crop),
    )
    side: int | tuple[int, int] = height
    if height != width:  # cover the frame
        by_width = width / image.width >= height / image.height
        side = (
            (width * image.height // image.width, width)
            if by_width
            else (height, height * image.width // image.height)
        )
    resized = Resize(side)(tensor(image))
    return CenterCrop((transform.height, transform.width))(resized).numpy()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", PHOTOS, ids=lambda size: "x".join(map(str, size)))
def test_the_centre_is_torchvisions_to_the_bit(size, channels):
    image = noise(*size, "RGB" if channels == 3 else "L")
    for transform in (
        Transform(224, 224, channels, 0.875),
        Transform(32, 32, channels),
        Transform(33, 33, channels, 0.9),
        Transform(96, 160, channels, 0.8),
        Transform(48, 20, channels),
    ):
        ours = transform.render(array(image))
        assert ours.shape == transform.shape
        assert ours.dtype == np.uint8
        np.testing.assert_array_equal(ours, torchvision_centre(image, transform))


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), side=st.integers(4, 64))
def test_any_size_is_torchvisions_to_the_bit(width, height, side):
    image, transform = noise(width, height), Transform(side, side, 3, 0.875)
    np.testing.assert_array_equal(
        transform.render(array(image)), torchvision_centre(image, transform)
    )


def test_resize_256_crop_224_is_pillows_within_one_level():
    image = noise(500, 375)
    expected = image.resize((341, 256), BILINEAR).crop((58, 16, 58 + 224, 16 + 224))
    ours = Transform(224, 224, 3, 0.875).render(array(image))
    assert abs(ours.astype(int) - pixels(expected)).max() <= 1


@pytest.mark.parametrize("size", [(24, 24), (16, 40), (40, 16)])
def test_images_of_the_models_size_are_left_alone(size):
    height, width = size
    image = noise(width, height)
    np.testing.assert_array_equal(Transform(height, width, 3).render(array(image)), pixels(image))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_random_view_is_torchvisions_crop_and_resize(mode):
    transform = Transform(32, 48, 3 if mode == "RGB" else 1, 0.875, SCALE)
    drawn = crop_uniforms(20)
    for number, size in enumerate([(500, 375), (60, 200), (48, 32), (5, 3), (1, 1)] * 4):
        image = noise(*size, mode)
        box = transform.box(size[1], size[0], drawn[number])
        assert box == tuple(crop_boxes(drawn[number][None], size[1], size[0], SCALE)[0])
        top, left, height, width = box
        ours = transform.render(array(image), box)
        expected = resized_crop(tensor(image), *box, [32, 48], antialias=True)
        np.testing.assert_array_equal(ours, expected)
        part = image.crop((left, top, left + width, top + height))
        pillows = pixels(part.resize((48, 32), BILINEAR))
        assert abs(ours.astype(int) - pillows).max() <= 1


def test_a_random_crop_of_all_is_not_the_centre():
    image, transform = array(noise(100, 50)), Transform(32, 32, 3, crop_scale=SCALE)
    assert transform.box(50, 100, None) is None
    assert not np.array_equal(transform.render(image, (0, 0, 50, 100)), transform.render(image))


def test_a_random_view_without_lots_is_the_centre():
    image = array(noise(100, 80))
    random, centre = Transform(32, 32, 3, crop_scale=SCALE), Transform(32, 32, 3)
    np.testing.assert_array_equal(random.render(image), centre.render(image))


def test_images_that_are_too_elongated_are_refused():
    image = array(noise(30_000, 1, "L"))
    with pytest.raises(ValueError, match="30000x1 px is too elongated"):
        Transform(224, 224, 1).render(image)
    assert MAX_PIXELS < 224 * 224 * 30_000
    transform = Transform(224, 224, 1, 1.0, SCALE)
    assert transform.render(image, transform.box(1, 30_000, crop_uniforms(1)[0])).shape == (
        1,
        224,
        224,
    )


# The batched resize


def boxes_within(height, width, count, seed=0):
    """Boxes of any size and place, the whole image and single pixels among them."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, [height, width], (count, 2), endpoint=True)
    corner = rng.integers(0, np.array([height, width]) - shape, endpoint=True)
    boxes = np.concatenate([corner, shape], axis=1)
    boxes[0] = (0, 0, height, width)
    boxes[1] = (height - 1, width - 1, 1, 1)
    return boxes


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    ("height", "width"), [(8, 8), (32, 32), (33, 17), (20, 64), (4, 4), (97, 101), (224, 224)]
)
def test_batched_boxes_are_those_of_one_image_to_the_bit(height, width, mode):
    count = 8 if height > 200 else 40
    images = [noise(width, height, mode, seed) for seed in range(count)]
    extreme = np.where(np.asarray(images[2]) > 127, 255, 0).astype(np.uint8)
    images[2] = Image.fromarray(extreme)
    boxes = boxes_within(height, width, count)
    batch = torch.from_numpy(np.stack([pixels(image) for image in images]))
    ours = resize_boxes(batch, torch.from_numpy(boxes))
    assert ours.dtype == torch.uint8
    for image, (top, left, rows, columns), row in zip(images, boxes, ours, strict=True):
        part = array(image)[top : top + rows, left : left + columns]
        np.testing.assert_array_equal(row, resize(part, height, width).transpose(2, 0, 1))


@pytest.mark.parametrize(("side", "most"), [(32, 0.0), (64, 0.0), (224, 0.005)])
def test_batched_boxes_without_float64_are_at_most_one_level_off(side, most, monkeypatch):
    batch = torch.from_numpy(np.stack([pixels(noise(side, side, seed=k)) for k in range(8)]))
    boxes = torch.from_numpy(boxes_within(side, side, 8))
    exact = resize_boxes(batch, boxes)
    monkeypatch.setattr("vit.data.reading.transform.widest_float", lambda _: torch.float32)
    off = (resize_boxes(batch, boxes).int() - exact.int()).abs()
    assert off.max() <= 1
    assert off.float().mean() <= most


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 60), width=st.integers(1, 60), seed=st.integers(0, 10**6))
def test_batched_boxes_of_any_size_are_those_of_one_image_to_the_bit(height, width, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 1), dtype=np.uint8)
    boxes = boxes_within(height, width, 6, seed)
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].expand(6, 1, height, width)
    ours = resize_boxes(batch, torch.from_numpy(boxes))
    for (top, left, rows, columns), row in zip(boxes, ours, strict=True):
        part = image[top : top + rows, left : left + columns]
        np.testing.assert_array_equal(row, resize(part, height, width).transpose(2, 0, 1))
