"""Patch embedding and positions: equal to their formulas, and following the coordinates."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import images, small
from torch import nn

from vit.config.model import ViTConfig
from vit.model.attention import SelfAttention, rotate
from vit.model.layers import PatchEmbed
from vit.model.positions import POSITIONS, Rope2d, grid_coordinates, rotary


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
    table = POSITIONS["sincos2d"]((height, width), dim, heads=4).table()
    assert table.shape == (1, height * width, dim)
    np.testing.assert_allclose(table[0].double(), expected, rtol=0, atol=1e-7)


def test_sincos1d_by_hand():
    table = POSITIONS["sincos1d"]((3, 4), 8, heads=2).table()[0]
    for i, j in itertools.product(range(12), range(4)):
        angle = i / 10000 ** (j / 3)
        assert table[i, j].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert table[i, 4 + j].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_additive_positions_follow_the_coordinates():
    positions = POSITIONS["learned"]((3, 4), 8, heads=2)
    coordinates = grid_coordinates(3, 4).flatten(0, 1)
    patches, table = torch.randn(2, 12, 8), positions.table()
    everything, angles = positions(patches, coordinates, table)
    assert angles is None
    torch.testing.assert_close(everything, patches + table)
    kept = torch.tensor([[7, 0, 11], [2, 5, 3]])  # other patches of each image
    batch = torch.arange(2)[:, None]
    some, _ = positions(patches[batch, kept], coordinates[kept], table)
    torch.testing.assert_close(some, everything[batch, kept])


def turns(coordinates, prefix=0):
    """What rope2d turns two heads of width 8 by."""
    _, angles = Rope2d((8, 8), 16, heads=2)(torch.empty(0), coordinates, None)
    return rotary(angles, prefix)


def test_rope2d_by_hand():
    torch.manual_seed(0)
    coordinates, q = grid_coordinates(3, 4).flatten(0, 1), torch.randn(2, 2, 14, 8)
    out = rotate(q, turns(coordinates, prefix=2))
    assert torch.equal(out[:, :, :2], q[:, :, :2])
    torch.testing.assert_close(out.norm(dim=-1), q.norm(dim=-1))
    for i, (y, x) in enumerate(itertools.product(range(3), range(4)), start=2):
        turn = np.exp(1j * np.array([x, x / 10, y, y / 10]))
        pairs = (q[:, :, i, :4] + 1j * q[:, :, i, 4:]).numpy() * turn
        expected = np.concatenate([pairs.real, pairs.imag], axis=-1)
        np.testing.assert_allclose(out[:, :, i], expected, rtol=0, atol=1e-6)


def test_rope2d_knows_differences_alone():
    torch.manual_seed(0)
    q, k, here = *torch.randn(2, 3, 2, 12, 8), grid_coordinates(3, 4).flatten(0, 1)
    there, plain = here + torch.tensor([2, 3]), rotate(q, turns(here))
    logits = plain @ rotate(k, turns(here)).mT
    again = rotate(q, turns(there)) @ rotate(k, turns(there)).mT
    torch.testing.assert_close(again, logits, rtol=0, atol=1e-5)
    for step in torch.eye(2, dtype=torch.int64):
        other = rotate(q, turns(here + step)) @ rotate(k, turns(here)).mT
        assert not torch.allclose(other, logits, atol=0.1)
    kept = torch.tensor([[7, 0, 11], [2, 5, 3], [1, 2, 3]])  # other patches of each image
    some = (x.take_along_dim(kept[:, None, :, None], dim=2) for x in (q, plain))
    assert torch.equal(rotate(next(some), turns(here[kept])), next(some))


def test_self_attention_turns_queries_and_keys():
    torch.manual_seed(0)
    layer, x = SelfAttention(ViTConfig(dim=16, heads=2, qk_norm=True)), torch.randn(2, 12, 16)
    nn.init.normal_(layer.q_norm.weight)
    nn.init.normal_(layer.k_norm.weight)
    here = grid_coordinates(3, 4).flatten(0, 1)
    one, two = (layer(x, turns(where)) for where in (here, here + torch.tensor([2, 3])))
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(layer(x), one, atol=1e-2)


@pytest.mark.parametrize("positions", POSITIONS)
def test_only_learned_positions_are_trained(positions):
    model = small(positions=positions)
    assert ("pos_embed" in dict(model.named_parameters())) == positions.startswith("learned")
    assert ("pos_embed" in model.state_dict()) == (positions[:4] not in ("rope", "none"))
    assert "coordinates" not in model.state_dict()


def test_without_positions_patches_are_a_bag():
    x = images()
    halves = torch.cat([x[..., 8:], x[..., :8]], dim=-1)  # the same patches in another order
    bag = small(positions="none")
    torch.testing.assert_close(bag(x), bag(halves), rtol=1e-5, atol=1e-5)
    for positions in POSITIONS.keys() - {"none"}:
        grid = small(positions=positions)
        assert not torch.allclose(grid(x), grid(halves), atol=1e-3), positions
