"""experiment=imagenet_vit_s16 is the recipe of "Better plain ViT baselines" (arXiv 2205.01580)."""

import math

import numpy as np
import pytest
import torch
from composing import composed, sized

from vit.config.resolve import plan, resolve, vit_config
from vit.data.augment import batch as augment
from vit.model.vit import VisionTransformer
from vit.optim.build import parameter_groups
from vit.optim.schedule import lr_at
from vit.training.state import parameter_count

TRAIN_IMAGES, STEPS = 1_281_167, 112_603


def recipe(*overrides):
    plain = composed(
        "experiment=imagenet_vit_s16", "data.root=/data", "data.val_fraction=0", *overrides
    )
    return resolve(sized(plain), precision="bf16")


@pytest.fixture(scope="module")
def config():
    return recipe()


@pytest.fixture(scope="module")
def model(config):
    torch.manual_seed(0)
    return VisionTransformer(vit_config(config, 1000))


def test_parameters(model):
    assert parameter_count(model) == 21_974_632
    assert model.cls_token is None
    assert not isinstance(model.pos_embed, torch.nn.Parameter)
    assert model.norm.eps == 1e-6


def test_learning_rate(config):
    length = plan(config, TRAIN_IMAGES)
    assert length.steps == STEPS
    assert lr_at(config, length, 0) == 0
    assert lr_at(config, length, 5_000) == pytest.approx(5e-4)
    assert lr_at(config, length, 10_000) == 1e-3
    middle = (10_000 + STEPS) // 2
    assert lr_at(config, length, middle) == pytest.approx(5e-4, rel=1e-4)
    assert lr_at(config, length, STEPS - 1) < 1e-12
    assert lr_at(config, length, STEPS) == 0


@pytest.mark.parametrize(("epochs", "steps"), [(150, 187_671), (300, 375_342)])
def test_longer_runs(epochs, steps):
    assert plan(recipe(f"trainer.epochs={epochs}"), TRAIN_IMAGES).steps == steps


def test_optimizer(config, model):
    optim = config.optim
    assert (optim.name, optim.lr, optim.weight_decay) == ("adamw", 1e-3, 0.1)
    assert (optim.betas, optim.clip_norm, optim.layer_decay) == ([0.9, 0.999], 1.0, 1.0)
    decayed = {
        id(p) for g in parameter_groups(model, optim) if g["weight_decay"] for p in g["params"]
    }
    for name, p in model.named_parameters():
        assert (id(p) in decayed) == (p.ndim > 1), name
    assert len(decayed) == 1 + 12 * 4 + 1  # patches; qkv, proj, fc1, fc2; head


def test_initial_weights(model):
    def xavier(rows, columns):
        return math.sqrt(2 / (rows + columns))

    for block in model.blocks:
        for part in block.attn.qkv.weight.chunk(3):
            assert part.std().item() == pytest.approx(xavier(384, 384), rel=0.02)
            assert part.abs().max().item() <= math.sqrt(3) * xavier(384, 384)
        assert block.attn.proj.weight.std().item() == pytest.approx(xavier(384, 384), rel=0.02)
        for layer in (block.mlp.fc1, block.mlp.fc2):
            assert layer.weight.std().item() == pytest.approx(xavier(384, 1536), rel=0.02)
    patch = model.patch_embed.proj.weight
    assert patch.std().item() == pytest.approx(math.sqrt(1 / (3 * 16 * 16)), rel=0.03)
    assert not model.head.weight.any()
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name


def test_images(config):
    assert (config.data.image_size, config.data.center_crop) == (224, 0.875)
    assert (config.data.mean, config.data.std) == ([0.5] * 3, [0.5] * 3)
    a = config.augment
    assert (a.crop, a.crop_scale, a.flip) == ("resized", [0.05, 1.0], 0.5)
    assert (a.policy, a.operations, a.magnitude, a.color_jitter) == ("randaugment", 2, 10, 0)
    assert (a.erasing, a.cutmix, a.repeats) == (0, 0, 1)
    assert (a.mixup, a.mix_probability) == (0.2, 1.0)
    t = config.trainer
    assert (t.batch_size, t.precision, t.label_smoothing, t.ema) == (1024, "bf16", 0, None)
    assert (config.model.dropout, config.model.drop_path) == (0, 0)


def test_mixup_keeps_at_least_half(config):
    keep = augment.draw(config.augment, 4096, (224, 224), 0, 0).keep.double().numpy()
    assert keep.min() >= 0.5
    drawn = np.random.default_rng(0).beta(0.2, 0.2, 100_000)
    expected = np.maximum(drawn, 1 - drawn)
    assert keep.mean() == pytest.approx(expected.mean(), abs=0.01)
    assert np.quantile(keep, 0.25) == pytest.approx(np.quantile(expected, 0.25), abs=0.02)
