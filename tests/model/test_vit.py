"""The model: equal to timm's, its parts equal to their formulas, its own facts complete."""

import itertools
import math

import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from small_models import SMALL, images, small
from timm.models import VisionTransformer as TimmTransformer
from torch import nn

from vit.config.model import ViTConfig
from vit.model.layers import DropPath, PatchDropout
from vit.model.pooling import POOLINGS
from vit.model.positions import POSITIONS
from vit.model.vit import Block, VisionTransformer
from vit.model.weights import load_matching, timm_kwargs

TIMMS = list(itertools.product(("learned", "sincos1d", "sincos2d", "none"), ("cls", "mean")))


# With timm


@pytest.mark.parametrize(("positions", "pool"), TIMMS)
@pytest.mark.parametrize("size", [(16, 16), (32, 48)])
def test_timm_reads_our_weights(positions, pool, size):
    ours = small(positions=positions, pool=pool, image_size=size)
    theirs = TimmTransformer(**timm_kwargs(ours.config)).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = images(*size)
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-5, atol=1e-5)


def take_all(ours, theirs):
    """Every weight of timm's model, in ours."""
    size = ours.config.image_size
    report = load_matching(ours, theirs.state_dict(), size, same_classes=True)
    assert (report.new, report.unused, report.resized) == ([], [], [])


@pytest.mark.parametrize(("positions", "pool"), TIMMS)
def test_we_read_timms_weights(positions, pool):
    ours = small(positions=positions, pool=pool)
    theirs = TimmTransformer(**timm_kwargs(ours.config)).eval()
    take_all(ours, theirs)
    torch.testing.assert_close(ours(images()), theirs(images()), rtol=1e-5, atol=1e-5)
    assert theirs(images()).std() > 1e-3


@pytest.mark.parametrize("size", [(16, 16), (32, 48)])
def test_what_is_taken_folds_the_class_tokens_position(size):
    ours = small(image_size=size)
    kwargs = {**timm_kwargs(ours.config), "no_embed_class": False}
    theirs = TimmTransformer(**kwargs).eval()
    nn.init.normal_(theirs.pos_embed)
    nn.init.normal_(theirs.cls_token)
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    take_all(ours, theirs)
    x = images(*size)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in theirs.state_dict().items())


def test_vit_s16_has_timms_parameters():
    with torch.device("meta"):
        theirs = timm.create_model("vit_small_patch16_224")
        ours = VisionTransformer(224, 16, 1000, dim=384, depth=12, heads=6)
    ours_count, theirs_count = (sum(p.numel() for p in m.parameters()) for m in (ours, theirs))
    class_token_position = 384  # timm's default gives the class token a position, ours has none
    assert ours_count == theirs_count - class_token_position == 22_050_664 - 384
    shapes = {name: p.shape for name, p in theirs.named_parameters() if name != "pos_embed"}
    assert {n: p.shape for n, p in ours.named_parameters() if n != "pos_embed"} == shapes


def test_plain_values_rebuild_the_model():
    ours = small(image_size=(16, 24), positions="sincos2d", pool="mean", channels=1, mlp_dim=64)
    plain = yaml.safe_load(yaml.safe_dump(ours.config.plain()))
    again = VisionTransformer(ViTConfig(**plain))
    assert again.config == ours.config
    assert again.config.image_size == (16, 24)
    assert [p.shape for p in again.parameters()] == [p.shape for p in ours.parameters()]


# Initialisation and gradients


@pytest.mark.parametrize("pool", POOLINGS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_every_parameter_gets_a_gradient(positions, pool):
    torch.manual_seed(0)
    model = VisionTransformer(**SMALL, positions=positions, pool=pool)
    nn.init.normal_(model.head.weight)
    F.cross_entropy(model(images()), torch.tensor([1, 3])).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_first_loss_is_log_k():
    torch.manual_seed(0)
    logits = VisionTransformer(**SMALL)(images())
    assert F.cross_entropy(logits, torch.tensor([1, 3])).item() == pytest.approx(math.log(5))
    assert logits.abs().max() == 0


def test_initial_weights():
    torch.manual_seed(0)
    model = VisionTransformer(16, 8, 5, dim=128, depth=2, heads=4, pool="attention")
    for block in model.blocks:
        matrices = [*block.attn.qkv.weight.chunk(3), block.attn.proj.weight]
        matrices += [model.pool.attention.q.weight, model.pool.attention.proj.weight]
        for matrix in (*matrices, block.mlp.fc1.weight, block.mlp.fc2.weight):
            bound = math.sqrt(6 / sum(matrix.shape))
            assert 0.98 * bound < matrix.abs().max() <= bound
            assert matrix.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    patch = model.patch_embed.proj.weight
    assert patch.std().item() == pytest.approx((3 * 8 * 8) ** -0.5, rel=0.03)
    assert model.pos_embed.std().item() == pytest.approx(1, rel=0.1)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias") or name == "head.weight":
            assert not parameter.any(), name
        elif "norm" in name:
            assert bool((parameter == 1).all()), name


# Dropout and drop-path


def test_drop_path_keeps_the_mean_and_drops_whole_images():
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(20_000, 3, 2)
    out = drop(x)
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert bool((out == out[:, :1, :1]).all())
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    assert drop.eval()(x) is x


def test_drop_path_of_a_branch_is_the_identity():
    torch.manual_seed(0)
    block, x = Block(ViTConfig(dim=32, heads=4, mlp_dim=64), 0.5), torch.randn(64, 3, 32)
    unchanged = (block(x) == x).flatten(1).all(dim=1).float().mean().item()
    assert 0.05 < unchanged < 0.5  # both branches dropped: a quarter
    assert not (block.eval()(x) == x).flatten(1).all(dim=1).any()


def test_drop_path_rates_rise_linearly():
    model = VisionTransformer(**{**SMALL, "depth": 5}, drop_path=0.2)
    assert [b.drop_path.rate for b in model.blocks] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert [b.drop_path.rate for b in VisionTransformer(**SMALL).blocks] == [0, 0, 0]
    assert VisionTransformer(**{**SMALL, "depth": 1}, drop_path=0.2).blocks[0].drop_path.rate == 0


def test_the_first_tokens_alone_are_as_among_all():
    torch.manual_seed(0)
    block = Block(ViTConfig(dim=32, heads=4, mlp_dim=48, qk_norm=True, layer_scale=0.5))
    x = torch.randn(2, 9, 32, requires_grad=True)
    mask = torch.rand(2, 9) < 0.7
    whole, first = block(x, mask=mask)[:, :3], block(x, mask=mask, queries=3)
    torch.testing.assert_close(first, whole)
    (g_whole,), (g_first,) = (torch.autograd.grad(out.square().sum(), x) for out in (whole, first))
    torch.testing.assert_close(g_first, g_whole)


@pytest.mark.parametrize("pool", POOLINGS)
def test_what_a_pooling_reads_is_all_it_needs(pool):
    torch.manual_seed(0)
    pooling = POOLINGS[pool](ViTConfig(dim=32, heads=4))
    tokens = torch.randn(2, 9, 32)
    torch.testing.assert_close(
        pooling(tokens[:, : pooling.reads], prefix=1), pooling(tokens, prefix=1)
    )


@pytest.mark.parametrize("pool", POOLINGS)
def test_the_head_makes_logits_of_features(pool):
    model, x = small(pool=pool), images()
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    assert features.shape == (2, 32)
    torch.testing.assert_close(model.head(features), model(x))


def test_features_and_head_mean_what_timms_do():
    ours = small(registers=2)
    theirs = TimmTransformer(**timm_kwargs(ours.config)).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    tokens = ours.forward_features(images())
    assert tokens.shape == (2, 1 + 2 + 16, 32)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(tokens, theirs.forward_features(images()), **close)
    for way in ({}, {"pre_logits": True}):
        ours_of, theirs_of = (model.forward_head(tokens, **way) for model in (ours, theirs))
        torch.testing.assert_close(ours_of, theirs_of, **close)


@pytest.mark.parametrize("rates", [{"dropout": 0.3}, {"drop_path": 0.3}])
def test_dropout_only_in_training(rates):
    model, x = small(**rates), images()
    plain = small()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(x), plain(x))
    assert torch.equal(plain.train()(x), plain.eval()(x))
    model.train()
    assert not torch.allclose(model(x), model(x), atol=1e-3)


@pytest.mark.parametrize(
    ("total", "rate", "kept"), [(16, 0.5, 8), (9, 0.5, 4), (10, 0.25, 8), (16, 0.99, 1)]
)
def test_patch_dropout_keeps_a_fair_part_in_order(total, rate, kept):
    torch.manual_seed(0)
    coordinates = torch.arange(2 * total).view(total, 2)
    patches = torch.arange(float(total)).view(1, total, 1).expand(4000, -1, 3)  # their own numbers
    some, where, mask = PatchDropout(rate)(patches, coordinates, None)
    numbers = some[..., 0].long()
    assert (some.shape, mask) == ((4000, kept, 3), None)
    assert torch.equal(where, coordinates[numbers])
    assert bool((numbers.diff(dim=1) > 0).all())
    shares = numbers.flatten().bincount(minlength=total) / 4000
    assert shares.tolist() == pytest.approx([kept / total] * total, abs=0.04)
    assert len(numbers.unique(dim=0)) >= total
    for unchanged in (PatchDropout(rate).eval(), PatchDropout(0.0)):
        assert unchanged(patches, coordinates, None)[0] is patches


def test_patch_dropout_keeps_existing_patches_first():
    counts = torch.tensor([5, 8, 12]).repeat(100)[:, None]
    numbers = torch.arange(12).expand(300, -1)  # the last `counts` exist
    exist = numbers >= 12 - counts
    some, _, kept = PatchDropout(1 / 3)(numbers[..., None], numbers.mT[:, :2], exist)
    assert torch.equal(kept, some[..., 0] >= 12 - counts)
    assert torch.equal(kept.sum(dim=1, keepdim=True), counts.clamp(max=8))


@pytest.mark.parametrize("pool", POOLINGS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_dropped_patch_is_a_masked_one(positions, pool):
    model, seen = small(positions=positions, pool=pool, patch_dropout=0.4, registers=2), []
    for part in (model.patch_dropout, model.blocks[0]):
        part.register_forward_hook(lambda part, args, out: seen.append(out))
    logits = model.train()(images())
    logits.square().sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in model.parameters())
    (_, kept, _), tokens = seen
    assert tokens.shape == (2, model.prefix + 10, 32)
    mask = torch.zeros(2, 16, dtype=torch.bool).scatter(1, 4 * kept[..., 0] + kept[..., 1], True)
    torch.testing.assert_close(model.eval()(images(), mask), logits, rtol=1e-5, atol=1e-5)


# The model's own facts


def test_decays_only_matrices():
    model = small()
    kept = {name for name, _ in model.named_parameters() if not model.decays(name)}
    blocks = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "attn.qkv.bias",
              "attn.proj.bias", "mlp.fc1.bias", "mlp.fc2.bias")  # fmt: skip
    assert kept == {
        "cls_token", "pos_embed", "patch_embed.proj.bias", "norm.weight", "norm.bias", "head.bias",
        *(f"blocks.{i}.{name}" for i in range(3) for name in blocks),
    }  # fmt: skip


def test_depth_of_every_parameter():
    model = small()
    depths = {}
    for name, _ in model.named_parameters():
        depths.setdefault(model.depth_of(name), set()).add(name)
    assert set(depths) == {0, 1, 2, 3, 4}
    assert depths[0] == {
        "cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"
    }  # fmt: skip
    assert depths[4] == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    for i in (1, 2, 3):
        assert {name.split(".")[1] for name in depths[i]} == {str(i - 1)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 30}, "dim=30 is not a multiple of heads=4"),
        ({"image_size": 18}, r"image_size=\(18, 18\)"),
        ({"image_size": (16, 18)}, "patch_size=4"),
        ({"dim": 30, "heads": 5, "positions": "sincos2d"}, "dim=30"),
        ({"dim": 33, "heads": 3, "positions": "sincos1d"}, "dim=33"),
        ({"dim": 24, "positions": "rope2d"}, "dim=24 / heads=4"),
        ({"dim": 20, "positions": "rope2d"}, "dim=20 / heads=4"),
    ],
)
def test_bad_shapes(changes, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformer(**{**SMALL, **changes})
