"""Files of weights as people have them: containers, prefixes, tensors too few or too many."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from composing import changed
from other_models import assert_same, noise, of_hugging_face, of_timm, of_torchvision, taken
from torch import Tensor, nn

from vit.artifacts import checkpoint
from vit.artifacts.checkpoint import BadCheckpointError
from vit.config.validate import to_config
from vit.errors import ConfigError
from vit.training.pretrained import describe
from vit.training.weight_files import load_pretrained

pytestmark = pytest.mark.slow


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


CONTAINERS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare.pt": lambda state: state,
    "half.pt": lambda state: {name: tensor.double() for name, tensor in state.items()},
    "module.pth": lambda state: under("module.", state),
    "compiled.pth": lambda state: under("_orig_mod.", state),
    "net.pth": lambda state: {"model": under("net.backbone.", state), "epoch": 3},
    "timm.pth.tar": lambda state: {
        "epoch": 3, "arch": "vit_tiny_patch16_224", "args": argparse.Namespace(lr=0.1, model="x"),
        "state_dict": {name: 0 * tensor for name, tensor in state.items()},
        "state_dict_ema": state, "metric": np.float64(76.1), "version": 2,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
    },
    "lightning.ckpt": lambda state: {
        "state_dict": {**under("model.", state), "criterion.weight": torch.ones(5)},
        "pytorch-lightning_version": "2.5", "hyper_parameters": {"lr": 0.1},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
    },
    "dino.pth": lambda state: {
        "teacher": {**under("backbone.", state), "head.mlp.0.weight": torch.ones(2, 2),
                    "head.last_layer.weight_v": torch.ones(2, 2)},
        "student": under("module.backbone.", {n: 0 * t for n, t in state.items()}),
        "args": argparse.Namespace(arch="vit_small"), "dino_loss": {"center": torch.ones(1, 2)},
        "epoch": np.int64(3),
    },
    "mae.pth": lambda state: {
        "model": {**state, "mask_token": torch.ones(1, 1, 8),
                  "decoder_pos_embed": torch.ones(1, 5, 8),
                  "decoder_blocks.0.norm1.weight": torch.ones(8)},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_and_prefixes(name: str, tmp_path: Path) -> None:
    theirs = of_timm("vit_tiny_patch16_224")
    torch.save(CONTAINERS[name](theirs.state_dict()), tmp_path / name)
    ours, report, found = taken(tmp_path / name, heads=2)
    with torch.no_grad():
        expected = theirs(noise(64))
    assert_same(ours, expected, 64, logits=True)
    assert report.new == []
    assert set(found.left_out) == {
        "timm.pth.tar": {"parts around the model", "the state of an optimiser"},
        "lightning.ckpt": {"parts around the model"},
        "dino.pth": {"DINO's projection", "the student", "parts around the model"},
        "mae.pth": {"the mask token", "the decoder of a masked autoencoder"},
    }.get(name, set())


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_what_could_run_something_is_refused(tmp_path: Path) -> None:
    state = of_timm("vit_tiny_patch16_224").state_dict()
    for other in (Path("x"), nn.Linear(2, 2), np.zeros(2, dtype=object), argparse.FileType()):
        torch.save({"state_dict": state, "other": other}, tmp_path / "w.pth")
        with pytest.raises(ConfigError, match=r"more than weights.*torch\.save\(model\.state_dict"):
            load_pretrained(str(tmp_path / "w.pth"))
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "w.pth")  # as OpenAI has its CLIP
    with pytest.raises(ConfigError, match=r"more than weights.*torch\.save\(model\.state_dict"):
        load_pretrained(str(tmp_path / "w.pth"))
    with pytest.raises(BadCheckpointError):  # of ours: no arguments of a command line
        checkpoint.load(tmp_path / "w.pth")


def test_classes_and_activations_of_a_config(tmp_path: Path) -> None:
    model = of_hugging_face("vit")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    names = {str(i): f"name {i}" for i in (3, 0, 4, 2, 1)}
    for act, mlp in (("gelu_new", "gelu_tanh"), ("gelu", "gelu"), ("relu", None)):
        told = {**config, "id2label": names, "hidden_act": act}
        (tmp_path / "config.json").write_text(json.dumps(told))
        if mlp is None:
            with pytest.raises(ConfigError, match="its MLP has relu, ours one of gelu, gelu_tanh"):
                load_pretrained(str(tmp_path))
        else:
            found = load_pretrained(str(tmp_path))
            assert found.classes == [f"name {i}" for i in range(5)]
            assert found.spec["mlp"] == mlp


@pytest.mark.parametrize("kind", ["timm", "vit", "dinov2", "dinov3", "siglip", "torchvision"])
def test_a_missing_changed_or_further_tensor_is_said(kind: str, tmp_path: Path) -> None:
    if kind == "timm":
        model, heads = of_timm("vit_small_patch16_dinov3"), 2
    else:
        model, heads = of_torchvision() if kind == "torchvision" else of_hugging_face(kind), 4
    state = model.state_dict()
    whole = report_of(state, heads, tmp_path)
    silent = []
    for name, tensor in state.items():
        without = {other: tensor for other, tensor in state.items() if other != name}
        if report_of(without, heads, tmp_path) == whole:
            silent.append(name)
        if re.search("text_model|mask_token|logit_", name):  # which is not taken
            continue
        if report_of({**state, name: torch.cat([tensor, tensor])}, heads, tmp_path) == whole:
            silent.append(f"{name}, longer")
    inside = next(name for name in state if "norm" in name or "ln_1" in name)
    if report_of({**state, inside + "_other": torch.ones(3)}, heads, tmp_path) == whole:
        silent.append("another")
    assert silent == []


def report_of(state: dict[str, Tensor], heads: int, folder: Path) -> list[str]:
    """What a user reads: the refusal, or the lines of the header."""
    torch.save(state, folder / "w.pt")
    try:
        _, report, found = taken(folder / "w.pt", heads=heads)
    except (ConfigError, ValueError) as error:
        return [str(error)]
    spec = found.architecture
    plain = changed(data__name="folder", data__root="x", data__mean=[0.1] * 3, data__std=[1.0] * 3)
    for key in ("positions", "pool", "registers", "mlp", "norm_eps"):
        if key in spec:
            plain["model"][key] = spec[key]
    return describe(found, report, to_config(plain))


@pytest.mark.parametrize(
    ("name", "is_told"),
    [("vit_small_patch14_dinov2", True), ("deit3_small_patch16_224", True),
     ("vit_tiny_patch16_224", False), ("beit_base_patch16_224", False)],
)  # fmt: skip
def test_what_layer_scale_says_of_the_normalisation(
    name: str, is_told: bool, tmp_path: Path
) -> None:
    """A bare state dict does not say; models with LayerScale but BEiT saw ImageNet's."""
    sizes = {"img_size": 70} if "dinov2" in name else {}
    model = timm.create_model(name, pretrained=False, depth=1, **sizes)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    found = load_pretrained(str(tmp_path / "w.pth"))
    assert found.mean == ([0.485, 0.456, 0.406] if is_told else None)
    assert found.std == ([0.229, 0.224, 0.225] if is_told else None)
