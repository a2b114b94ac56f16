"""The public names of `vit`: imported when used, documented by examples that run."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vit
from vit import api
from vit.artifacts.run_dir import RunDir
from vit.config import model as config
from vit.config import plugins
from vit.errors import NoCheckpointError
from vit.inference import load as restore
from vit.model import attention, pooling
from vit.model import vit as transformer

PUBLIC = {
    "Attention": attention.Attention,
    "AttentionPool": pooling.AttentionPool,
    "ViTConfig": config.ViTConfig,
    "VisionTransformer": transformer.VisionTransformer,
    "Prediction": api.Prediction,
    "Run": api.Run,
    "load_run": api.load_run,
    "train": api.train,
    "use_plugins": plugins.use_plugins,
}


def test_names_are_their_objects():
    assert sorted(vit.__all__) == sorted(PUBLIC)
    for name, value in PUBLIC.items():
        assert getattr(vit, name) is value
    everything: dict[str, object] = {}
    exec("from vit import *", everything)
    assert PUBLIC.items() <= everything.items()


@pytest.mark.parametrize("name", ["Atention", "torch", "_HOME", "__path_"])
def test_other_names_are_attribute_errors(name):
    assert not hasattr(vit, name)
    with pytest.raises(AttributeError, match=f"module 'vit' has no attribute '{name}'"):
        getattr(vit, name)
    with pytest.raises(ImportError, match=f"cannot import name '{name}'"):
        exec(f"from vit import {name}")


def test_types_are_told():
    """PEP 561."""
    assert (Path(vit.__file__).parent / "py.typed").is_file()


def test_torch_comes_with_the_first_name():
    script = "import sys, vit; print('torch' in sys.modules); vit.{}; print('torch' in sys.modules)"
    for name, answers in (
        ("__doc__", "False False"),
        ("errors", "False False"),
        ("Attention", "False True"),
    ):
        command = [sys.executable, "-c", script.format(name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert done.stdout.split() == answers.split()


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() - {"Prediction", "Run"}))
def test_docstring_examples(name):
    value = PUBLIC[name]
    globs = vars(sys.modules[value.__module__])
    (test,) = doctest.DocTestFinder(recurse=False).find(value, globs=globs)
    assert len(test.examples) >= 2
    assert doctest.DocTestRunner().run(test).failed == 0


def test_positional_notation():
    """image_size, patch_size, num_classes, dim, depth, heads, mlp_dim: a promised order."""
    model = vit.VisionTransformer(32, 4, 10, 192, 6, 3, 768)
    named = vit.VisionTransformer(
        image_size=32, patch_size=4, num_classes=10, dim=192, depth=6, heads=3, mlp_dim=768
    )
    assert model.config == named.config
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    hidden = {(b.mlp.fc1.out_features, b.mlp.fc2.in_features) for b in model.blocks}
    assert hidden == {(768, 768)}
    assert (len(model.blocks), model.blocks[0].attn.heads) == (6, 3)
    assert vit.VisionTransformer(32, 4, 10, 192, 6, 3).config.mlp_dim == 768  # 4 * 192


@pytest.mark.parametrize("kind", [str, Path])
def test_load_run_is_the_trained_model(finished, kind):
    run = vit.load_run(kind(finished))
    trained = restore.load_trained(finished, torch.device("cpu"), pytest.fail)
    assert not run.model.training
    assert run.path == trained.path == RunDir(finished).best
    height, width = run.preprocessing["image_size"]
    images = torch.randn(4, run.preprocessing["channels"], height, width)
    logits = run.model(images)
    assert torch.equal(logits, trained.model(images))
    assert logits.shape == (4, len(run.classes))
    assert logits.std() > 0
    assert run.classes == trained.classes == [str(digit) for digit in range(10)]
    assert run.preprocessing == trained.preprocessing
    assert run.preprocessing.keys() >= {"image_size", "channels", "mean", "std"}


def test_load_run_takes_a_file_and_a_device(finished):
    file = RunDir(finished).step_files()[0]
    run = vit.load_run(str(file), device="meta")
    assert run.path == file
    assert {parameter.device.type for parameter in run.model.parameters()} == {"meta"}


def test_load_run_without_a_run(tmp_path):
    with pytest.raises(NoCheckpointError, match="nowhere does not exist"):
        vit.load_run(tmp_path / "nowhere")
    with pytest.raises(NoCheckpointError):
        vit.load_run(tmp_path)


def test_load_run_warns_of_damage(finished, tmp_path):
    copy = RunDir(tmp_path / "copy")
    copy.checkpoints.mkdir(parents=True)
    newest = RunDir(finished).step_files()[0]
    (copy.checkpoints / newest.name).write_bytes(newest.read_bytes())
    copy.best.write_bytes(RunDir(finished).best.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="newest checkpoint instead of the best") as told:
        run = vit.load_run(copy.path)
    assert told[0].filename == __file__
    assert set(vit.__all__) <= set(dir(vit))
    assert run.path == copy.step_files()[0]
