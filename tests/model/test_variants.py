"""Every knob of the model, alone and together: timm agrees, every weight learns, bits survive."""

from __future__ import annotations

import itertools
import os
import re
import shutil

import pytest
import timm
import torch

from vit.artifacts.checkpoint import FORMAT_VERSION
from vit.config.resume import MIGRATIONS, migrate
from vit.inference.explain import attention_maps
from vit.model.attention import SCORES
from vit.model.layers import MLPS, NORMS
from vit.model.pooling import POOLINGS
from vit.model.positions import POSITIONS
from vit.model.vit import VisionTransformer
from vit.model.weights import timm_kwargs

pytestmark = pytest.mark.slow

SMALL = {
    "image_size": 16, "patch_size": 4, "num_classes": 5, "dim": 24, "depth": 2, "heads": 3,
}  # fmt: skip
KNOBS = {
    "registers": {"registers": 4},
    "registers without a class token": {"registers": 3, "pool": "mean"},
    "layer scale": {"layer_scale": 1e-2},
    "qk norm": {"qk_norm": True},
    "qk norm, rms": {"qk_norm": True, "norm": "rmsnorm"},
    "no qkv bias": {"qkv_bias": False},
    "swiglu": {"mlp": "swiglu", "mlp_dim": 80},
    "rms norm": {"norm": "rmsnorm"},
    "a norm before the blocks": {"pre_norm": True, "norm_eps": 1e-5},
    "a norm after the pooling": {"pooled_norm": True, "pool": "mean"},
    "tanh": {"mlp": "gelu_tanh"},
    "sigmoid": {"mlp": "quick_gelu"},
    "not square": {"image_size": (224, 288), "patch_size": 16, "pool": "mean"},
    "all": {
        "registers": 4, "layer_scale": 0.1, "qk_norm": True, "qkv_bias": False, "mlp": "swiglu",
        "norm": "rmsnorm", "positions": "sincos2d", "image_size": (16, 24),
    },
}  # fmt: skip


def model_with(**knobs: object) -> VisionTransformer:
    """A small model whose every parameter is random, also those that start at 0 or 1."""
    torch.manual_seed(0)
    model = VisionTransformer(**{**SMALL, **knobs})  # type: ignore[arg-type]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def images_for(model: VisionTransformer) -> torch.Tensor:
    height, width = model.config.image_size
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS)
def test_timm_reads_our_weights_and_agrees(knobs):
    model = model_with(**knobs).eval()
    theirs = timm.models.VisionTransformer(**timm_kwargs(model.config)).eval()
    theirs.load_state_dict(model.state_dict(), strict=True)
    images = images_for(model)
    torch.testing.assert_close(model(images), theirs(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", SCORES)
@pytest.mark.parametrize("pool", POOLINGS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_every_combination_trains_and_survives(positions, pool, attention):
    place = list(POSITIONS).index(positions) + list(POOLINGS).index(pool)
    for norm, mlp in zip(NORMS, list(MLPS)[place % 3 :], strict=False):
        model = model_with(
            positions=positions, pool=pool, attention=attention, norm=norm, mlp=mlp,
            registers=2, layer_scale=0.1, qk_norm=True,
            pre_norm=place % 2 == 0, pooled_norm=place % 4 < 2,
        )  # fmt: skip
        images = images_for(model)
        logits = model(images)
        assert logits.shape == (2, 5)
        logits.square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, (norm, mlp, name)
            assert parameter.grad.any(), (norm, mlp, name)

        twin = VisionTransformer(model.config)
        assert not torch.equal(twin(images), logits)
        twin.load_state_dict(model.state_dict(), strict=True)
        assert torch.equal(twin.eval()(images), model.eval()(images))
        with torch.autocast("cpu", torch.bfloat16):
            half = model(images).float()
        assert (half - model(images)).abs().max() < 0.15 * logits.abs().max(), (norm, mlp)


@pytest.mark.parametrize(
    ("key", "name"),
    [("positions", name) for name in POSITIONS if "rope2d" in name]
    + [("pool", "attention"), ("pool", "map")]
    + [("attention", name) for name in SCORES if name != "scaled_dot"],
)
def test_what_timm_lacks_is_refused(key, name):
    with pytest.raises(
        ValueError, match=re.escape(f"timm's VisionTransformer has no {key}={name}")
    ):
        timm_kwargs(model_with(**{key: name}).config)


def assert_compiled_is_eager(backend, positions, pool, attention, norm, mlp, depth):
    """Logits and gradients of masked images, and no break in the graph."""
    torch.compiler.reset()
    model = model_with(
        positions=positions, pool=pool, attention=attention, norm=norm, mlp=mlp, depth=depth,
        registers=2, layer_scale=0.1, qk_norm=True,
    )  # fmt: skip
    mask = torch.arange(16) < torch.tensor([13, 16])[:, None]
    results = []
    for run in (model, torch.compile(model, backend=backend, fullgraph=True)):
        model.zero_grad()
        logits = run(images_for(model), mask)
        logits.square().sum().backward()
        grads = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append({"logits": logits.detach(), **grads})
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


REGISTRIES = (POSITIONS, POOLINGS, SCORES, NORMS, MLPS)
SOME = [tuple(c) for _, *c in zip(range(8), *map(itertools.cycle, REGISTRIES), strict=False)]


@pytest.mark.parametrize("names", SOME, ids="-".join)
def test_the_compiler_reads_every_kind(names):
    assert_compiled_is_eager("aot_eager", *names, depth=2)


def test_every_kind_is_compiled():
    assert [set(names) for names in zip(*SOME, strict=True)] == [set(r) for r in REGISTRIES]


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
def test_compiled_code_computes_the_same(tmp_path, monkeypatch):
    """One real compilation, about half a minute: nothing of an earlier one is taken."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    names = ("rope2d", "attention", "cosine", "rmsnorm", "swiglu")
    assert_compiled_is_eager("inductor", *names, depth=1)
    assert any(tmp_path.rglob("*.cpp"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("attention", SCORES)
def test_a_whole_model_takes_another_dtype(dtype, attention):
    knobs = {"norm": "rmsnorm", "qk_norm": True, "positions": "rope2d", "pool": "attention"}
    model = model_with(**knobs, attention=attention).eval().to(dtype)
    images = images_for(model).to(dtype)
    assert model(images).dtype == dtype
    assert model(images[:0]).shape == (0, 5)


def test_registers_are_no_patches():
    """Mean pooling leaves them out; attention maps count them."""
    model = model_with(registers=3, pool="mean").eval()
    assert model.prefix == 3
    assert attention_maps(model, images_for(model))[0].shape == (2, 3, 19, 19)
    pooled = model.pool(torch.arange(19.0).view(1, 19, 1), model.prefix)
    assert pooled.item() == torch.arange(3.0, 19.0).mean()


def test_tokens_and_vectors_take_no_weight_decay():
    model = model_with(registers=2, layer_scale=0.1, qk_norm=True)
    free = {name for name, _ in model.named_parameters() if not model.decays(name)}
    assert {"cls_token", "reg_token", "pos_embed", "blocks.0.ls1.gamma"} <= free
    assert "blocks.0.attn.q_norm.weight" in free
    assert model.decays("blocks.0.mlp.fc1.weight")
    assert model.depth_of("reg_token") == 0


def test_layer_scale_starts_at_its_value():
    model = VisionTransformer(**SMALL, layer_scale=1e-4)  # type: ignore[arg-type]
    assert (model.state_dict()["blocks.1.ls2.gamma"] == 1e-4).all()


def test_runs_of_earlier_versions_get_the_keys_they_lack():
    old = {"model": {"dim": 8, "mlp": "swiglu"}, "seed": 0}
    new = migrate(old)
    assert new["model"]["registers"] == MIGRATIONS["model"]["registers"] == 0
    assert new["model"]["mlp"] == "swiglu"
    assert "registers" not in old["model"]
    assert FORMAT_VERSION == 2  # a key more is no other format
