"""`auto` and durations become values, once, and the same on every machine."""

import math
from fractions import Fraction

import pytest
from composing import KEYS, UNHURRIED, changed, composed, outcome, sized
from hypothesis import given
from hypothesis import strategies as st

from vit.config.checks import auto_patch_size
from vit.config.resolve import MEMORY_LIMIT, fit_to_data, plan, resolve, resolve_memory
from vit.config.validate import flatten, to_config, to_plain
from vit.errors import ConfigError


@pytest.mark.parametrize(
    ("size", "patch"), [(32, 4), (64, 8), (96, 12), (128, 16), (224, 16), (256, 16), (384, 16)]
)
def test_automatic_patch_size(size, patch):
    config = resolve(sized(changed(data__image_size=size)), precision="fp32")
    assert config.model.patch_size == patch


def test_automatic_patch_size_of_the_digits_is_small():
    assert auto_patch_size(8, 8) == 2


@UNHURRIED
@given(height=st.integers(4, 4096), width=st.integers(4, 4096))
def test_automatic_patch_size_always_divides(height, width):
    patch = auto_patch_size(height, width)
    assert height % patch == 0
    assert width % patch == 0
    assert patch < min(height, width)


@UNHURRIED
@given(size=st.integers(4, 4096))
def test_an_automatic_patch_size_that_is_accepted_gives_a_sensible_number_of_tokens(size):
    config, found = outcome(changed(data__image_size=size))
    if config is None:
        assert f"data.image_size={size} has no good patch size" in found[0]
    else:
        patch = resolve(sized(to_plain(config)), precision="fp32").model.patch_size
        assert 4 <= (size // patch) ** 2 <= max(32, size / 8) ** 2


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("flip", ["auto", 0, 0.5, 1])
def test_automatic_mirroring_follows_the_data(mirror, flip):
    config = resolve(sized(changed(data__mirror=mirror, augment__flip=flip)), precision="fp32")
    assert config.augment.flip == (0.5 * mirror if flip == "auto" else flip)


@pytest.mark.parametrize("best", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("precision", ["auto", "bf16", "fp16", "fp32", "tf32"])
def test_automatic_precision_follows_the_hardware(best, precision):
    config = resolve(sized(changed(trainer__precision=precision)), precision=best)
    expected = best if precision == "auto" else precision
    assert config.trainer.precision == expected


def test_resolving_changes_nothing_but_auto_and_only_once():
    before = to_config(composed())
    after = resolve(sized(composed()), precision="bf16")
    old, new = flatten(to_plain(before)), flatten(to_plain(after))
    assert all(old[key] == "auto" for key in KEYS if old[key] != new[key])
    later = {"trainer.device", "data.workers", "data.memory", "data.verify", "model.name"}
    assert {key for key in KEYS if new[key] == "auto"} == later
    assert resolve(after, precision="fp32") == after
    assert to_config(to_plain(after)) == after


@pytest.mark.parametrize(
    ("images", "side", "gpu", "expected"),
    [
        (200, 375, False, (64, 64, 4, 4, 160)),
        (200, 375, True, (224, 192, 12, 3, 300)),
        (200, 50, True, (48, 192, 12, 3, 300)),
        (50_000, 32, False, (32, 128, 6, 4, 10)),
        (8_000, 9, False, (16, 128, 6, 4, 62)),
        (1_300_000, 400, True, (224, 192, 12, 3, 30)),
        (1_500, None, True, (8, 64, 4, 4, 160)),
    ],
)  # fmt: skip
def test_size_model_and_length_fit_the_images_and_the_device(images, side, gpu, expected):
    plain = changed() if side is None else composed("data=folder", "data.root=x")
    made = fit_to_data(to_config(plain), images, side, gpu=gpu)
    shape = made.model.dim, made.model.depth, made.model.heads
    assert (made.data.image_size, *shape, made.trainer.epochs) == expected
    assert to_config(to_plain(made)) == made


@given(images=st.integers(1, 10**7), side=st.integers(1, 5000), gpu=st.booleans(),
       heads=st.sampled_from(["auto", 1, 2, 3, 5, 7, 16]))  # fmt: skip
@UNHURRIED
def test_what_is_chosen_for_files_is_always_legal(images, side, gpu, heads):
    plain = composed("data=folder", "data.root=x")
    plain["model"]["heads"] = heads
    made = to_config(to_plain(fit_to_data(to_config(plain), images, side, gpu=gpu)))
    assert min(made.data.size) <= max(16, side)
    assert heads in ("auto", made.model.heads)


def test_what_is_given_is_not_chosen():
    given = {"data__image_size": [32, 48], "model__dim": 90, "trainer__epochs": 7}
    made = sized(changed(**given))
    assert (made.data.size, made.model.dim, made.trainer.epochs) == ((32, 48), 90, 7)
    assert (made.model.depth, made.model.heads) == (4, 3)
    assert sized(changed(trainer__steps=5)).trainer.epochs is None


LIMIT = MEMORY_LIMIT // (3 * 64 * 64)


@pytest.mark.parametrize(
    ("images", "in_files", "crop", "memory"),
    [
        (LIMIT, True, "padded", "device"),
        (LIMIT + 1, True, "padded", "stream"),
        (10, True, "resized", "stream"),
        (10, False, "resized", "device"),
    ],
)
def test_where_images_are_held(images, in_files, crop, memory):
    changes = {"data__image_size": 64, "data__mean": [0.5] * 3, "data__std": [0.5] * 3}
    config = resolve(sized(changed(**changes, augment__crop=crop)), precision="fp32")
    held = resolve_memory(config, images, in_files=in_files)
    assert held.data.memory == memory
    assert resolve_memory(held, images, in_files=in_files) == held


def test_data_sets_are_measured_before_they_are_decoded():
    plain = changed(data__memory="device", data__mean=[0.5], data__std=[0.5])
    config = resolve(sized(plain), precision="fp32")
    fits = MEMORY_LIMIT // (config.data.size[0] * config.data.size[1])
    assert resolve_memory(config, fits, in_files=True) == config
    with pytest.raises(ConfigError, match=r"8\.0 GiB.*try data\.memory=stream"):
        resolve_memory(config, 2 * fits, in_files=True)


@pytest.mark.parametrize(
    ("size", "crop"), [(127, "padded"), (128, "resized"), ([96, 256], "padded")]
)
def test_photos_are_cropped_and_resized(size, crop):
    config = resolve(sized(changed(data__image_size=size, model__patch_size=1)), precision="fp32")
    assert config.augment.crop == crop


def test_sizes_may_differ_in_height_and_width():
    config = resolve(sized(changed(data__image_size=[224, 288])), precision="fp32")
    assert config.data.size == (224, 288)
    assert config.model.patch_size == 16
    wrong = outcome(changed(data__image_size=[224, 288], model__patch_size=20))[1]
    assert "model.patch_size=20 does not divide data.image_size=[224, 288]; try 8 or 16" in wrong[0]
    for bad in ([224], [224, 288, 3], [2, 224], "big"):
        assert outcome(changed(data__image_size=bad))[1], bad


@UNHURRIED
@given(epochs=st.integers(1, 3000), n=st.integers(1, 10**6), batch=st.integers(1, 5000))
def test_the_length_of_a_run(epochs, n, batch):
    plain = changed(trainer__epochs=epochs / 10, trainer__batch_size=batch, augment__mixup=0.0)
    made = plan(sized(plain), n)
    assert made.steps == math.ceil(Fraction(epochs * n, 10 * batch))
    assert made.steps_per_epoch == Fraction(n, batch)
    assert made.epoch_at(made.steps) >= Fraction(epochs, 10)
    assert made.epoch_at(made.steps - 1) < Fraction(epochs, 10)
    assert 0 <= made.warmup <= made.steps


def test_durations_of_a_plan_by_hand():
    plain = changed(
        trainer__epochs=10, trainer__batch_size=40, trainer__eval_every="2ep",
        trainer__log_every=7, trainer__save_every="5%", schedule__warmup="0.5ep", trainer__ema=2,
    )  # fmt: skip
    made = plan(sized(plain), 1010)
    assert made.steps == 253  # 10 x 25.25, rounded up
    assert made.eval_every == Fraction(101, 2)
    assert made.log_every == 7
    assert made.save_every == Fraction(253, 20)
    assert made.warmup == 12.625
    assert made.ema_decay == pytest.approx(math.exp(-1 / 50.5))
    assert made.epoch_at(101) == 4


def test_steps_are_taken_as_they_are():
    plain = changed(trainer__epochs=None, trainer__steps=17, schedule__warmup="1ep")
    made = plan(sized(plain), 640)
    assert (made.steps, made.warmup, made.ema_decay) == (17, 10, None)


@pytest.mark.parametrize(
    ("warmup", "legal"),
    [(40, True), (41, False), ("2ep", True), ("2.1ep", False), ("100%", True), (0, True)],
)
def test_a_warm_up_fits_into_the_run(warmup, legal):
    """Of 40 steps, which are two epochs of 20."""
    config = sized(changed(trainer__epochs=2, schedule__warmup=warmup))
    if legal:
        assert plan(config, 20 * 64).warmup <= 40
        return
    with pytest.raises(ConfigError) as raised:
        plan(config, 20 * 64)
    assert f"schedule.warmup={warmup} " in str(raised.value)
    assert "the run of 40; try schedule.warmup=5%" in str(raised.value)
