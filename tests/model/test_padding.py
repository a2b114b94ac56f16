"""The model on padded images: the logits and explanations of each image alone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from shapes import BOX, PATCH, batch

from vit.data.padding import mask_to_pixels, unpadded
from vit.inference.explain import (
    attention_distance,
    class_attention,
    heat_of_each,
    relevance,
    rollout,
)
from vit.model.attention import SCORES
from vit.model.pooling import POOLINGS
from vit.model.positions import POSITIONS
from vit.model.vit import VisionTransformer

CASES = [
    {"positions": positions, "pool": pool, "attention": attention}
    for positions, pool, attention in itertools.product(POSITIONS, POOLINGS, SCORES)
]
CASES += [{"pool": pool, "registers": 2, "distillation_token": True} for pool in POOLINGS]


def model_of(**knobs: Any) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(BOX, PATCH, 5, dim=16, depth=2, heads=2, **knobs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("knobs", CASES, ids=lambda knobs: "-".join(map(str, knobs.values())))
def test_a_padded_image_has_the_logits_of_the_image_alone(knobs):
    model, (images, mask) = model_of(**knobs), batch()
    with torch.no_grad():
        together = model(images, mask)
        alone = torch.cat([model(image[None]) for image in unpadded(images, mask)])
        noisy = torch.where(mask_to_pixels(mask, *BOX), images, torch.randn_like(images))
        unmasked = model(images)
        assert torch.equal(model(noisy, mask)[:1], together[:1])
        torch.testing.assert_close(model(noisy, mask), together, rtol=0, atol=1e-5)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert (unmasked[1:] - together[1:]).abs().amax(dim=1).min() > 1e-4  # the mask is what does it


@pytest.mark.parametrize("pool", sorted(POOLINGS))
def test_a_padded_image_is_explained_as_the_image_alone(pool):
    model, (images, mask) = model_of(pool=pool, registers=1), batch()
    classes = torch.arange(6) % 5
    found = [
        heat_of_each(class_attention(model, images, mask), mask),
        heat_of_each(rollout(model, images, mask), mask),
        heat_of_each(relevance(model, images, classes, mask), mask),
    ]
    far = attention_distance(model, images, mask)
    per_image, patches = [], mask.sum(dim=1).double()
    for i, image in enumerate(unpadded(images, mask)):
        alone, label = image[None], classes[i : i + 1]
        expected = [
            heat_of_each(class_attention(model, alone), None)[0],
            heat_of_each(rollout(model, alone), None)[0],
            heat_of_each(relevance(model, alone, label), None)[0],
        ]
        for maps, one in zip(found, expected, strict=True):
            np.testing.assert_allclose(maps[i], one, rtol=0, atol=2e-3)
        assert found[0][i].shape == (2, 2, image.shape[1] // PATCH, image.shape[2] // PATCH)
        per_image.append(attention_distance(model, images[i : i + 1], mask[i : i + 1]).double())
    mean = sum(w * d for w, d in zip(patches, per_image, strict=True)) / patches.sum()
    torch.testing.assert_close(far.double(), mean, rtol=1e-4, atol=1e-4)
