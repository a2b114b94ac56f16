"""The model: equal to timm's, its parts equal to their formulas, its own facts complete."""

import doctest
import itertools
import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import VisionTransformer as TimmTransformer

from vit.model import vit
from vit.model.attention import SelfAttention, attend, attention_weights
from vit.model.block import Block, DropPath
from vit.model.pooling import ClassToken, MeanPool
from vit.model.positions import POSITIONS, grid_coordinates
from vit.model.vit import PatchEmbed, VisionTransformer
from vit.model.weights import from_timm, timm_kwargs

SMALL = {"image_size": 16, "patch_size": 4, "num_classes": 5, "dim": 32, "depth": 3, "heads": 4}
VARIANTS = list(itertools.product(POSITIONS, ("cls", "mean")))


def small(**changes):
    """A model with random weights everywhere, also where they start at zero."""
    torch.manual_seed(0)
    model = VisionTransformer(**{**SMALL, **changes}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def images(*size, batch=2):
    height, width = size or (16, 16)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, height, width, generator=generator)


# With timm


@pytest.mark.parametrize(("positions", "pool"), VARIANTS)
@pytest.mark.parametrize("size", [(16, 16), (32, 48)])
def test_timm_reads_our_weights(positions, pool, size):
    ours = small(positions=positions, pool=pool, image_size=size)
    theirs = TimmTransformer(**timm_kwargs(ours.spec)).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = images(*size)
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("positions", "pool"), VARIANTS)
def test_we_read_timms_weights(positions, pool):
    ours = small(positions=positions, pool=pool)
    theirs = TimmTransformer(**timm_kwargs(ours.spec)).eval()
    ours.load_state_dict(from_timm(theirs.state_dict(), ours.spec), strict=True)
    torch.testing.assert_close(ours(images()), theirs(images()), rtol=1e-5, atol=1e-5)
    assert theirs(images()).std() > 1e-3


@pytest.mark.parametrize("size", [(16, 16), (32, 48)])
def test_from_timm_folds_the_class_tokens_position(size):
    ours = small(image_size=size)
    kwargs = {**timm_kwargs(ours.spec), "no_embed_class": False}
    theirs = TimmTransformer(**kwargs).eval()
    torch.nn.init.normal_(theirs.pos_embed)
    torch.nn.init.normal_(theirs.cls_token)
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    ours.load_state_dict(from_timm(theirs.state_dict(), ours.spec), strict=True)
    x = images(*size)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in theirs.state_dict().items())


def test_from_timm_refuses_fc_norm():
    spec = small(pool="mean").spec
    theirs = TimmTransformer(**{**timm_kwargs(spec), "fc_norm": True})
    with pytest.raises(ValueError, match="fc_norm=False"):
        from_timm(theirs.state_dict(), spec)


def test_vit_s16_has_timms_parameters():
    with torch.device("meta"):
        theirs = timm.create_model("vit_small_patch16_224")
        ours = VisionTransformer(224, 16, num_classes=1000, dim=384, depth=12, heads=6)
    ours_count, theirs_count = (sum(p.numel() for p in m.parameters()) for m in (ours, theirs))
    class_token_position = 384  # timm's default gives the class token a position, ours has none
    assert ours_count == theirs_count - class_token_position == 22_050_664 - 384
    shapes = {name: p.shape for name, p in theirs.named_parameters() if name != "pos_embed"}
    assert {n: p.shape for n, p in ours.named_parameters() if n != "pos_embed"} == shapes


def test_state_dict_round_trip():
    ours, other = small(), VisionTransformer(**SMALL).eval()
    assert not torch.equal(ours(images()), other(images()))
    other.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(ours(images()), other(images()))


def test_spec_rebuilds_the_model():
    ours = small(image_size=(16, 24), positions="sincos2d", pool="mean", channels=1, mlp_ratio=2.0)
    again = VisionTransformer(**ours.spec)
    assert again.spec == ours.spec
    assert [p.shape for p in again.parameters()] == [p.shape for p in ours.parameters()]


# Attention and masks


@pytest.mark.parametrize("masked", [False, True])
def test_weights_times_values_is_the_fused_product(masked):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 7, 8).unbind(0)
    mask = torch.arange(7) < torch.tensor([5, 7])[:, None] if masked else None
    mask = None if mask is None else mask[:, None, None]
    weights = attention_weights(q, k, 0.3, mask)
    expected = weights @ v
    torch.testing.assert_close(attend(q, k, v, 0.3, mask), expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        plain = attend(q, k, v, 0.3, mask)
    assert plain.dtype == torch.bfloat16
    torch.testing.assert_close(plain.float(), expected, rtol=0.05, atol=0.02)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, 7))
    assert not masked or bool((weights[0, ..., 5:] == 0).all())


def test_attention_weights_by_hand():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 3, 4, dtype=torch.float64).unbind(0)
    logits = np.array([[0.5 * float(a @ b) for b in k[0, 0]] for a in q[0, 0]])
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(attention_weights(q, k, 0.5)[0, 0], expected, rtol=1e-12)


def test_weights_are_those_of_forward():
    torch.manual_seed(0)
    attention, x = SelfAttention(32, 4), torch.randn(2, 7, 32)
    _, _, v = attention.project(x)
    mixed = (attention.weights(x) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(x), attention.proj(mixed), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", [lambda: SelfAttention(32, 4), lambda: Block(32, 4, 64)])
def test_masked_keys_do_not_exist(build):
    torch.manual_seed(0)
    layer, x = build(), torch.randn(2, 7, 32)
    mask = (torch.arange(7) < 5).expand(2, 1, 1, 7)
    padded = layer(x, mask)[:, :5]
    torch.testing.assert_close(padded, layer(x[:, :5]), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(padded, layer(x)[:, :5], atol=1e-3)


@pytest.mark.parametrize(
    ("pooling", "prefix"), [(ClassToken(), 1), (MeanPool(), 0), (MeanPool(), 1)]
)
def test_masked_tokens_are_not_pooled(pooling, prefix):
    tokens = torch.randn(2, 7, 8)
    mask = (torch.arange(7) < 5).expand(2, 7)
    expected = pooling.forward(tokens[:, :5], prefix)
    torch.testing.assert_close(pooling.forward(tokens, prefix, mask), expected)
    own = tokens[:, 0] if isinstance(pooling, ClassToken) else tokens[:, prefix:5].mean(dim=1)
    torch.testing.assert_close(expected, own)


@pytest.mark.parametrize(("positions", "pool"), VARIANTS)
def test_masked_patches_do_not_change_the_logits(positions, pool):
    model = small(positions=positions, pool=pool)
    x, noisy = images(), images()
    noisy[:, :, 12:, 12:] = torch.randn(2, 3, 4, 4)  # the last patch
    mask = torch.ones(2, 16 + model.prefix, dtype=torch.bool)
    torch.testing.assert_close(model(x, mask), model(x), rtol=1e-5, atol=1e-5)
    mask[:, -1] = False
    torch.testing.assert_close(model(x, mask), model(noisy, mask), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(x), model(noisy), atol=1e-4)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_attention_maps(pool):
    model, x = small(pool=pool), images(batch=3)
    maps = model.attention_maps(x)
    tokens = 16 + (pool == "cls")
    assert [m.shape for m in maps] == [(3, 4, tokens, tokens)] * 3
    for m in maps:
        torch.testing.assert_close(m.sum(dim=-1), torch.ones(3, 4, tokens))
        assert m.min() >= 0
        assert not m.requires_grad
    first = model.blocks[0]
    assert torch.equal(maps[0], first.attn.weights(first.norm1(model.embed(x))))
    assert not torch.allclose(maps[0], maps[2], atol=1e-3)


# Embedding and positions


def test_patch_embed_is_the_convolution():
    torch.manual_seed(0)
    embed = PatchEmbed(4, 3, 8)
    x = torch.randn(2, 3, 12, 20)
    expected = F.conv2d(x, embed.proj.weight, embed.proj.bias, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(x), expected, rtol=1e-5, atol=1e-5)
    nhwc = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # as crop_flip gives them
    torch.testing.assert_close(embed(nhwc), expected, rtol=1e-5, atol=1e-5)


def test_sincos2d_is_big_visions():
    height, width, dim = 5, 7, 24
    y, x = np.mgrid[:height, :width]
    omega = np.arange(dim // 4) / (dim // 4 - 1)
    omega = 1.0 / (10000.0**omega)
    y, x = np.einsum("m,d->md", y.flatten(), omega), np.einsum("m,d->md", x.flatten(), omega)
    expected = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
    table = POSITIONS["sincos2d"]((height, width), dim).table()
    assert table.shape == (1, height * width, dim)
    np.testing.assert_allclose(table[0].double(), expected, rtol=0, atol=1e-7)


def test_sincos1d_by_hand():
    table = POSITIONS["sincos1d"]((3, 4), 8).table()[0]
    for i, j in itertools.product(range(12), range(4)):
        angle = i / 10000 ** (j / 3)
        assert table[i, j].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert table[i, 4 + j].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_additive_positions_follow_the_coordinates():
    positions = POSITIONS["learned"]((3, 4), 8)
    patches, table = torch.randn(2, 12, 8), positions.table()
    everything, _ = positions(patches, grid_coordinates(3, 4), table)
    torch.testing.assert_close(everything, patches + table)
    kept = torch.tensor([[7, 0, 11], [2, 5, 3]])  # other patches of each image
    batch = torch.arange(2)[:, None]
    some, _ = positions(patches[batch, kept], grid_coordinates(3, 4)[kept], table)
    torch.testing.assert_close(some, everything[batch, kept])


@pytest.mark.parametrize("positions", POSITIONS)
def test_only_learned_positions_are_trained(positions):
    model = small(positions=positions)
    assert ("pos_embed" in dict(model.named_parameters())) == (positions == "learned")
    assert ("pos_embed" in model.state_dict()) == (positions != "none")
    assert "coordinates" not in model.state_dict()


def test_without_positions_patches_are_a_bag():
    x = images()
    halves = torch.cat([x[..., 8:], x[..., :8]], dim=-1)  # the same patches in another order
    bag, grid = small(positions="none"), small(positions="sincos2d")
    torch.testing.assert_close(bag(x), bag(halves), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(grid(x), grid(halves), atol=1e-3)


# Initialisation and gradients


@pytest.mark.parametrize(("positions", "pool"), VARIANTS)
def test_every_parameter_gets_a_gradient(positions, pool):
    torch.manual_seed(0)
    model = VisionTransformer(**SMALL, positions=positions, pool=pool)
    torch.nn.init.normal_(model.head.weight)
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
    model = VisionTransformer(16, 8, num_classes=5, dim=128, depth=2, heads=4)
    for block in model.blocks:
        matrices = [*block.attn.qkv.weight.chunk(3), block.attn.proj.weight]
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
    block, x = Block(32, 4, 64, drop_path=0.5), torch.randn(64, 3, 32)
    unchanged = (block(x) == x).flatten(1).all(dim=1).float().mean().item()
    assert 0.05 < unchanged < 0.5  # both branches dropped: a quarter
    assert not (block.eval()(x) == x).flatten(1).all(dim=1).any()


def test_drop_path_rates_rise_linearly():
    model = VisionTransformer(**{**SMALL, "depth": 5}, drop_path=0.2)
    assert [b.drop_path.rate for b in model.blocks] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert [b.drop_path.rate for b in VisionTransformer(**SMALL).blocks] == [0, 0, 0]
    assert VisionTransformer(**{**SMALL, "depth": 1}, drop_path=0.2).blocks[0].drop_path.rate == 0


@pytest.mark.parametrize("rates", [{"dropout": 0.3}, {"drop_path": 0.3}])
def test_dropout_only_in_training(rates):
    model, x = small(**rates), images()
    plain = small()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(x), plain(x))
    assert torch.equal(plain.train()(x), plain.eval()(x))
    model.train()
    assert not torch.allclose(model(x), model(x), atol=1e-3)


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
        ({"image_size": 18}, "image_size=18"),
        ({"image_size": (16, 18)}, "patch_size=4"),
        ({"dim": 30, "heads": 5, "positions": "sincos2d"}, "dim=30"),
        ({"dim": 33, "heads": 3, "positions": "sincos1d"}, "dim=33"),
    ],
)
def test_bad_shapes(changes, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformer(**{**SMALL, **changes})


def test_docstring_example():
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(VisionTransformer, globs={**vars(vit)})
    assert doctest.DocTestRunner().run(example) == doctest.TestResults(0, 2)
