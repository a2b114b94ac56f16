"""Exported models answer as their checkpoints, whatever they are made of, or are refused."""

from __future__ import annotations

import json
import re
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exporting import CLASSES, SIZE, expected, pixels, trained, written
from pictures import noise, save
from safetensors import safe_open
from safetensors.torch import load

from vit.config.model import ViTConfig
from vit.data.reading.transform import Transform
from vit.errors import ConfigError
from vit.export import safetensors, timm_config
from vit.export.formats import FORMATS
from vit.export.parity import BOUNDS
from vit.export.source import metadata
from vit.model.attention import SCORES
from vit.model.layers import MLPS, NORMS
from vit.model.merging import merged
from vit.model.pooling import POOLINGS
from vit.model.positions import POSITIONS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
MODELS = [
    {"positions": "learned", "pool": "cls", "attention": "scaled_dot", "norm": "layernorm",
     "mlp": "gelu"},
    {"positions": "rope2d", "pool": "attention", "attention": "cosine", "registers": 2,
     "norm": "rmsnorm", "mlp": "swiglu", "layer_scale": 0.1, "qkv_bias": False},
    {"positions": "sincos1d", "pool": "mean", "attention": "additive", "qk_norm": True,
     "distillation_token": True, "patch_dropout": 0.5, "drop_path": 0.1, "dropout": 0.1},
    {"positions": "none", "pool": "cls", "attention": "dot", "norm": "rmsnorm", "qk_norm": True,
     "registers": 1, "distillation_token": True, "channels": 1},
    {"positions": "sincos2d", "pool": "attention", "qk_norm": True, "layer_scale": 1e-3},
    {"positions": "rope2d_dinov3", "pool": "map", "mlp": "gelu_tanh", "norm_eps": 1e-5},
    {"positions": "learned+rope2d", "mlp": "quick_gelu", "pre_norm": True,
     "distillation_token": True},
    {"positions": "learned+rope2d_eva02", "pool": "mean", "pooled_norm": True},
    {"positions": "learned", "attention": "differential", "registers": 1},
]  # fmt: skip
HELD = [
    {"registers": 2, "norm": "rmsnorm", "qk_norm": True, "layer_scale": 0.1, "mlp_dim": 50},
    {"positions": "sincos2d", "pool": "mean"},
    {"positions": "none", "qkv_bias": False, "channels": 1},
]


@pytest.mark.parametrize(
    ("key", "names"),
    [("positions", POSITIONS), ("pool", POOLINGS), ("attention", SCORES), ("norm", NORMS),
     ("mlp", MLPS)],
)  # fmt: skip
def test_everything_that_a_model_can_be_made_of_is_exported_here(key, names):
    assert {model.get(key) for model in MODELS} - {None} == set(names)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["positions"])
@pytest.mark.parametrize("form", ["onnx", "torch", "safetensors"])
def test_any_number_of_images_gets_the_checkpoints_logits(form, model, tmp_path):
    source = trained(**model)
    answer, _ = written(source, form, "fp32", tmp_path)
    for count in (1, 7, 64):
        images = pixels(count, source.preprocessing["channels"])
        logits = expected(source, images)
        assert logits.std() > 0.1
        np.testing.assert_allclose(answer(images), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("model", MODELS[:3], ids=lambda model: model["positions"])
@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_merging_is_part_of_what_is_computed(form, model, tmp_path):
    source = trained(**model)
    merging = replace(source, model=merged(source.model, 2))
    answer, path = written(source, form, "fp32", tmp_path, merge=2)
    with zipfile.ZipFile(path) if form == "torch" else nullcontext() as archive:
        parts = [path.read_bytes()] if archive is None else map(archive.read, archive.namelist())
        assert not any(str(ROOT).encode() in part for part in parts)  # without traces of its source
    for count in (1, 7):
        images = pixels(count, source.preprocessing["channels"])
        logits = expected(merging, images)
        assert np.abs(logits - expected(source, images)).max() > 1e-3
        np.testing.assert_allclose(answer(images), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("model", HELD, ids=lambda model: model.get("positions", "learned"))
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_timm_and_transformers_load_the_folder_as_it_is(model, precision, tmp_path):
    source = trained(**model)
    answer, folder = written(source, "timm", precision, tmp_path)
    images = pixels(7, source.preprocessing["channels"])
    atol = 1e-4 if precision == "fp32" else 0.05
    np.testing.assert_allclose(answer(images), expected(source, images), rtol=0, atol=atol)

    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(
        folder, dtype=torch.float32
    )
    assert theirs.config.id2label == dict(enumerate(CLASSES))
    prepared = transformers.AutoImageProcessor.from_pretrained(folder)
    assert prepared.data_config["crop_pct"] == 0.8
    assert prepared.data_config["interpolation"] == "bilinear"
    assert prepared.data_config["input_size"] == (source.preprocessing["channels"], *SIZE)
    mean, std = (torch.tensor(prepared.data_config[key]) for key in ("mean", "std"))
    if source.preprocessing["channels"] == 3:
        photo = noise(60, 40)
        seen = prepared([photo], return_tensors="pt")["pixel_values"][0]
        ours = torch.from_numpy(Transform(*SIZE, 3, 0.8).render(np.array(photo)))
        theirs_again = seen * std[:, None, None] + mean[:, None, None]
        assert (255 * theirs_again - ours).abs().max() < 1.01
    normalised = ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = theirs(normalised).logits.numpy()
    np.testing.assert_allclose(logits, expected(source, images), rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"positions": "rope2d"}, "positions=rope2d"),
        ({"pool": "attention"}, "pool=attention"),
        ({"attention": "cosine"}, "attention=cosine"),
        ({"distillation_token": True}, "distillation_token=True"),
        ({"mlp": "swiglu"}, "mlp=swiglu"),
    ],
)
def test_what_timm_cannot_hold_is_refused_in_one_line(model, words):
    with pytest.raises(ConfigError, match=rf"^format=timm: .*{words}; take format=onnx, .*$"):
        timm_config.write(trained(**model), 0, "fp32")


# Precisions


def test_half_precision_holds_where_squares_overflow_it(tmp_path):
    """Norms and cosines are computed in fp32: features of 2,000 squared are no numbers in fp16."""
    source = trained(norm="rmsnorm", attention="cosine", positions="sincos2d")
    with torch.no_grad():
        source.model.patch_embed.proj.weight *= 500
    images = pixels(64)
    features = source.model.patch_embed(torch.randn(1, 3, *SIZE))
    assert features.square().max() > 65504
    logits = expected(source, images)
    for form in ("onnx", "torch"):
        answer, _ = written(source, form, "fp16", tmp_path)
        given = answer(images)
        assert given.dtype == np.float32
        np.testing.assert_allclose(given, logits, rtol=0, atol=0.02 * abs(logits).max())
        assert not np.allclose(given, logits, rtol=0, atol=1e-6)
    full, half = (safetensors.write(source, 0, p) for p in ("fp32", "fp16"))
    assert len(half) < 0.7 * len(full)
    assert {tensor.dtype for tensor in load(half).values()} == {torch.float16}


def test_eight_bits_are_smaller_and_close(tmp_path):
    source = trained(dim=128, spread=0.05)
    images = pixels(64)
    answer, path = written(source, "onnx", "int8", tmp_path)
    logits, given = expected(source, images), answer(images)
    assert 0 < abs(given - logits).max() < 0.2 * abs(logits).max()
    full = sum(weight.nbytes for weight in source.model.state_dict().values())
    assert path.stat().st_size < 0.4 * full


def test_formats_have_writers_and_precisions_bounds():
    for kind in FORMATS.values():
        module = import_module(kind.module)
        assert callable(module.write)
        assert callable(module.run)
    assert {p for kind in FORMATS.values() for p in kind.precisions} == set(BOUNDS)


# What a file says about itself


def test_files_describe_themselves_and_nothing_of_this_machine(tmp_path):
    source = trained(tmp_path / "run" / "checkpoints" / "best.pt")
    source.path.parent.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    for form in ("onnx", "torch", "safetensors"):
        _, path = written(source, form, "fp32", tmp_path)
        if form == "onnx":
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            texts = session.get_modelmeta().custom_metadata_map
            about = {key: json.loads(text) for key, text in texts.items()}
            (given,), (made,) = session.get_inputs(), session.get_outputs()
            assert (given.name, given.type, given.shape[1:]) == (
                "images",
                "tensor(uint8)",
                [8, 12, 3],
            )
            assert (made.name, made.type, made.shape[1:]) == ("logits", "tensor(float)", [5])
            assert (given.shape[0], made.shape[0]) == ("batch", "batch")
            graph = onnx.load(path).graph
            assert not any(node.metadata_props or node.doc_string for node in graph.node)
        elif form == "torch":
            files = {"metadata.json": ""}
            torch.export.load(path, extra_files=files)
            about = json.loads(files["metadata.json"])
        else:
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()["vit"])
        assert about == metadata(source, 0, "fp32", about["input"])
        assert about["input"].startswith("float32" if form == "safetensors" else "uint8")
        assert about["classes"] == CLASSES
        assert about["origin"]["run"] == "run"
        assert about["origin"]["step"] == 7
        assert ViTConfig(**about["spec"]) == source.model.config
        parts = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                parts = [archive.read(name) for name in archive.namelist()]
        assert not any(str(place).encode() in part for part in parts for place in (ROOT, tmp_path))


@pytest.mark.parametrize("form", ["onnx", "torch", "safetensors", "timm"])
def test_the_lines_in_the_docs_load_it(form, tmp_path, monkeypatch, capsys):
    if form == "timm":
        pytest.importorskip("transformers")
    _, path = written(trained(depth=1), form, "fp32", tmp_path)
    path.rename(tmp_path / (f"model{FORMATS[form].suffix}" if FORMATS[form].suffix else form))
    save(tmp_path / "rose.jpg", noise(30, 20))
    monkeypatch.chdir(tmp_path)
    sections = re.split(r"^## ", (ROOT / "docs" / "export.md").read_text(), flags=re.M)
    title = {"onnx": "ONNX", "torch": "PyTorch", "timm": "timm and"}.get(form, form)
    (section,) = (text for text in sections if text.startswith(title))
    blocks = re.findall(r"```py\n(.*?)```", section, re.S)
    assert blocks
    for block in blocks:
        names = {}
        exec(compile(block, form, "exec"), names)
        assert form != "safetensors" or names["model"].config.depth == 1
    said = capsys.readouterr().out
    assert form == "safetensors" or any(repr(name) in said for name in CLASSES)
