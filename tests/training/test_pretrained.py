"""Weights to start from: what fits is taken, what differs in size is fitted, the rest is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from commands import run
from composing import changed, sized
from exporting import trained, written
from pictures import noise, save
from safetensors.torch import save_file

from vit.config.checks import FROM_WEIGHTS
from vit.config.validate import to_config
from vit.errors import ConfigError
from vit.model.vit import VisionTransformer
from vit.model.weights import PATCHES, spec_of
from vit.training.pretrained import Pretrained, describe, ratio
from vit.training.weight_files import load_pretrained

PHOTOS = to_config(
    changed(data__name="folder", data__root="x", data__mean=[0.1] * 3, data__std=[1.0] * 3)
)
CLASSES = [str(k) for k in range(5)]
TINY = {"depth": 2, "num_classes": 5, "embed_dim": 64, "num_heads": 2}


def timm_model(name: str = "vit_tiny_patch16_224", **changes) -> torch.nn.Module:
    """A timm model with random weights in every tensor, biases and norms too."""
    torch.manual_seed(1)
    model = timm.create_model(name, **{**TINY, **changes}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


def ours(**changes) -> VisionTransformer:
    shape = {"image_size": 224, "patch_size": 16, "dim": 64, "depth": 2, "heads": 2}
    return VisionTransformer(**{**shape, "num_classes": 5, **changes}).eval()


def images(*size: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))


def as_npz(model: torch.nn.Module, path: Path) -> None:
    """Weights of a timm model in the layout of the original ViT."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    heads = model.blocks[0].attn.num_heads
    out = {
        "cls": state["cls_token"],
        "embedding/kernel": state[PATCHES].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(len(model.blocks)):
        there, here = f"Transformer/encoderblock_{i}/", f"blocks.{i}."
        attention = f"{there}MultiHeadDotProductAttention_1/"
        dim = state["cls_token"].shape[-1]
        for number, part in enumerate(("query", "key", "value")):
            rows = slice(number * dim, (number + 1) * dim)
            weight, bias = (state[f"{here}attn.qkv.{kind}"][rows] for kind in ("weight", "bias"))
            out[f"{attention}{part}/kernel"] = weight.T.reshape(dim, heads, dim // heads)
            out[f"{attention}{part}/bias"] = bias.reshape(heads, dim // heads)
        projection = state[f"{here}attn.proj.weight"].T
        out[f"{attention}out/kernel"] = projection.reshape(heads, dim // heads, dim)
        out[f"{attention}out/bias"] = state[f"{here}attn.proj.bias"]
        for number, (norm, layer) in enumerate((("norm1", "fc1"), ("norm2", "fc2"))):
            out[f"{there}LayerNorm_{2 * number}/scale"] = state[f"{here}{norm}.weight"]
            out[f"{there}LayerNorm_{2 * number}/bias"] = state[f"{here}{norm}.bias"]
            dense = f"{there}MlpBlock_3/Dense_{number}/"
            out[f"{dense}kernel"] = state[f"{here}mlp.{layer}.weight"].T
            out[f"{dense}bias"] = state[f"{here}mlp.{layer}.bias"]
    np.savez(path, **out)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The weights of `timm_model()` in every format."""
    folder = tmp_path_factory.mktemp("weights")
    model = timm_model()
    kinds = {kind: folder / f"weights.{kind}" for kind in ("safetensors", "pth", "bin", "npz")}
    save_file(model.state_dict(), kinds["safetensors"])
    torch.save(model.state_dict(), kinds["pth"])
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, kinds["bin"])
    as_npz(model, kinds["npz"])
    return kinds


@pytest.mark.parametrize("kind", ["safetensors", "pth", "bin", "npz"])
def test_timms_weights_give_timms_logits(files: dict[str, Path], kind: str) -> None:
    model = ours()
    start = load_pretrained(str(files[kind])).into(model, CLASSES)
    assert (start.resized, start.new, start.unused) == ([], [], [])
    with torch.no_grad():
        expected = timm_model()(images(224, 224))
        torch.testing.assert_close(model(images(224, 224)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(288, 352), (160, 96)])
def test_positions_are_resized_as_timm_does(files: dict[str, Path], size: tuple[int, int]) -> None:
    model = ours(image_size=size)
    start = load_pretrained(str(files["safetensors"])).into(model, CLASSES)
    assert start.resized == [f"positions 14x14 -> {size[0] // 16}x{size[1] // 16}"]
    overlay = {"file": str(files["safetensors"]), "num_classes": 5, "custom_load": False}
    theirs = timm.create_model(
        "vit_tiny_patch16_224",
        **TINY,
        img_size=size,
        pretrained=True,
        pretrained_cfg_overlay=overlay,
    ).eval()
    with torch.no_grad():
        expected = theirs(images(*size))
        torch.testing.assert_close(model(images(*size)), expected, rtol=0, atol=1e-5)


def test_weights_of_an_image_that_is_not_square() -> None:
    theirs = timm_model(img_size=(288, 352))
    model = ours(image_size=(288, 352))
    start = Pretrained("x", theirs.state_dict()).into(model, CLASSES)
    assert start.resized == []
    with torch.no_grad():
        expected = theirs(images(288, 352))
        torch.testing.assert_close(model(images(288, 352)), expected, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="397 positions are of no square image"):
        Pretrained("x", theirs.state_dict()).into(ours(), CLASSES)


def test_a_run_hands_timms_weights_on(files: dict[str, Path], tmp_path: Path) -> None:
    for k in range(5):
        for i in range(4):
            save(tmp_path / "photos" / str(k) / f"{i}.png", noise(30, 30, seed=10 * k + i))
    args = ["data=folder", "data.root=photos", "data.val_fraction=0", "trainer.steps=1"]
    args += ["optim.lr=0", "trainer.batch_size=2", "trainer.precision=fp32", "name=run"]
    done = run("train", *args, f"model.weights={files['pth']}", "model.heads=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    theirs = timm_model()
    for size in ((224, 224), (288, 352)):
        model = ours(image_size=size)
        start = load_pretrained(str(tmp_path / "outputs" / "run")).into(model, CLASSES)
        assert start.new == []
        theirs.set_input_size(size)
        with torch.no_grad():
            expected = theirs(images(*size))
            torch.testing.assert_close(model(images(*size)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("patch", [8, 32])
def test_a_resized_patch_sees_the_same_in_a_resized_image(patch: int) -> None:
    """FlexiViT's condition: a patch's embedding is that of the patch resized (to larger ones)."""
    source, model = ours(patch_size=8), ours(patch_size=patch)
    start = Pretrained("x", source.state_dict()).into(model, CLASSES)
    small = images(8, 8)
    large = F.interpolate(small, (patch, patch), mode="bicubic", antialias=True)
    with torch.no_grad():
        expected, found = source.patch_embed(small), model.patch_embed(large)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    changed = [
        f"positions 28x28 -> {224 // patch}x{224 // patch}",
        f"patch embedding 8 -> {patch} px",
    ]
    assert start.resized == (changed if patch != 8 else [])


def test_gray_images_look_to_one_channel_as_to_three() -> None:
    three, one = ours(), ours(channels=1)
    start = Pretrained("x", three.state_dict()).into(one, CLASSES)
    assert start.resized == ["patch embedding 3 -> 1 channels"]
    gray = images(224, 224, channels=1)
    with torch.no_grad():
        expected = three.patch_embed(gray.expand(-1, 3, -1, -1))
        torch.testing.assert_close(one.patch_embed(gray), expected, rtol=1e-4, atol=1e-4)
    back = ours()
    Pretrained("x", one.state_dict()).into(back, CLASSES)
    with torch.no_grad():
        found = back.patch_embed(gray.expand(-1, 3, -1, -1))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_another_number_of_classes_has_a_new_head() -> None:
    model = ours(num_classes=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = Pretrained("x", timm_model().state_dict()).into(model, ["a", "b", "c"])
    assert start.new == start.unused == ["head.weight", "head.bias"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("head."), name


def test_as_many_other_classes_have_a_new_head_too() -> None:
    state = timm_model().state_dict()
    assert "head.weight" in Pretrained("x", state, classes=["x"] * 5).into(ours(), CLASSES).new
    assert "head.weight" in Pretrained("x", state, classes=CLASSES).into(ours(), CLASSES).taken


def test_what_fits_nowhere_is_named() -> None:
    state = timm_model("deit_tiny_distilled_patch16_224").state_dict()
    model = ours(pool="mean", registers=2)
    start = Pretrained("x", state).into(model, CLASSES)
    assert start.new == []
    assert start.unused == ["head_dist.weight", "head_dist.bias"]  # both tokens are registers
    model = ours(pool="mean", registers=3)
    start = Pretrained("x", state).into(model, CLASSES)
    assert start.new == ["reg_token"]
    assert start.unused == ["cls_token", "dist_token", "head_dist.weight", "head_dist.bias"]
    config = sized(changed(model__weights="x", trainer__freeze="blocks:1"))
    assert describe(Pretrained("x", state), start, config) == [
        "weights  x: 31 tensors taken",
        "         new: reg_token",
        "         not used: cls_token, dist_token, head_dist.weight, head_dist.bias",
        "         images are normalised with mean [0.3053], deviation [0.3763]",
        "         the file does not say, so it is taken: model.heads=4; data.mean and data.std as "
        "above",
        "         frozen: blocks:1",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dim": 32}, "give model.dim=64 model.mlp_ratio=4"),
        ({"depth": 3}, "give model.depth=2"),
        ({"mlp_dim": 128}, "give model.mlp_ratio=4"),
        ({"layer_scale": 1e-4}, "give model.layer_scale=null"),
        ({"qk_norm": True}, "give model.qk_norm=false"),
        ({"positions": "rope2d"}, "give model.positions=learned"),
        ({"mlp": "swiglu", "norm": "rmsnorm"}, "give model.norm=layernorm model.mlp=gelu"),
    ],
)
def test_another_shape_is_answered_with_what_to_give(changes: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Pretrained("x", timm_model().state_dict()).into(ours(**changes), CLASSES)


def test_heads_count_where_they_are_known() -> None:
    state = timm_model().state_dict()
    with pytest.raises(ConfigError, match=r"give model\.heads=4"):
        Pretrained("x", state, {"heads": 4}).into(ours(), CLASSES)


def test_parts_that_are_not_ours_are_not_dropped_in_silence() -> None:
    state = timm_model().state_dict()
    state |= {f"blocks.{i}.mlp.norm.weight": torch.ones(64) for i in range(2)}
    with pytest.raises(ConfigError, match=r"has not \(blocks\.0\.mlp\.norm\.weight, blocks\.1"):
        Pretrained("x", state).into(ours(), CLASSES)


def test_no_vision_transformer() -> None:
    with pytest.raises(ConfigError, match="no weights of a Vision Transformer"):
        Pretrained("x", {"conv1.weight": torch.zeros(1)}).into(ours(), CLASSES)


def test_the_shape_comes_with_the_weights(files: dict[str, Path]) -> None:
    known = load_pretrained(str(files["npz"])).settings(PHOTOS)
    assert known.keys() <= set(FROM_WEIGHTS)
    expected = {
        "data.image_size": [224, 224], "data.mean": [0.5] * 3, "model.dim": 64, "model.depth": 2,
        "model.heads": 2, "model.mlp_ratio": 4.0, "model.mlp": "gelu", "model.pool": "cls",
        "model.positions": "learned", "model.patch_size": 16, "model.layer_scale": None,
    }  # fmt: skip
    assert {key: known[key] for key in expected} == expected
    unknown = load_pretrained(str(files["pth"])).settings(to_config(changed()))
    assert unknown["model.heads"] == 1  # of 64, as all of timm's
    assert not {"data.image_size", "data.mean", "data.std"} & unknown.keys()


@pytest.mark.parametrize(("dim", "heads"), [(192, 3), (1024, 16), (1280, None), (100, None)])
def test_heads_are_guessed_where_all_models_have_them(dim: int, heads: int | None) -> None:
    model = VisionTransformer(16, 8, 3, dim=dim, depth=1, heads=2, mlp_dim=8)
    brought = Pretrained("x", model.state_dict()).settings(PHOTOS)
    assert brought.get("model.heads") == heads


@pytest.mark.parametrize("shape", [(384, 1025), (64, 170), (100, 333), (192, 768)])
def test_a_hidden_width_survives_as_a_ratio(shape: tuple[int, int]) -> None:
    dim, hidden = shape
    assert int(dim * ratio(hidden, dim)) == hidden


def test_spec_of_says_what_a_model_was_built_with() -> None:
    model = ours(
        norm="rmsnorm", mlp="swiglu", layer_scale=1e-5, qkv_bias=False, qk_norm=True, registers=3,
        pool="mean", channels=1,
    )  # fmt: skip
    for key, value in spec_of(model.state_dict()).items():
        assert model.config.plain()[key] == value, key


def test_a_folder_of_the_hub_brings_its_normalisation(tmp_path: Path) -> None:
    save_file(timm_model().state_dict(), tmp_path / "model.safetensors")
    facts = {"architecture": "x", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    found = load_pretrained(str(tmp_path))
    assert (found.mean, found.std) == ([0.1, 0.2, 0.3], [1.0, 1.0, 1.0])


@pytest.mark.parametrize("form", ["safetensors", "timm"])
def test_what_vit_export_writes_can_be_started_from(form: str, tmp_path: Path) -> None:
    source = trained(positions="sincos2d", pool="mean")
    _, place = written(source, form, "fp32", tmp_path)
    found = load_pretrained(str(place))
    assert (found.classes, found.spec["heads"]) == (source.classes, 4)
    assert (found.mean, found.std) == (source.preprocessing["mean"], source.preprocessing["std"])
    changes = {} if form == "safetensors" else {"positions": "learned"}  # timm knows no others
    model = VisionTransformer(source.model.config, **changes)
    start = found.into(model, source.classes)
    assert (start.resized, start.new, start.unused) == ([], [], [])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("nothing", None, "does not exist; give a run folder, a file or timm/<model>"),
        ("w.txt", b"x", "of no known kind"),
        ("w.safetensors", b"x" * 20, "cannot be read"),
        ("w.pth", b"x" * 20, "cannot be read"),
        ("w.npz", b"x" * 20, "cannot be read"),
        ("w/model.safetensors", b"x" * 20, "w cannot be read"),
        ("w/checkpoints/x", b"x", r"w cannot be read \(no checkpoint in .*\); give a run folder"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        load_pretrained(str(tmp_path / Path(name).parts[0]))


def test_another_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", x=np.zeros(3))
    with pytest.raises(ConfigError, match="with names that are known"):
        load_pretrained(str(tmp_path / "w.npz"))


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    torch.save({"state_dict": Path("x")}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_pretrained(str(tmp_path / "w.pth"))


def test_timms_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="try timm/vit_tiny_patch16_224"):
        load_pretrained("timm/vit_tny_patch16_224")
    create = timm.create_model

    def offline(name, **_):
        raise OSError("no network. Try again later")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ConfigError, match=r"downloaded \(no network\); give a file of it"):
        load_pretrained("timm/vit_tiny_patch16_224.augreg_in21k")
    small = {**TINY, "img_size": (64, 96)}
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create(name, **small))
    found = load_pretrained("timm/vit_tiny_patch16_224")
    assert found.spec == {"heads": 2, "norm_eps": 1e-6, "mlp": "gelu", "image_size": [64, 96]}
    assert found.mean == [0.5, 0.5, 0.5]
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create("resnet10t"))
    with pytest.raises(ConfigError, match="is a ResNet of a kind that ours is not; try timm/vit_s"):
        load_pretrained("timm/resnet10t")
