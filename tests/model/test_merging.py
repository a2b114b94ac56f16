"""Token merging: equal to its rules written plainly, exact where patches repeat, exportable."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vit.config.model import ViTConfig
from vit.model.attention import SCORES
from vit.model.merging import MergingTransformer, matching, merged
from vit.model.pooling import POOLINGS
from vit.model.positions import POSITIONS, rotary
from vit.model.vit import VisionTransformer

pytestmark = pytest.mark.slow

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
WHOLE_MODELS = list(itertools.product(POSITIONS, POOLINGS, SCORES))


def vit(**changes):
    """A small random model of 16x16 images in 16 patches, with two registers."""
    knobs = {"dim": 16, "depth": 3, "heads": 2, "registers": 2, "layer_scale": 1.0, **changes}
    torch.manual_seed(0)
    model = VisionTransformer(16, 4, 5, **knobs).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False)


def images(batch=2):
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def repeating(batch=2):
    """Images of two different patches, each eight times.

    Wherever half of the tokens go, in three blocks, each has one of its kind among the others.
    """
    generator = torch.Generator().manual_seed(2)
    kinds = torch.randn(batch, 2, 3, 4, 4, generator=generator)
    which = torch.tensor([0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 0, 1, 0, 0, 1, 1])
    rows = kinds[:, which].unflatten(1, (4, 4))  # B row column C 4 4
    return rows.permute(0, 3, 1, 4, 2, 5).reshape(batch, 3, 16, 16)


# The rules, written plainly


def pairs(keys, r):
    """Which of the places of `keys` (N, K) goes into which, and the order of those that stay."""
    links = []
    for i in range(0, len(keys), 2):
        cosines = {
            j: torch.cosine_similarity(keys[i], keys[j], dim=0).item()
            for j in range(1, len(keys), 2)
        }
        best = max(cosines, key=cosines.__getitem__)
        links.append((cosines[best], i, best))
    goes = {i: j for _, i, j in sorted(links, reverse=True)[:r]}
    even = [i for i in range(0, len(keys), 2) if i not in goes]
    return goes, even + list(range(1, len(keys), 2))


def plainly(model, image, r):
    """Logits (K,) of one image (1, C, H, W), token by token, and the patches that each stands for.

    A token that stands for n patches is there n times wherever it is looked at.
    """
    x, angles, _ = model.embed(image)
    first = model.prefix
    x, groups = list(x[0]), [[i] for i in range(x.shape[1] - first)]
    for block in model.blocks:
        turns = None
        if angles is not None:
            turns = rotary(torch.stack([angles[group].mean(dim=0) for group in groups]), first)
        before = torch.stack(x)[None]
        q, k, v = block.attn.project(block.norm1(before), turns)
        times = torch.tensor([1] * first + [len(group) for group in groups])
        many_k, many_v = (part.repeat_interleave(times, dim=2) for part in (k, v))
        mixed = block.attn.score(q, many_k, many_v).transpose(1, 2).flatten(2)
        x = list((before + block.ls1(block.attn.proj(mixed)))[0])
        if block is not model.blocks[-1] or model.queries is None:
            goes, order = pairs(k[0, :, first:].mean(dim=0), min(r, len(groups) // 2))
            patches, old = x[first:], groups
            x, groups = x[:first], []
            for place in order:
                places = [place, *(i for i in goes if goes[i] == place)]
                groups.append([patch for i in places for patch in old[i]])
                x.append(sum(len(old[i]) * patches[i] for i in places) / len(groups[-1]))
        x = [token + block.ls2(block.mlp(block.norm2(token))) for token in x]
    many = [token for token, group in zip(x[first:], groups, strict=True) for _ in group]
    x = model.norm(torch.stack([*x[:first], *many])[None])
    return model.forward_head(x)[0], groups


@pytest.mark.parametrize(("positions", "pool", "attention"), WHOLE_MODELS)
def test_logits_are_those_of_the_rules(positions, pool, attention):
    knobs = {"positions": positions, "pool": pool, "attention": attention}
    model, both = vit(**knobs, qk_norm=True, distillation_token=pool == "mean"), images()
    logits = merged(model, 4)(both)
    for i in range(2):
        expected, groups = plainly(model, both[i : i + 1], 4)
        assert sorted(itertools.chain(*groups)) == list(range(16))
        assert len(groups) == (8 if pool == "cls" else 4)
        assert_close(logits[i], expected, **CLOSE)
    told_apart = 1e-4 if attention == "differential" else 1e-2
    assert not torch.allclose(logits, model(both), atol=told_apart)


@pytest.mark.parametrize(("count", "r"), [(2, 1), (3, 1), (9, 1), (9, 4), (16, 5), (16, 8)])
def test_the_most_similar_pairs_merge(count, r):
    keys = torch.randn(3, count, 7, generator=torch.Generator().manual_seed(count))
    values = torch.randn(3, count, 5, generator=torch.Generator().manual_seed(r))
    out = matching(keys, r)(values)
    assert out.shape == (3, count - r, 5)
    for one in range(3):
        goes, order = pairs(keys[one], r)
        for row, place in zip(out[one], order, strict=True):
            parts = [place, *(i for i in goes if goes[i] == place)]
            assert_close(row, values[one, parts].sum(dim=0), **CLOSE)


# Where merging is exact


@pytest.mark.parametrize("attention", SCORES)
@pytest.mark.parametrize("pool", POOLINGS)
def test_patches_that_repeat_merge_without_a_trace(pool, attention):
    model = vit(positions="none", pool=pool, attention=attention)
    both = repeating()
    assert_close(merged(model, 8)(both), model(both), **CLOSE)
    assert not torch.allclose(merged(model, 8)(images()), model(images()), atol=1e-3)


@pytest.mark.parametrize("attention", SCORES)
@pytest.mark.parametrize("pool", POOLINGS)
def test_in_bfloat16_too(pool, attention):
    for registers in (0, 2):  # without any tokens are in bfloat16 themselves
        knobs = {"registers": registers, "pool": pool, "attention": attention}
        model, both = vit(positions="none", **knobs), repeating()
        with torch.autocast("cpu", torch.bfloat16):
            coarse = merged(model, 8)(both)
            assert torch.isfinite(merged(vit(positions="rope2d", **knobs), 8)(images())).all()
        assert coarse.dtype == torch.bfloat16
        assert_close(coarse.float(), model(both), rtol=2e-2, atol=2e-2)


def test_cosines_near_one_are_told_apart():
    generator = torch.Generator().manual_seed(0)
    keys = (torch.ones(2, 16, 8) + 0.05 * torch.randn(2, 16, 8, generator=generator)).bfloat16()
    values = torch.eye(16).expand(2, -1, -1)
    expected = matching(keys.float(), 4)(values)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(matching(keys, 4)(values), expected)


def test_a_count_is_as_many_tokens():
    tokens, counts = torch.randn(2, 6, 16), torch.tensor([1, 1, 1, 2, 1, 4])
    many, log_counts = tokens.repeat_interleave(counts, dim=1), counts.log().expand(2, -1)
    which = torch.arange(6).repeat_interleave(counts)
    for pooling in POOLINGS.values():
        torch.manual_seed(0)
        pool = pooling(ViTConfig(dim=16, heads=4))
        assert_close(pool(tokens, 2, log_counts), pool(many, 2), **CLOSE)
        summed = torch.zeros(2, 6).index_add(1, which, pool.reading(many, 2))
        assert_close(pool.reading(tokens, 2, log_counts), summed, **CLOSE)
    for kind in SCORES.values():
        layer, q = kind(4, 4), torch.randn(2, 4, 3, 4)
        k = v = tokens.view(2, 6, 4, 4).transpose(1, 2)
        k_many = k.repeat_interleave(counts, dim=2)
        expected = layer(q, k_many, k_many)
        assert_close(layer(q, k, v, log_counts[:, None, None]), expected, **CLOSE)
        assert_close(
            layer.mix(layer.weights(q, k, log_counts[:, None, None]), v), expected, **CLOSE
        )


# How many


@pytest.mark.parametrize(
    ("r", "pool", "counts"),
    [
        (3, "cls", [13, 10, -2]),  # of the last block the class token alone
        (3, "mean", [13, 10, 7]),
        (6, "attention", [10, 5, 3]),  # at most half
        (8, "mean", [8, 4, 2]),
    ],
)
def test_each_block_has_fewer_patches(r, pool, counts):
    model, seen, masks = vit(pool=pool), [], []
    for block in model.blocks:
        block.mlp.register_forward_pre_hook(lambda mlp, args: seen.append(args[0].shape[1]))
    model.pool.register_forward_pre_hook(lambda pool, args: masks.append(args[2]))
    merged(model, r)(images())
    assert [tokens - model.prefix for tokens in seen] == counts
    sizes = masks[0].exp()
    assert bool((sizes[:, : model.prefix] == 1).all())
    assert_close(sizes[:, model.prefix :].sum(dim=1), torch.full((2,), 16.0))
    seen.clear()
    merged(model, r)(images()[..., :8, :12])  # a smaller image: 6 patches
    assert seen[0] - model.prefix == 6 - min(r, 3)


@pytest.mark.parametrize("positions", POSITIONS)
def test_no_patch_merged_is_the_model(positions):
    for pool in POOLINGS:
        model = vit(positions=positions, pool=pool)
        assert merged(model, 0) is model
        assert torch.equal(MergingTransformer(model, 0)(images()), model(images()))


def test_what_cannot_be_merged_is_refused():
    model = vit().train()
    for r in (-1, 9):
        with pytest.raises(ValueError, match=f"0 to 8 of the model's 16 patches, not {r}"):
            merged(model, r)
    merging = merged(model, 8)
    assert not model.training
    with pytest.raises(ValueError, match="without a mask of patches"):
        merging(images(), torch.ones(2, 16, dtype=torch.bool))


@pytest.mark.parametrize("pool", POOLINGS)
@pytest.mark.parametrize("positions", ["learned", "rope2d"])
def test_an_exported_model_takes_any_batch(positions, pool):
    merging = merged(vit(positions=positions, pool=pool), 3)
    batch = {"images": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(merging, (images(3),), dynamic_shapes=batch).module()
    for count in (1, 5):
        assert_close(exported(images(count)), merging(images(count)), rtol=0, atol=1e-6)
