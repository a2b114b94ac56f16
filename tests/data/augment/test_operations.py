"""Image operations: torchvision's, batched. Policies: its ranges, drawn per image."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch
from pictures import augmentation, noise
from torchvision.transforms import AutoAugmentPolicy, v2
from torchvision.transforms.v2 import functional

from vit.data.augment import policies
from vit.data.augment.batch import draw as draw_rest
from vit.data.augment.policies import BINS, Chain
from vit.data.augment.policies import NAMES as OPERATIONS

SINGLE = v2.RandAugment()
NAMES = [name for name in OPERATIONS if name not in ("grayscale", "blur")]
SPACE = [name for name in NAMES if name != "invert"]
THEIR_NAMES = {
    name: "AutoContrast" if name == "autocontrast" else name.title().replace("_", "")
    for name in OPERATIONS
}
SIGNED = {"shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color",
          "contrast", "sharpness"}  # fmt: skip
JITTER = ("brightness", "contrast", "color")
SIZES = [(32, 32), (24, 40), (33, 17), (224, 224)]

# Pixels that may differ, as a share, and by how much. Moving operations differ where the source
# lies on the border of two pixels, and blends by the last bit of the factor (ours is float32,
# theirs a Python float), which cutting off to whole levels makes a level. All else is exact.
TOLERANCE = {
    "shear_x": (0.001, 255), "shear_y": (0.001, 255), "rotate": (0.001, 255),
    "color": (0.03, 1), "contrast": (0.03, 1), "sharpness": (0.08, 1),
}  # fmt: skip


def sent_through(images, chain):
    """What a batch (B, C, H, W) becomes that goes through its chain."""
    plan = policies.plan(chain, images.shape[1], images.shape[2:])
    return policies.apply(
        images, plan.counts, torch.from_numpy(plan.rows), torch.from_numpy(plan.numbers)
    )


def ours(name, images, values):
    """What we make of images (n, C, H, W) of magnitudes (n,)."""
    kinds = np.full((len(images), 1), OPERATIONS.index(name))
    return sent_through(images, Chain(kinds, values.numpy()[:, None]))


def theirs(image, name, magnitude):
    """What torchvision makes of one image (C, H, W)."""
    magnitude = magnitude / 255 if name == "solarize" else magnitude
    return SINGLE._apply_image_or_video_transform(
        image, THEIR_NAMES[name], magnitude, v2.InterpolationMode.NEAREST, SINGLE._fill
    )


def picture(size, mode, seed):
    """Blocks of colour, or every second time plain noise: uint8 (C, H, W)."""
    if seed % 2:
        rng = np.random.default_rng(seed)
        shape = (3 if mode == "RGB" else 1, *size)
        return torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
    array = np.array(noise(size[1], size[0], mode, seed))
    return torch.from_numpy(array).reshape(*size, -1).permute(2, 0, 1).contiguous()


def magnitudes(name):
    """Over the largest range that any policy has, both signs where there are two."""
    high = {"shear_x": 0.99, "shear_y": 0.99, "translate_x": 40, "translate_y": 40, "rotate": 135,
            "posterize": 8, "solarize": 255}.get(name, 0.99)  # fmt: skip
    values = torch.linspace(-high if name in SIGNED else 0, high, 24)
    return values.round() if name == "posterize" else values


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", NAMES)
def test_operations_are_torchvisions(name, mode):
    share, most = TOLERANCE.get(name, (0, 0))
    for size in SIZES:
        different, total = 0, 0
        for seed in range(2 if size[0] == 224 else 6):
            image, values = picture(size, mode, seed), magnitudes(name)
            before = image.clone()
            results = ours(name, image.expand(len(values), -1, -1, -1), values)
            assert results.dtype == torch.uint8
            assert torch.equal(image, before)
            for value, result in zip(values.tolist(), results, strict=True):
                value = int(value) if name == "posterize" else value
                levels = (result.int() - theirs(image, name, value).int()).abs()
                assert levels.max() <= most, (size, value)
                different += (levels.amax(dim=0) > 0).sum().item()
                total += levels[0].numel()
        assert different <= share * total, size


@pytest.mark.parametrize("name", NAMES)
def test_small_images_are_no_exception(name):
    for size in ((2, 2), (3, 5), (1, 4)):
        values = magnitudes(name)
        images = picture(size, "RGB", 1).expand(len(values), -1, -1, -1)
        for image, value, result in zip(
            images, values.tolist(), ours(name, images, values), strict=True
        ):
            value = int(value) if name == "posterize" else value
            levels = (result.int() - theirs(image, name, value).int()).abs()
            assert levels.max() <= (1 if name in TOLERANCE else 0), size


def test_each_image_has_its_own_magnitude():
    for name in SIGNED | {"posterize", "solarize"}:
        values = magnitudes(name)
        images = torch.stack([picture((16, 20), "RGB", seed) for seed in range(len(values))])
        together = ours(name, images, values)
        for i, value in enumerate(values):
            alone = ours(name, images[i : i + 1], value[None])[0]
            assert torch.equal(together[i], alone), name


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (224, 224), (5, 9)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_gray_and_blur_are_torchvisions(mode, size):
    images = torch.stack([picture(size, mode, seed) for seed in range(6)])
    gray = ours("grayscale", images, torch.zeros(6))
    expected = functional.rgb_to_grayscale(images, 3) if mode == "RGB" else images
    assert (gray.int() - expected.int()).abs().max() <= 1
    deviations = torch.tensor([0.1, 0.5, 0.9, 1.3, 1.7, 2.0])
    blurred = ours("blur", images, deviations)
    if min(size) <= 6:
        assert torch.equal(blurred, images)  # too small to be blurred
        return
    for image, deviation, result in zip(images, deviations.tolist(), blurred, strict=True):
        expected = functional.gaussian_blur(image, [13, 13], [deviation, deviation])
        assert (result.int() - expected.int()).abs().max() <= 1


# Policies


def drawn(batch=4000, size=(64, 48), seed=0, step=0, **changes):
    return policies.draw(augmentation(**changes), batch, size, seed, step)


@pytest.mark.parametrize("bin_", range(BINS + 1))
@pytest.mark.parametrize("size", [(64, 48), (224, 224), (32, 331)])
def test_randaugment_has_torchvisions_magnitudes(bin_, size):
    chain = drawn(400, size, policy="randaugment", magnitude=bin_)
    assert chain.operations.shape == chain.magnitudes.shape == (400, 2)
    space = v2.RandAugment._AUGMENTATION_SPACE
    for kind, name in enumerate(SPACE):
        check_range(chain.magnitudes[chain.operations == kind], name, space, size, [bin_])


def test_trivialaugment_has_torchvisions_magnitudes():
    chain = drawn(40_000, policy="trivialaugment")
    assert chain.operations.shape == (40_000, 1)
    space = v2.TrivialAugmentWide._AUGMENTATION_SPACE
    for kind, name in enumerate(SPACE):
        found = chain.magnitudes[chain.operations == kind]
        check_range(found, name, space, (64, 48), range(BINS + 1))


def check_range(found, name, space, size, chosen, bins=BINS + 1):
    """The magnitudes of an operation are those of torchvision's `space` at all `chosen` bins."""
    table, signed = space[THEIR_NAMES[name]]
    values = table(bins, *size)
    assert len(found) > 20
    assert signed == (name in SIGNED)
    if values is None:
        assert (found == 0).all()
        return
    wanted = np.unique(values.double().numpy()[list(chosen)] * (255 if name == "solarize" else 1))
    got = np.unique(np.abs(found))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4 if name == "solarize" else 1e-7)
    if wanted.max() > 0:
        assert (found < 0).any() == signed
    if name.startswith("translate"):  # whole pixels; torchvision's 16 is a bit less, and so 15
        np.testing.assert_array_equal(np.trunc(got), np.trunc(wanted + 1e-4))


def test_torchvisions_operations_are_all_there():
    ours = {THEIR_NAMES[name] for name in SPACE}
    assert ours == set(v2.RandAugment._AUGMENTATION_SPACE)
    assert ours == set(v2.TrivialAugmentWide._AUGMENTATION_SPACE)


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_operations_and_signs_are_drawn_evenly(policy):
    chain = drawn(14_000, policy=policy)
    for stage in range(chain.operations.shape[1]):
        counts = np.bincount(chain.operations[:, stage], minlength=len(SPACE))
        assert ((counts - 1000) ** 2 / 1000).sum() < 42  # 13 degrees of freedom: one in 15,000
    signed = [NAMES.index(name) for name in SIGNED]
    nonzero = chain.magnitudes[np.isin(chain.operations, signed)]
    nonzero = nonzero[nonzero != 0]
    assert abs((nonzero < 0).mean() - 0.5) < 4 * 0.5 / np.sqrt(len(nonzero))
    if policy == "randaugment":  # the stages are independent
        pairs = chain.operations @ [len(SPACE), 1]
        counts = np.bincount(pairs, minlength=len(SPACE) ** 2)
        expected = 14_000 / len(SPACE) ** 2
        assert ((counts - expected) ** 2 / expected).sum() < 276  # 195 degrees of freedom
        both = chain.magnitudes[np.isin(chain.operations, signed).all(axis=1)]
        both = both[(both != 0).all(axis=1)] < 0
        assert (both[:, 0] == both[:, 1]).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("operations", [1, 3, 14])
def test_as_many_operations_as_asked(operations):
    assert drawn(8, policy="randaugment", operations=operations).operations.shape == (8, operations)


@pytest.mark.parametrize("strength", [0.1, 0.4, 1.0])
def test_colour_jitter(strength):
    chain = drawn(6000, color_jitter=strength)
    names = np.array(NAMES)[chain.operations]
    orders, counts = np.unique(names, axis=0, return_counts=True)
    assert {tuple(order) for order in orders} == set(permutations(JITTER))
    assert ((counts - 1000) ** 2 / 1000).sum() < 26  # 5 degrees of freedom: one in 10,000
    for name in JITTER:
        factors = 1 + chain.magnitudes[names == name]
        assert 1 - strength <= factors.min() < 1 - 0.98 * strength
        assert 1 + 0.98 * strength < factors.max() <= 1 + strength
        assert factors.mean() == pytest.approx(1, abs=0.04 * strength)


def test_nothing_is_drawn_and_nothing_changes_without_a_policy():
    chain = drawn(32)
    assert chain.operations.shape == chain.magnitudes.shape == (32, 0)
    images = torch.stack([picture((16, 16), "RGB", seed) for seed in range(32)])
    assert torch.equal(sent_through(images, chain), images)


FULL = {"policy": "randaugment", "operations": 3, "color_jitter": 0.4}


@pytest.mark.parametrize("channels", ["RGB", "L"])
@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_a_batch_is_its_images_one_by_one(policy, channels):
    images = torch.stack([picture((20, 28), channels, seed) for seed in range(48)])
    before = images.clone()
    chain = drawn(48, (20, 28), **{**FULL, "policy": policy})
    together = sent_through(images, chain)
    assert torch.equal(images, before)
    changed = 0
    for i, image in enumerate(images):
        for kind, value in zip(chain.operations[i], chain.magnitudes[i], strict=True):
            image = ours(OPERATIONS[kind], image[None], torch.tensor([value]))[0]
        assert torch.equal(together[i], image)
        changed += not torch.equal(image, images[i])
    assert changed > 40


@pytest.mark.parametrize("world", [2, 4])
def test_slices_are_what_one_process_sees(world):
    images = torch.stack([picture((16, 16), "RGB", seed) for seed in range(32)])
    chain = drawn(32, (16, 16), **FULL)
    share = 32 // world
    slices = [slice(rank * share, (rank + 1) * share) for rank in range(world)]
    shares = [sent_through(images[part], chain.slice(part)) for part in slices]
    assert torch.equal(torch.cat(shares), sent_through(images, chain))


def same(a: Chain, b: Chain) -> bool:
    return np.array_equal(a.operations, b.operations) and np.array_equal(a.magnitudes, b.magnitudes)


def test_draws_are_per_image_and_a_function_of_seed_and_step():
    chain = drawn(64, **FULL)
    assert same(chain, drawn(64, **FULL))
    assert not same(chain, drawn(64, step=1, **FULL))
    assert not same(chain, drawn(64, seed=1, **FULL))
    assert len(np.unique(chain.operations, axis=0)) > 50
    assert len(np.unique(chain.magnitudes[:, 3:])) == 64 * 3


def test_switching_one_ingredient_leaves_the_others():
    both, policy = drawn(32, **FULL), drawn(32, **{**FULL, "color_jitter": 0.0})
    jitter = drawn(32, **{**FULL, "policy": "none"})
    assert same(Chain(both.operations[:, :3], both.magnitudes[:, :3]), policy)
    assert same(Chain(both.operations[:, 3:], both.magnitudes[:, 3:]), jitter)
    strong = {"erasing": 0.5, "mixup": 0.8, "cutmix": 1.0, "crop": "padded"}
    assert same(drawn(32, **FULL, **strong), both)
    with_policy = draw_rest(augmentation(**FULL, **strong), 32, (16, 16), 0, 0)
    without = draw_rest(augmentation(**strong), 32, (16, 16), 0, 0)
    for field in ("shift", "flip", "erase", "cut", "keep"):
        assert torch.equal(getattr(with_policy, field), getattr(without, field))


def test_autoaugment_has_torchvisions_pairs_and_magnitudes():
    theirs = v2.AutoAugment(AutoAugmentPolicy.CIFAR10)
    size = (64, 48)
    chain = drawn(60_000, size, policy="autoaugment")
    space = theirs._AUGMENTATION_SPACE
    expected: Counter[tuple[str, str]] = Counter()
    for (first, odds1, _), (second, odds2, _) in theirs._policies:
        for a, p in ((first, odds1), ("Identity", 1 - odds1)):
            for b, q in ((second, odds2), ("Identity", 1 - odds2)):
                expected[a, b] += p * q / len(theirs._policies)
    names = [THEIR_NAMES[name] for name in OPERATIONS]
    found = Counter((names[a], names[b]) for a, b in chain.operations)
    for pair in expected.keys() | found.keys():
        assert found[pair] / 60_000 == pytest.approx(expected[pair], abs=0.006), pair
    for kind, name in enumerate(SPACE):
        bins = {
            strength or 0
            for pair in theirs._policies
            for operation, odds, strength in pair
            if operation == THEIR_NAMES[name] and odds
        }
        if bins:
            values = chain.magnitudes[chain.operations == kind]
            check_range(values, name, space, size, sorted(bins), bins=10)


def test_three_augment_is_one_of_three():
    chain = drawn(9000, policy="three_augment")
    names = list(OPERATIONS)
    kinds, counts = np.unique(chain.operations, return_counts=True)
    assert {names[kind] for kind in kinds} == {"grayscale", "solarize", "blur"}
    assert (abs(counts / 9000 - 1 / 3) < 0.03).all()
    deviations = chain.magnitudes[chain.operations == names.index("blur")]
    assert 0.1 <= deviations.min() < 0.12
    assert 1.98 < deviations.max() <= 2.0
    assert (chain.magnitudes[chain.operations == names.index("solarize")] == 128).all()
