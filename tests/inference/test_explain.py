"""Explanations: their formulas, for every kind of model, by the same logits as `forward`."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from vit.inference.explain import (
    attention_maps,
    class_attention,
    detached_norm,
    heat,
    recorded_forward,
    relevance,
    rollout,
)
from vit.model.attention import SCORES
from vit.model.layers import MLPS, NORMS
from vit.model.pooling import POOLINGS
from vit.model.positions import POSITIONS
from vit.model.vit import VisionTransformer

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
ROWS, COLUMNS, PATCH = 4, 6, 4
REGISTRIES = (POSITIONS, POOLINGS, SCORES, NORMS, MLPS)
SOME = [tuple(c) for _, *c in zip(range(6), *map(itertools.cycle, REGISTRIES), strict=False)]
CLASSES = torch.tensor([3, 1])


def model_with(**knobs) -> VisionTransformer:
    """A small model of 16x24 images whose every parameter is random."""
    torch.manual_seed(0)
    shape = {"num_classes": 5, "dim": 24, "depth": 2, "heads": 3, **knobs}
    model = VisionTransformer(image_size=(ROWS * PATCH, COLUMNS * PATCH), patch_size=PATCH, **shape)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float(name.endswith("norm.weight")), std=0.3)
    return model.eval()


def images(height: int = ROWS, width: int = COLUMNS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, height * PATCH, width * PATCH, generator=generator)


def reading(model: VisionTransformer, tokens: torch.Tensor) -> torch.Tensor:
    """How much the logits take of each token (B, T), from the definitions of the poolings."""
    weights = torch.zeros(tokens.shape[:2])
    if model.config.pool == "cls":
        weights[:, 0] = 1
    elif model.config.pool == "mean":
        weights[:, model.prefix :] = 1 / (ROWS * COLUMNS)
    else:
        weights[:, model.prefix :] = model.pool.weights(tokens, model.prefix).mean(dim=1)
    return weights.detach()


def last_tokens(model: VisionTransformer) -> torch.Tensor:
    """What the pooling gets, by the way of `forward`."""
    return model.forward_features(images()).detach()


# The explicit path


@pytest.mark.parametrize("attention", SCORES)
@pytest.mark.parametrize("pool", POOLINGS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_attention_that_can_be_differentiated_gives_the_same_logits(positions, pool, attention):
    mask = torch.arange(ROWS * COLUMNS) < torch.tensor([13, 24])[:, None]
    for registers, distillation, norm in itertools.product((0, 2), (False, True), NORMS):
        model = model_with(
            positions=positions, pool=pool, attention=attention, registers=registers, norm=norm,
            distillation_token=distillation, layer_scale=0.5, qk_norm=registers > 0,
        )  # fmt: skip
        for given in (None, mask):
            logits, maps, pooled = recorded_forward(model, images(), given)
            assert_close(logits, model(images(), given), **CLOSE)
            for ours, theirs in zip(maps, attention_maps(model, images(), given), strict=True):
                assert_close(ours, theirs, **CLOSE)
            assert_close(pooled.sum(dim=1), torch.ones(2))
            assert given is None or not pooled[0, model.prefix + 13 :].any()
            slopes = torch.autograd.grad(logits.square().sum(), maps)
            assert all(bool(slope.any()) for slope in slopes)


@pytest.mark.parametrize("norm", NORMS)
def test_a_detached_norm_gives_all_of_its_output_to_its_input(norm):
    """x times its gradient is the output without the bias; with the true gradient it is nothing."""
    torch.manual_seed(0)
    layer = NORMS[norm](16, eps=1e-6).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(3, 7, 16, dtype=torch.float64, requires_grad=True)
    bias = getattr(layer, "bias", 0)
    for call, share in ((lambda: detached_norm(layer, x), 1), (lambda: layer(x), 0)):
        assert_close(call(), layer(x))
        length = (call() - bias).square().sum()
        (slope,) = torch.autograd.grad(length, x)
        gain = (slope * x).sum() / length
        assert gain.item() == pytest.approx(2 * share, abs=1e-5)


# The maps


def all_maps(model: VisionTransformer, x: torch.Tensor, classes: torch.Tensor) -> list:
    return [class_attention(model, x), rollout(model, x), relevance(model, x, classes)]


@pytest.mark.parametrize("distillation", [False, True])
@pytest.mark.parametrize("names", SOME, ids="-".join)
def test_every_kind_is_explained(names, distillation):
    positions, pool, attention, norm, mlp = names
    model = model_with(
        positions=positions, pool=pool, attention=attention, norm=norm, mlp=mlp, registers=2,
        distillation_token=distillation, layer_scale=0.5, qk_norm=True,
    )  # fmt: skip
    for size in ((ROWS, COLUMNS), (3, 2)):
        attended, rolled, relevant = all_maps(model, images(*size), CLASSES)
        assert attended.shape == (2, 2, 3, *size)
        assert rolled.shape == relevant.shape == (2, *size)
        for values in (attended, rolled):
            assert bool((values >= 0).all() & (values.sum(dim=(-2, -1)) < 1 + 1e-6).all())
            assert attention == "differential" or bool((values > 0).all())
        assert bool((relevant >= 0).all())
        assert bool((relevant.amax(dim=(1, 2)) > relevant.amin(dim=(1, 2))).all())


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("pool", POOLINGS)
def test_class_attention_is_a_row_of_the_maps(pool, registers):
    model = model_with(pool=pool, registers=registers, distillation_token=True)
    maps, attended = attention_maps(model, images()), class_attention(model, images())
    weights = reading(model, last_tokens(model))
    for layer, head, i in itertools.product(range(2), range(3), range(2)):
        row = weights[i] @ maps[layer][i, head]
        if pool == "cls":
            assert torch.equal(row, maps[layer][i, head, 0])
        row = row[model.prefix :].view(ROWS, COLUMNS)
        assert_close(attended[i, layer, head], row, **CLOSE)


@pytest.mark.parametrize("distillation", [False, True])
@pytest.mark.parametrize("pool", POOLINGS)
def test_rollout_is_the_product_of_the_layers(pool, distillation):
    model = model_with(pool=pool, registers=2, depth=3, distillation_token=distillation)
    maps = [weights.double().numpy() for weights in attention_maps(model, images())]
    weights = reading(model, last_tokens(model)).double().numpy()
    if distillation:  # the mean of what the pooled tokens and the distillation token say
        weights = (weights + np.eye(weights.shape[1])[int(pool == "cls")]) / 2
    found = rollout(model, images())
    for i in range(2):
        product = np.eye(weights.shape[1])
        for layer in maps:
            mixed = layer[i].mean(axis=0) + np.eye(len(product))
            product = (mixed / mixed.sum(axis=1, keepdims=True)) @ product
        expected = (weights[i] @ product)[model.prefix :].reshape(ROWS, COLUMNS)
        np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("distillation", [False, True])
@pytest.mark.parametrize("pool", POOLINGS)
def test_relevance_is_its_recursion(pool, distillation):
    """R <- R + mean of (gradient * attention)+ over heads @ R, one image at a time."""
    model = model_with(pool=pool, registers=2, depth=3, distillation_token=distillation)
    weights = reading(model, last_tokens(model))
    if distillation:
        weights = (weights + torch.eye(weights.shape[1])[int(pool == "cls")]) / 2
    found = relevance(model, images(), CLASSES)
    for i in range(2):
        logits, maps, _ = recorded_forward(model, images()[i : i + 1])
        for weight in maps:
            weight.retain_grad()
        logits[0, CLASSES[i]].backward()
        flow = torch.eye(weights.shape[1])
        for weight in maps:
            flow = flow + (weight.grad * weight)[0].clamp(min=0).mean(dim=0) @ flow
        expected = (weights[i] @ flow)[model.prefix :].view(ROWS, COLUMNS)
        assert_close(found[i], expected.detach(), rtol=1e-4, atol=1e-6)


def test_relevance_of_one_layer_by_finite_differences():
    """The class token's row of each head, raised a little, with what the norms divide by held."""
    model = model_with(depth=1, heads=2, dim=16).double()
    layer, x = model.blocks[0], model.embed(images().double())[0].detach()
    q, k, value = layer.attn.project(layer.norm1(x), None)
    attention = layer.attn.score.weights(q, k).detach()
    held: list[torch.Tensor] = []

    def norm(module, x, number):
        x = x - x.mean(dim=-1, keepdim=True)
        if len(held) == number:
            held.append((x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt())
        return x / held[number] * module.weight + module.bias

    @torch.no_grad()
    def logits(weights):
        mixed = layer.attn.proj((weights @ value).transpose(1, 2).flatten(2))
        y = x + mixed
        y = y + layer.mlp(norm(layer.norm2, y, 0))
        return model.head(norm(model.norm, y, 1)[:, 0])

    assert_close(logits(attention), model(images().double()))
    expected = torch.zeros(2, ROWS * COLUMNS, dtype=torch.float64)
    for head, patch in itertools.product(range(2), range(ROWS * COLUMNS)):
        step = torch.zeros_like(attention)
        step[:, head, 0, 1 + patch] = 1e-6
        slope = (logits(attention + step) - logits(attention - step)) / 2e-6
        slope = slope.gather(1, CLASSES[:, None])[:, 0]
        expected[:, patch] += (slope * attention[:, head, 0, 1 + patch]).clamp(min=0) / 2
    found = relevance(model, images().double(), CLASSES).flatten(1)
    assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert bool((found == 0).any() & (found > 0).any())


def test_images_are_explained_one_by_one_and_the_model_stays_as_it_was():
    model = model_with(pool="mean")
    both = all_maps(model, images(), CLASSES)
    for parameter in model.parameters():
        assert parameter.grad is None
        parameter.requires_grad_(False)
    x = images()
    with torch.no_grad():
        for i in range(2):
            alone = all_maps(model, x[i : i + 1], CLASSES[i : i + 1])
            for values, value in zip(both, alone, strict=True):
                assert not value.requires_grad
                assert_close(value[0], values[i], rtol=1e-4, atol=1e-6)
    assert not x.requires_grad
    assert not torch.allclose(relevance(model, images(), 0 * CLASSES), both[2], rtol=1e-2)


def test_heat_spans_zero_to_one():
    values = torch.rand(3, 2, ROWS, COLUMNS) * torch.tensor([1e-4, 1.0, 1e4])[:, None, None, None]
    heats = heat(values)
    assert torch.equal(heats.amin((-2, -1)), torch.zeros(3, 2))
    assert torch.equal(heats.amax((-2, -1)), torch.ones(3, 2))
    assert torch.equal(heats.flatten(2).argsort(), values.flatten(2).argsort())
    for flat in (0.0, 1 / 24, -3.0):
        wobbly = torch.full((2, ROWS, COLUMNS), flat) * (1 + 1e-7 * torch.rand(2, ROWS, COLUMNS))
        assert not heat(wobbly).any()
