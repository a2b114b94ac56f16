"""Attention: equal to its formulas, blind to what a mask hides, the same however it is computed."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vit import Attention, AttentionPool, VisionTransformer, ViTConfig
from vit.inference.explain import attention_maps
from vit.model.attention import SCORES, SelfAttention, over_keys
from vit.model.pooling import POOLINGS, ClassToken, MeanPool
from vit.model.positions import POSITIONS
from vit.model.vit import Block

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
WHOLE_MODELS = list(itertools.product(POSITIONS, POOLINGS, SCORES))


def randomised(module, std=1.0):
    """The module with every parameter random, also temperatures and what starts at 0 or 1."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module


def vit(**changes):
    """A small model of 16x16 images, 16 patches and three prefix tokens (two without a class)."""
    knobs = {"dim": 16, "depth": 2, "heads": 2, "registers": 2, **changes}
    return randomised(VisionTransformer(16, 4, 5, **knobs), std=0.2).eval()


def images(*size):
    return torch.randn(2, 3, *(size or (16, 16)), generator=torch.Generator().manual_seed(1))


def lengths(*counts, total):
    """A mask that keeps the first so many of each row."""
    return torch.arange(total) < torch.tensor(counts)[:, None]


# The kinds


def logit(layer, head, query, key):
    """How a query scores a key, from the papers, in numpy."""
    if isinstance(layer, SCORES["scaled_dot"]):
        return query @ key / math.sqrt(len(key))
    if isinstance(layer, SCORES["cosine"]):
        temperature = math.exp(-layer.log_scale[head].item())
        return query @ key / np.linalg.norm(query) / np.linalg.norm(key) / temperature
    if isinstance(layer, SCORES["additive"]):
        return layer.vector[head].detach().numpy() @ np.tanh(query + key)
    return query @ key


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", sorted(SCORES.keys() - {"differential"}))
def test_each_kind_is_its_formula(kind, masked):
    layer = randomised(SCORES[kind](2, 5)).double().requires_grad_(False)
    q, k, v = (torch.randn(2, 2, *size).double() for size in ((3, 5), (4, 5), (4, 7)))
    mask = torch.tensor([[True, False, True, True], [False, True, True, False]])[:, None, None]
    mask = mask if masked else None
    weights, mixed = layer.weights(q, k, mask), layer(q, k, v, mask)
    close = {"rtol": 1e-10}
    assert weights.dtype == mixed.dtype == torch.float64
    for b, h, i in itertools.product(range(2), range(2), range(3)):
        expected = np.exp([logit(layer, h, q[b, h, i].numpy(), key.numpy()) for key in k[b, h]])
        expected = expected * (mask[b, 0, 0].numpy() if masked else 1)
        expected = expected / expected.sum()
        np.testing.assert_allclose(weights[b, h, i], expected, **close)
        np.testing.assert_allclose(mixed[b, h, i], expected @ v[b, h].numpy(), **close)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", SCORES)
def test_weights_times_values_is_the_call(kind, masked):
    layer = randomised(SCORES[kind](4, 8))
    q, k, v = torch.randn(3, 2, 4, 7, 8).unbind(0)
    mask = lengths(5, 7, total=7)[:, None, None] if masked else None
    expected, weights = layer(q, k, v, mask), layer.weights(q, k, mask)
    assert_close(layer.mix(weights, v), expected, rtol=1e-6, atol=1e-6)
    q, k, v = (x.bfloat16() for x in (q, k, v))  # as the projections give them
    with torch.autocast("cpu", torch.bfloat16):
        coarse, rounded = layer(q, k, v, mask), layer.weights(q, k, mask)
        assert_close(layer.mix(rounded, v).float(), coarse.float(), rtol=2e-2, atol=2e-2)
    assert coarse.dtype == torch.bfloat16
    exact = layer(q.float(), k.float(), v.float(), mask)
    assert_close(coarse.float(), exact, rtol=2e-2, atol=2e-2)
    share = layer.share().item() if kind == "differential" else 0.0
    total = torch.full((2, 4, 7), 1 - share)
    for rows, atol in ((weights, 1e-6), (rounded, 2**-8)):  # 2**-8: a bfloat16 near 1
        assert_close(rows.float().sum(dim=-1), total, rtol=0, atol=atol * (1 + abs(share)))
        assert not masked or bool((rows[0, ..., 5:] == 0).all())


# Between sequences


@pytest.fixture(params=sorted(SCORES.keys() - {"differential"}))
def between(request):
    """Attention whose heads are 5 and 7 wide in a width of 10, with queries and a memory."""
    layer = randomised(Attention(10, 3, d_k=5, d_v=7, attention=request.param), std=0.5)
    return layer.requires_grad_(False), torch.randn(2, 4, 10), torch.randn(2, 6, 10)


def test_attention_has_widths_of_its_own(between):
    layer, query, memory = between
    values = layer.v(memory).view(2, 6, 3, 7)
    for mask in (None, lengths(4, 6, total=6)):
        weights, out = layer.weights(query, memory, mask), layer(query, memory, memory, mask)
        assert (weights.shape, out.shape) == ((2, 3, 4, 6), (2, 4, 10))
        assert_close(weights.sum(dim=-1), torch.ones(2, 3, 4))
        mixed = torch.einsum("bhqt,bthv->bqhv", weights, values)
        assert_close(out, layer.proj(mixed.flatten(2)), **CLOSE)


def test_keys_and_values_may_differ_and_have_no_order(between):
    layer, query, memory = between
    other, order = torch.randn(2, 6, 10), torch.randperm(6)
    out = layer(query, memory, other)
    assert_close(layer(query, memory[:, order], other[:, order]), out, **CLOSE)
    assert not torch.allclose(layer(query, memory[:, order], other), out, atol=1e-2)


def test_padded_keys_do_not_exist(between):
    layer, query, memory = between
    mask = lengths(4, 6, total=6)
    padded = layer(query, memory, memory, mask)
    for one, count in ((slice(0, 1), 4), (slice(1, 2), 6)):
        alone = memory[one, :count]
        assert_close(padded[one], layer(query[one], alone, alone), **CLOSE)
    garbage = torch.where(mask[..., None], memory, 100.0)
    assert_close(layer(query, garbage, garbage, mask), padded, **CLOSE)
    assert torch.equal(layer(query, memory, memory, mask[:, None, None]), padded)
    assert bool((layer.weights(query, memory, mask)[0, ..., 4:] == 0).all())
    assert not torch.allclose(layer(query, memory, memory), padded, atol=1e-2)


def test_a_mask_may_differ_between_queries_and_heads(between):
    layer, query, memory = between
    causal = layer(query, memory, memory, torch.ones(1, 1, 4, 6, dtype=torch.bool).tril())
    for i in range(4):
        seen = memory[:, : i + 1]
        assert_close(causal[:, i : i + 1], layer(query[:, i : i + 1], seen, seen), **CLOSE)
    mask = torch.rand(2, 3, 4, 6) < 0.5
    mask[..., 0] = True
    assert torch.equal(layer.weights(query, memory, mask) > 0, mask)


@pytest.mark.parametrize("widths", [{}, {"d_k": 5}, {"d_v": 5}])
def test_open_widths_need_a_multiple(widths):
    with pytest.raises(ValueError, match="dim=10 is not a multiple of heads=3; give d_k and d_v"):
        Attention(10, 3, **widths)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masked", [False, True])
def test_scaled_dot_is_torchs(masked, bias):
    ours = randomised(Attention(16, 4, bias=bias), std=0.3)
    theirs = nn.MultiheadAttention(16, 4, bias=bias, batch_first=True)
    state = {f"out_proj.{name}": value for name, value in ours.proj.state_dict().items()}
    for name in ours.q.state_dict():
        rows = [layer.state_dict()[name] for layer in (ours.q, ours.k, ours.v)]
        state[f"in_proj_{name}"] = torch.cat(rows)
    theirs.load_state_dict(state, strict=True)
    query, key, value = torch.randn(2, 3, 16), torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    mask = lengths(3, 5, total=5) if masked else None
    out, weights = theirs(
        query, key, value, None if mask is None else ~mask, average_attn_weights=False
    )
    assert_close(ours(query, key, value, mask), out, **CLOSE)
    assert_close(ours.weights(query, key, mask), weights, **CLOSE)


# Within a sequence


@pytest.mark.parametrize("kind", SCORES)
def test_self_attention_mixes_by_its_weights(kind):
    config = ViTConfig(dim=32, heads=4, attention=kind)
    layer, x = randomised(SelfAttention(config), std=0.2), torch.randn(2, 7, 32)
    mask = lengths(5, 7, total=7)
    q, k, v = layer.project(x, None)
    mixed = layer.score.mix(layer.score.weights(q, k, over_keys(mask)), v)
    assert_close(layer(x, mask=mask), layer.proj(mixed.transpose(1, 2).flatten(2)), **CLOSE)


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("build", [SelfAttention, Block])
def test_masked_tokens_do_not_exist(build, kind):
    config = ViTConfig(dim=32, heads=4, mlp_dim=64, attention=kind)
    layer, x = randomised(build(config), std=0.2), torch.randn(2, 7, 32)
    padded = layer(x, mask=lengths(5, 5, total=7))[:, :5]
    assert_close(padded, layer(x[:, :5]), **CLOSE)
    assert not torch.allclose(padded, layer(x)[:, :5], atol=1e-3)


def test_attention_maps_are_what_the_blocks_use():
    model, calls = vit(positions="rope2d", attention="cosine"), []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda block, args: calls.append((block, args)))
    mask = lengths(11, 16, total=16)
    for given in (None, mask):
        calls.clear()
        maps = attention_maps(model, images(), given)
        assert [m.shape for m in maps] == [(2, 2, 19, 19)] * 2
        for m, (block, (x, rope, tokens, _)) in zip(maps, calls, strict=True):
            for given_rope, same in ((rope, True), (None, False)):
                q, k, _ = block.attn.project(block.norm1(x), given_rope)
                weights = block.attn.score.weights(q, k, over_keys(tokens))
                assert torch.allclose(m, weights, atol=1e-6) == same
            assert_close(m.sum(dim=-1), torch.ones(2, 2, 19))
            assert not m.requires_grad
            assert given is None or bool((m[0, ..., 14:] == 0).all())
            assert bool((m[0, ..., :14] > 0).all() & (m[1] > 0).all())
        assert torch.equal(calls[0][1][0], model.embed(images(), given)[0])


# Pooling


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_sees_existing_patches_alone(pooling, prefix):
    pool, tokens = randomised(POOLINGS[pooling](ViTConfig(dim=16, heads=4))), torch.randn(2, 9, 16)
    mask = lengths(6, 9, total=9)
    out = pool(tokens, prefix, mask)
    assert_close(pool(tokens, prefix, torch.ones_like(mask)), pool(tokens, prefix), **CLOSE)
    assert_close(out[:1], pool(tokens[:1, :6], prefix), **CLOSE)
    if isinstance(pool, ClassToken):
        assert torch.equal(out, tokens[:, 0])
        return
    order = torch.cat([torch.arange(prefix), prefix + torch.randperm(9 - prefix)])
    assert_close(pool(tokens[:, order], prefix, mask[:, order]), out, **CLOSE)
    garbage = torch.where(mask[..., None], tokens, 100.0)
    garbage[:, :prefix] = -100.0
    assert_close(pool(garbage, prefix, mask), out, **CLOSE)
    assert not torch.allclose(pool(tokens, prefix)[0], out[0], atol=1e-3)
    if isinstance(pool, MeanPool):
        assert_close(out[0], tokens[0, prefix:6].mean(dim=0), **CLOSE)


def test_attention_pool_mixes_by_its_weights():
    pool, tokens = randomised(AttentionPool(16, 4), std=0.3), torch.randn(2, 9, 16)
    for mask in (None, lengths(6, 9, total=9)):
        weights = pool.weights(tokens, 2, mask)
        assert weights.shape == (2, 4, 7)
        assert_close(weights.sum(dim=-1), torch.ones(2, 4))
        assert mask is None or bool((weights[0, :, 4:] == 0).all())
        values = pool.attention.v(tokens[:, 2:]).view(2, 7, 4, 4)
        mixed = torch.einsum("bht,bthv->bhv", weights, values).flatten(1)
        assert_close(pool(tokens, 2, mask), pool.attention.proj(mixed), **CLOSE)


# Whole models


@pytest.mark.parametrize(("positions", "pool", "attention"), WHOLE_MODELS)
def test_a_padded_image_is_the_smaller_image(positions, pool, attention):
    model = vit(positions=positions, pool=pool, attention=attention)
    small, both = images(8, 12)[:1], images()
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    mask[0, 2:] = mask[0, :, 3:] = False
    for noise in (0.0, 1.0, 100.0):
        both[0] = noise * torch.randn(3, 16, 16)
        both[0, :, :8, :12] = small
        logits = model(both, mask.flatten(1))
        assert_close(logits[:1], model(small), **CLOSE)
        assert_close(logits[1:], model(both[1:]), **CLOSE)
        assert not torch.allclose(logits[0], model(both)[0], atol=1e-3)


@pytest.mark.parametrize("size", [(20, 16), (16, 20), (14, 16), (16, 2)])
def test_images_that_do_not_fit_are_refused(size):
    message = f"images of {size[0]}x{size[1]} px: .* whole patches of 4 px, up to 16x16"
    with pytest.raises(ValueError, match=message):
        vit()(images(*size))


@pytest.mark.parametrize("attention", SCORES)
def test_checkpointed_activations_give_the_same_bits(attention):
    knobs = {"dropout": 0.1, "drop_path": 0.3, "patch_dropout": 0.25, "positions": "rope2d"}
    model, calls, results = vit(**knobs, attention=attention).train(), [], []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda block, args: calls.append(block))
    for model.checkpoint_activations in (False, True):
        model.zero_grad()
        torch.manual_seed(3)
        logits = model(images(), lengths(11, 16, total=16))
        assert len(calls) == 2
        logits.square().sum().backward()
        results.append([logits, *(parameter.grad.clone() for parameter in model.parameters())])
        assert len(calls) == (4 if model.checkpoint_activations else 2)
        calls.clear()
    assert all(map(torch.equal, *results))
    model.eval()(images()).sum().backward()
    assert len(calls) == 2
