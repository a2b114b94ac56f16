"""Weights as people have them: every family and container gives the features of its own model."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import pytest
import timm
import torch
import torchvision
import transformers
from commands import run
from composing import changed
from pictures import save
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from vit.artifacts import checkpoint
from vit.artifacts.checkpoint import BadCheckpointError
from vit.artifacts.run_dir import RunDir
from vit.config.model import ViTConfig
from vit.config.validate import to_config
from vit.errors import ConfigError
from vit.model.vit import VisionTransformer
from vit.model.weights import LoadReport, registers_for, spec_of
from vit.training.pretrained import Pretrained, describe
from vit.training.weight_files import load_pretrained

pytestmark = pytest.mark.slow

CLASSES = list("abcde")
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip


def shaken(model: nn.Module) -> nn.Module:
    """The model with random numbers in every weight, biases, norms and tokens too."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model.eval()


def of_timm(name: str, **changes: Any) -> nn.Module:
    sizes = {"embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 5, "img_size": 64}
    return shaken(timm.create_model(name, **{**sizes, **changes}))


def noise(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def taken(place: Path, **known: Any) -> tuple[VisionTransformer, LoadReport, Pretrained]:
    """Our model of the weights there; `known` is what the user gives."""
    found = load_pretrained(str(place))
    spec = {**spec_of(found.weights), **found.spec, "num_classes": 5, **known}
    model = VisionTransformer(ViTConfig(**spec)).eval()
    return model, found.into(model, CLASSES), found


def assert_same(ours: VisionTransformer, expected: Tensor, size: int, *, logits: bool) -> None:
    with torch.no_grad():
        tokens = ours.forward_features(noise(size))
        found = ours.forward_head(tokens, pre_logits=not logits)
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# timm's names

TIMM: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {},
    "deit_tiny_patch16_224": {},
    "deit_small_distilled_patch16_224": {},
    "deit3_small_patch16_224": {},
    "vit_small_patch14_dinov2": {"img_size": 70},
    "vit_small_patch14_reg4_dinov2": {"img_size": 70},
    "vit_giant_patch14_dinov2": {"img_size": 70, "mlp_ratio": 5},
    "vit_small_patch16_dinov3": {"global_pool": "token"},
    "vit_small_patch16_dinov3_qkvb": {"global_pool": "avg"},
    "vit_small_plus_patch16_dinov3": {"global_pool": "token"},
    "vit_base_patch16_clip_224": {},
    "vit_base_patch16_clip_quickgelu_224": {},
    "vit_base_patch16_siglip_224": {},
    "vit_base_patch16_siglip_gap_224": {},
    "vit_so400m_patch14_siglip_224": {"img_size": 70},
    "vit_wee_patch16_reg1_gap_256": {},
    "vit_dlittle_patch16_reg1_gap_256": {},
    "vit_so150m_patch16_reg4_map_256": {},
    "vit_small_patch16_rope_224": {},
    "vit_small_patch16_rope_ape_224": {},
    "eva02_tiny_patch14_224": {"img_size": 70},
    "eva_large_patch14_196": {"img_size": 70},
}


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


# transformers


def hugging_face(kind: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A small model of transformers, and what its features are."""

    def token(output: Any) -> Tensor:
        return output.last_hidden_state[:, 0]

    deep = {"encoder_stride": 8, "num_labels": 5}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "vocab_size": 20, "projection_size": 32,
            "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    make = {
        "vit": lambda: transformers.ViTForImageClassification(
            transformers.ViTConfig(**SIZES, **deep)
        ),
        "deit": lambda: transformers.DeiTForImageClassificationWithTeacher(
            transformers.DeiTConfig(**SIZES, **deep)
        ),
        "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)),
        "dinov2 with registers": lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**SIZES, use_swiglu_ffn=True)
        ),
        "dinov3": lambda: transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(**SIZES, num_register_tokens=3)
        ),
        "dinov3 gated": lambda: transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(**SIZES, num_register_tokens=3, use_gated_mlp=True,
                                         hidden_act="silu")
        ),
        "mae": lambda: transformers.ViTMAEForPreTraining(
            transformers.ViTMAEConfig(**SIZES, mask_ratio=0.0, decoder_num_hidden_layers=1,
                                      decoder_hidden_size=16, decoder_num_attention_heads=2,
                                      decoder_intermediate_size=16)
        ),
        "siglip": lambda: transformers.SiglipModel(
            transformers.SiglipConfig(text_config=text, vision_config=SIZES)
        ),
        "clip": lambda: transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(**SIZES, projection_dim=16)
        ),
    }  # fmt: skip
    model = shaken(make[kind]())
    features: dict[str, Callable[[Tensor], Tensor]] = {
        "vit": lambda x: model(x).logits,
        "deit": lambda x: token(model.deit(x)),
        "mae": lambda x: token(model.vit(x, noise=torch.arange(16.0).expand(len(x), -1))),
        "siglip": lambda x: model.vision_model(x).pooler_output,
        "clip": lambda x: model.vision_model(x).pooler_output,
    }
    return model, features.get(kind, lambda x: token(model(x)))


HUGGING_FACE = (
    "vit", "deit", "dinov2", "dinov2 with registers", "dinov3", "dinov3 gated", "mae", "siglip",
    "clip",
)  # fmt: skip


@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_folders_of_hugging_face(kind: str, tmp_path: Path) -> None:
    """The names on the hub and, of a state dict in memory, those of the code: the same weights."""
    model, features = hugging_face(kind)
    model.save_pretrained(tmp_path)
    seen = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(seen))
    ours, report, found = taken(tmp_path)
    with torch.no_grad():
        expected = features(noise(32))
    assert_same(ours, expected, 32, logits=kind == "vit")
    assert (found.mean, found.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert {name.split(".")[0] for name in report.new} <= {"head"}
    torch.save(model.state_dict(), tmp_path / "w.pt")
    said = {key: found.spec[key] for key in ("heads", "norm_eps", "mlp")}
    again, _, _ = taken(tmp_path / "w.pt", **said)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name]) or name.startswith("head"), name
    assert set(found.left_out) == LEFT_OUT.get(kind, set())


LEFT_OUT = {
    "dinov2": {"the mask token"},
    "dinov2 with registers": {"the mask token"},
    "dinov3": {"the mask token"},
    "dinov3 gated": {"the mask token"},
    "mae": {"the decoder of a masked autoencoder"},
    "siglip": {"the text model", "the scale of its logits"},
    "clip": {"the projection into the space of texts"},
}


def test_classes_and_activations_of_a_config(tmp_path: Path) -> None:
    model, _ = hugging_face("vit")
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


# Other names


def test_torchvision(tmp_path: Path) -> None:
    theirs = shaken(torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=5))
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


# What is not whole


def states() -> Iterator[tuple[str, dict[str, Tensor], int]]:
    yield "timm", of_timm("vit_small_patch16_dinov3").state_dict(), 2
    for kind in ("vit", "dinov2", "dinov3", "siglip"):
        yield kind, hugging_face(kind)[0].state_dict(), 4
    theirs = shaken(torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=5))
    yield "torchvision", theirs.state_dict(), 4


@pytest.mark.parametrize("kind", ["timm", "vit", "dinov2", "dinov3", "siglip", "torchvision"])
def test_a_missing_changed_or_further_tensor_is_said(kind: str, tmp_path: Path) -> None:
    _, state, heads = next(each for each in states() if each[0] == kind)
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
    spec = {**spec_of(found.weights), **found.spec}
    plain = changed(data__name="folder", data__root="x", data__mean=[0.1] * 3, data__std=[1.0] * 3)
    for key in ("positions", "pool", "registers", "mlp", "norm_eps"):
        if key in spec:
            plain["model"][key] = spec[key]
    return describe(found, report, to_config(plain))


# Runs


RUNS = [
    "vit_tiny_patch16_224", "deit_small_distilled_patch16_224", "vit_small_patch14_reg4_dinov2",
    "vit_giant_patch14_dinov2", "vit_small_patch16_dinov3", "vit_base_patch16_clip_224",
    "vit_base_patch16_siglip_224", "vit_wee_patch16_reg1_gap_256",
    "vit_dlittle_patch16_reg1_gap_256", "vit_small_patch16_rope_ape_224", "eva02_tiny_patch14_224",
    *HUGGING_FACE, "torchvision",
]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for k in range(2):
        for i in range(4):
            save(folder / str(k) / f"{i}.png", pictures.noise(30, 30, seed=10 * k + i))
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_a_fine_tune_of_each_goes_on_to_the_same_bits(
    name: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header is read; a run whose last steps are lost ends as one that lost none."""
    place, heads, patch = tmp_path / "w.pth", 4, 8
    if name == "torchvision":
        theirs = shaken(torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=5))
        torch.save(theirs.state_dict(), place)
    elif name in HUGGING_FACE:
        place = tmp_path / "hub"
        hugging_face(name)[0].save_pretrained(place)
    else:
        theirs, heads, patch = of_timm(name, **TIMM[name]), 2, 14 if "patch14" in name else 16
        torch.save({"state_dict": theirs.state_dict(), "arch": name}, place)
    args = [
        "experiment=finetune", f"model.weights={place}", f"model.heads={heads}", "trainer.steps=3",
        "trainer.epochs=null", f"data.root={photos}", f"data.image_size={4 * patch}",
        "data.val_fraction=0", "trainer.batch_size=2", "trainer.save_every=1", "outputs=o",
        "trainer.precision=fp32", "trainer.device=cpu",
    ]  # fmt: skip
    whole = run("train", *args, "name=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert "tensors taken" in whole.stdout
    died = run("train", *args, "name=died", "trainer.save_every=2", cwd=tmp_path)
    assert died.returncode == 0, died.stderr
    for file in (tmp_path / "o/died/checkpoints").glob("*"):
        if file.name != "step-000000002.pt":
            file.unlink()
    again = run("train", "resume=o/died", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    one, other = (
        checkpoint.load(sorted((tmp_path / "o" / run / "checkpoints").glob("step*"))[-1])
        for run in ("whole", "died")
    )
    assert one["step"] == other["step"] == 3
    for key, tensor in one["training"]["model"].items():
        assert torch.equal(tensor, other["training"]["model"][key]), key


# Recipes

FINETUNED = {
    "mae_pretrain_vit_base.pth": ({}, {"lr": 3.54e-4, "layer_decay": 0.65, "mixup": 0.8}),
    "w.pth": ({"decoder_pos_embed": torch.ones(1)}, {"layer_decay": 0.65, "cutmix": 1.0}),
    "dino_vits16.pth": ({}, {"lr": 7.5e-5, "layer_decay": 0.6, "freeze": "blocks:0"}),
    "ViT-B-16-clip.pt": ({}, {"lr": 7.5e-5, "layer_decay": 0.6, "mixup": 0.0}),
    "maeda.pth": ({}, {"layer_decay": 0.75, "freeze": "none", "mixup": 0.0}),
}


@pytest.mark.parametrize("file", FINETUNED)
def test_a_family_is_fine_tuned_by_its_recipe(file: str, photos: Path, tmp_path: Path) -> None:
    """The header says it with its source; what the user gives wins, also a whole group."""
    more, expected = FINETUNED[file]
    torch.save({**of_timm("vit_tiny_patch16_224").state_dict(), **more}, tmp_path / file)
    args = [
        "experiment=finetune", f"model.weights={file}", "model.heads=2", f"data.root={photos}",
        "data.image_size=32", "data.val_fraction=0", "trainer.steps=1", "trainer.epochs=null",
        "trainer.device=cpu", "outputs=o",
    ]  # fmt: skip
    done = run("train", *args, "name=a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ("arXiv" in done.stdout) == (expected["layer_decay"] != 0.75)
    config = RunDir(tmp_path / "o" / "a").read_config()
    made = {**config["optim"], **config["augment"], "freeze": config["trainer"]["freeze"]}
    assert {key: made[key] for key in expected} == expected
    given = ["optim.lr=0.01", "augment=none", "trainer.freeze=blocks:1", "name=b"]
    assert run("train", *args, *given, cwd=tmp_path).returncode == 0
    config = RunDir(tmp_path / "o" / "b").read_config()
    assert (config["optim"]["lr"], config["trainer"]["freeze"]) == (0.01, "blocks:1")
    assert (config["augment"]["mixup"], config["augment"]["cutmix"]) == (0.0, 0.0)


def test_without_weights_there_is_no_recipe(tmp_path: Path) -> None:
    done = run("train", "trainer.recipe=weights", cwd=tmp_path)
    assert done.returncode == 2
    assert "trainer.recipe=weights without any; give model.weights=" in done.stderr


def test_what_comes_before_the_blocks_is_embedding() -> None:
    """Its rate decays most, and it is frozen with the embedding."""
    model = VisionTransformer(ViTConfig(image_size=(16, 16), patch_size=8, dim=32, heads=2, depth=2,
                                        pre_norm=True, pooled_norm=True))  # fmt: skip
    depths = {model.depth_of(name) for name in ("norm_pre.weight", "cls_token", "pos_embed")}
    assert depths == {0}
    assert model.depth_of("fc_norm.weight") == model.depth_of("head.weight") == 3
