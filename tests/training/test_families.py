"""Weights of every family give the features of their own model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from other_models import (
    HUGGING_FACE,
    TIMM,
    assert_same,
    noise,
    of_hugging_face,
    of_timm,
    of_torchvision,
    taken,
)
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

from vit.errors import ConfigError
from vit.model.weights import registers_for
from vit.training.weight_files import load_pretrained

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", TIMM)
def test_timms_models_with_their_name(name: str, tmp_path: Path) -> None:
    """As timm's trainer saves them, and by their names with what timm knows of them."""
    theirs = of_timm(name, **TIMM[name])
    size = TIMM[name].get("img_size", 64)
    content = {"state_dict": theirs.state_dict(), "arch": name, "args": argparse.Namespace(a=1)}
    torch.save(content, tmp_path / "w.pth.tar")
    pool = {"token": "cls", "avg": "mean", "map": "map"}[theirs.global_pool]
    registers = registers_for(dict(theirs.named_parameters()), pool, distillation=False)
    known = {"heads": 2, "pool": pool, "image_size": size, "registers": registers}
    ours, report, _ = taken(tmp_path / "w.pth.tar", **known)
    with torch.no_grad():
        tokens = theirs.forward_features(noise(size))
        expected = theirs.forward_head(tokens, pre_logits=True)
    if "distilled" in name:  # of its two tokens timm gives the mean
        expected = tokens[:, 0]
    assert_same(ours, expected, size, logits=False)
    assert {name.split(".")[0] for name in report.new} <= {"head"}


@pytest.mark.parametrize("name", TIMM)
def test_timms_models_by_their_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What timm downloads is compared with ours: both see the same in noise."""
    theirs = of_timm(name, **TIMM[name])
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: theirs)
    found = load_pretrained(f"timm/{name}")
    assert found.spec["heads"] == 2
    assert found.mean == list(theirs.pretrained_cfg["mean"])


OTHERS = {
    "beit_base_patch16_224": {},
    "eva02_base_patch14_224": {"img_size": 70},
    "vit_pe_core_base_patch16_224": {},
    "vit_small_patch16_rope_mixed_224": {},
    "vit_pwee_patch16_reg1_gap_256": {},
}


@pytest.mark.parametrize("name", OTHERS)
def test_models_of_another_kind_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = of_timm(name, **OTHERS[name])
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    with pytest.raises((ConfigError, ValueError), match=r"has not|ours|its pooling"):
        taken(tmp_path / "w.pth", heads=2)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: theirs)
    with pytest.raises(ConfigError, match="of a kind that ours is not; try timm/"):
        load_pretrained(f"timm/{name}")


LEFT_OUT = {
    "dinov2": {"the mask token"},
    "dinov2 with registers": {"the mask token"},
    "dinov3": {"the mask token"},
    "dinov3 gated": {"the mask token"},
    "mae": {"the decoder of a masked autoencoder"},
    "siglip": {"the text model", "the scale of its logits"},
    "clip": {"the projection into the space of texts"},
}


def features(kind: str, model: Any, images: Tensor) -> Tensor:
    """What ours are compared with: logits, what is pooled, or the class token."""
    if kind == "vit":
        return model(images).logits
    if kind in ("siglip", "clip"):
        return model.vision_model(images).pooler_output
    if kind == "mae":
        output = model.vit(images, noise=torch.arange(16.0).expand(len(images), -1))
    else:
        output = model.deit(images) if kind == "deit" else model(images)
    return output.last_hidden_state[:, 0]


@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_folders_of_hugging_face(kind: str, tmp_path: Path) -> None:
    """The names on the hub and, of a state dict in memory, those of the code: the same weights."""
    model = of_hugging_face(kind)
    model.save_pretrained(tmp_path)
    seen = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(seen))
    ours, report, found = taken(tmp_path)
    with torch.no_grad():
        expected = features(kind, model, noise(32))
    assert_same(ours, expected, 32, logits=kind == "vit")
    assert (found.mean, found.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert {name.split(".")[0] for name in report.new} <= {"head"}
    torch.save(model.state_dict(), tmp_path / "w.pt")
    said = {key: found.spec[key] for key in ("heads", "norm_eps", "mlp")}
    again, _, _ = taken(tmp_path / "w.pt", **said)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name]) or name.startswith("head"), name
    assert set(found.left_out) == LEFT_OUT.get(kind, set())


def test_torchvision(tmp_path: Path) -> None:
    theirs = of_torchvision()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours, report, _ = taken(tmp_path / "w.pth", heads=4)
    with torch.no_grad():
        expected = theirs(noise(32))
    assert_same(ours, expected, 32, logits=True)
    assert (report.new, report.unused) == ([], [])


@pytest.mark.parametrize("prefix", ["", "visual.", "module.visual."])
def test_openclip(prefix: str, tmp_path: Path) -> None:
    theirs = of_timm("vit_base_patch16_clip_224")
    names = {
        "patch_embed.proj": "conv1", "pos_embed": "positional_embedding", "norm_pre": "ln_pre",
        "cls_token": "class_embedding", "blocks": "transformer.resblocks", "norm1": "ln_1",
        "norm2": "ln_2", "qkv.": "in_proj_", "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }  # fmt: skip
    state = {}
    for name, tensor in theirs.state_dict().items():
        for ours_name, other in names.items():
            name = name.replace(ours_name, other)
        name = "ln_post" + name[4:] if name.startswith("norm.") else name
        if not name.startswith("head."):
            state[prefix + name] = tensor.squeeze() if "embedding" in name else tensor
    state[prefix + "proj"] = torch.randn(64, 7)
    if prefix:
        state |= {
            "transformer.resblocks.0.ln_1.weight": torch.ones(8), "logit_scale": torch.ones(()),
            "positional_embedding": torch.ones(7, 8), "text_projection": torch.ones(8, 8),
        }  # fmt: skip
        read = checkpoint_filter_fn(dict(state), theirs)  # the names are those that timm reads
        for name, tensor in theirs.state_dict().items():
            assert name.startswith("head.") or torch.equal(read[name], tensor), name
    torch.save(state, tmp_path / "w.pt")
    ours, _, found = taken(tmp_path / "w.pt", heads=2)
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(noise(64)), pre_logits=True)
    assert_same(ours, expected, 64, logits=False)
    texts = {"the text model", "the scale of its logits"} if prefix else set()
    assert set(found.left_out) == {"the projection into the space of texts", *texts}
