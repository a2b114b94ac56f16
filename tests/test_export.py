"""Exported models answer as their checkpoints, whatever they are made of, or are refused."""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from exporting import CLASSES, SIZE, expected, pixels, trained, written
from pictures import array_samples, noise, reader, save
from safetensors import safe_open
from safetensors.torch import load

from vit.config.commands import EvalDataConfig, ExportConfig
from vit.config.errors import ConfigError, DataError, ExportError
from vit.config.formats import KINDS
from vit.data.loader import EvalLoader
from vit.data.views import View
from vit.engine import export
from vit.engine.agreement import BOUNDS, Agreement, as_bytes, compare, milliseconds
from vit.engine.formats import WRITERS, metadata
from vit.model.mlp import MLPS
from vit.model.norms import NORMS
from vit.model.pooling import POOLINGS
from vit.model.positions import POSITIONS
from vit.model.scores import ATTENTIONS
from vit.model.vit import VisionTransformer

ROOT = Path(__file__).resolve().parent.parent
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
]  # fmt: skip
HELD = [
    {"registers": 2, "norm": "rmsnorm", "qk_norm": True, "layer_scale": 0.1, "mlp_dim": 50},
    {"positions": "sincos2d", "pool": "mean"},
    {"positions": "none", "qkv_bias": False, "channels": 1},
]


@pytest.mark.parametrize(
    ("key", "names"),
    [("positions", POSITIONS), ("pool", POOLINGS), ("attention", ATTENTIONS), ("norm", NORMS),
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
        ours = torch.from_numpy(View(*SIZE, 3, 0.8).render(np.array(photo)))
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
        WRITERS["timm"].write(trained(**model), "fp32")


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
    full, half = (WRITERS["safetensors"].write(source, p) for p in ("fp32", "fp16"))
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
    assert list(KINDS) == list(WRITERS)
    assert {p for kind in KINDS.values() for p in kind.precisions} == set(BOUNDS)


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
            assert {type(given.shape[0]), type(made.shape[0])} == {str}
        elif form == "torch":
            files = {"metadata.json": ""}
            torch.export.load(path, extra_files=files)
            about = json.loads(files["metadata.json"])
        else:
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()["vit"])
        assert about == metadata(source, "fp32", about["input"])
        assert about["input"].startswith("float32" if form == "safetensors" else "uint8")
        assert about["classes"] == CLASSES
        assert about["origin"]["run"] == "run"
        assert about["origin"]["step"] == 7
        assert VisionTransformer(**about["spec"]).spec == source.model.spec
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
    path.rename(tmp_path / (f"model{KINDS[form].suffix}" if KINDS[form].suffix else form))
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
        assert form != "safetensors" or names["model"].spec["depth"] == 1
    said = capsys.readouterr().out
    assert form == "safetensors" or any(repr(name) in said for name in CLASSES)


# The comparison


def test_bytes_are_those_that_were_normalised():
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    read = reader((16, 16))
    loader = EvalLoader(array_samples(1), 1, read)
    normalised = read.normalise(torch.from_numpy(every).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(as_bytes(normalised, loader), every)


def test_the_comparison_sees_every_image_once():
    source = trained(num_classes=3)
    loader = EvalLoader(array_samples(70, SIZE), 66, reader(SIZE))
    source.preprocessing.update(mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    sizes = []

    def answer(images):
        sizes.append(len(images))
        return expected(source, images)

    agreement, some = compare(source.model, answer, loader)
    assert sizes == [64, 2, 4]
    assert some.shape == (64, *SIZE, 3)
    assert agreement.difference < 1e-5
    assert agreement.labels.tolist() == [i % 3 for i in range(70)]


@pytest.mark.parametrize(
    ("precision", "change", "words"),
    [
        ("fp32", "none", None),
        ("fp32", "rounding", None),
        ("fp32", "a logit", "a logit differs by 0.01"),
        ("fp16", "a logit", None),
        ("fp16", "nan", "not finite"),
        ("int8", "inf", "not finite"),
        ("fp16", "20 labels", "20 of 1,000 images get another label"),
        ("int8", "20 labels", "20 of 1,000 images less are right"),
        ("int8", "10 labels", None),
        ("int8", "60 wrong labels", "60 of 1,000 images get another label"),
        ("int8", "50 wrong labels", None),
    ],
)
def test_bounds(precision, change, words):
    labels = np.arange(1000) % 4
    logits = np.eye(4, dtype=np.float32)[np.where(labels < 2, labels, 0)]
    changed = logits.copy()
    if change == "rounding":
        changed += 5e-5
    elif change == "a logit":
        changed[3, 1] += 0.01
    elif change in ("nan", "inf"):
        changed[500, 2] = float(change)
    elif change.endswith("labels"):
        some = np.flatnonzero(labels == (3 if "wrong" in change else 1))[: int(change.split()[0])]
        changed[some] = [0, 0, 2, 0]
    broken = Agreement((logits, changed), labels).broken(BOUNDS[precision])
    assert broken is None if words is None else words in broken


def test_two_logits_that_are_all_but_equal_may_change_places_once():
    logits = np.array([[0, 1e-6], [0, 1], [1e-6, 0]], np.float32)
    swapped = logits[:, ::-1]
    labels = np.array([1, 1, 1])
    one = np.concatenate([swapped[:1], logits[1:]])
    two = np.concatenate([swapped[:1], logits[1:2], swapped[2:]])
    assert Agreement((logits, one), labels).broken(BOUNDS["fp32"]) is None
    assert "2 of 3 images get another" in Agreement((logits, two), labels).broken(BOUNDS["fp32"])


def test_times_are_of_one_image():
    calls = []
    answers = [lambda images, i=i: calls.append((i, len(images))) for i in range(2)]
    taken = milliseconds(answers, pixels(4), seconds=0)
    assert calls == [(0, 4), (1, 4)] * 4
    assert all(0 < time < 10 for time in taken)


# The whole


class Job:
    """An evaluator of a model on images of an array."""

    def __init__(self, source, splits):
        self.trained = source
        self.parts = splits

    def splits(self):
        return self.parts

    def find(self, config):
        if config.split not in self.parts:
            raise DataError(f"split={config.split}: none")
        return self.parts[config.split], config.split

    def open(self, samples, what):
        seen = self.trained.preprocessing
        read = reader(SIZE)
        read.normalise.mean[:] = torch.tensor(seen["mean"])[:, None, None]
        read.normalise.std[:] = torch.tensor(seen["std"])[:, None, None]
        return EvalLoader(samples, 4, read)


def settings(**changes):
    data = EvalDataConfig(root=None, image_size=None, workers=0)
    plain = {"checkpoint": "run", "format": "safetensors", "precision": "fp32", "output": None,
             "split": None, "images": None, "limit": None, "data": data}  # fmt: skip
    return ExportConfig(**{**plain, **changes})


def test_images_are_those_of_val_else_of_test_spread_evenly():
    val, test = array_samples(100), array_samples(7)
    for splits, asked, found in (
        ({"val": val, "test": test}, None, "val"),
        ({"train": val, "test": test}, None, "test"),
        ({"val": val, "test": test}, "test", "test"),
    ):
        samples, what = export.find_images(settings(split=asked), Job(None, splits))
        assert (what, samples) == (found, splits[found])
    few, _ = export.find_images(settings(limit=4), Job(None, {"val": val}))
    assert few.names == ["0", "33", "66", "99"]
    assert few.labels.tolist() == [0, 0, 0, 0]
    with pytest.raises(DataError, match=r"none\nan export is compared.*images="):
        export.find_images(settings(split="val"), Job(None, {"test": test}))


@pytest.mark.parametrize("form", ["safetensors", "timm"])
def test_a_failed_export_leaves_what_was_there(form, tmp_path, monkeypatch):
    source = trained(tmp_path / "best.pt", num_classes=3)
    source.path.write_bytes(b"123")
    source = replace(source, classes=["a", "b", "c"])
    job, output = Job(source, {"val": array_samples(9, SIZE)}), tmp_path / "export"
    samples, config = job.parts["val"], settings(format=form)
    done = export.export(config, job, samples, "val", output)
    assert done.agreement.broken(BOUNDS["fp32"]) is None
    files = [output] if output.is_file() else sorted(output.iterdir())
    assert done.sizes == (3, sum(file.stat().st_size for file in files))
    assert set(done.times) == {1, 64}
    before = [file.read_bytes() for file in files]
    (tmp_path / "mine").write_text("mine")

    other = trained(num_classes=3, depth=1)
    changed = replace(
        WRITERS[form],
        write=lambda _, precision: write(replace(source, model=other.model), precision),
    )
    write = WRITERS[form].write
    monkeypatch.setitem(WRITERS, form, changed)
    with pytest.raises(ExportError, match=r"a logit differs by .* \(9 of val\); take another"):
        export.export(config, job, samples, "val", output)
    assert [file.read_bytes() for file in files] == before
    assert {file.name for file in tmp_path.iterdir()} == {"best.pt", "export", "mine"}
    monkeypatch.undo()
    export.export(config, job, samples, "val", output)
    assert [file.read_bytes() for file in files] == before
    assert ExportError("").exit_code == 1
