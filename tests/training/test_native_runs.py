"""Runs on images of their own aspect ratio, by the commands: trained, resumed, evaluated, used."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import SMALL, lines, run
from composing import composed
from kill_resume import differences
from pictures import noise, save
from PIL import Image
from together import largest_difference, run_together

from vit.artifacts import checkpoint
from vit.artifacts.run_dir import RunDir
from vit.cli.eval import evaluate
from vit.cli.overrides import Overrides
from vit.cli.train import train
from vit.config.yaml_files import config_dir, load_yaml
from vit.inference.load import load_trained
from vit.training import trainer as trainer_module
from vit.training.state import TrainState

SHAPES = [(60, 40), (40, 60), (50, 50), (20, 90), (90, 20)]
"""Width and height of the photos."""
NATIVE = [
    *SMALL, "data=folder", "data.root=photos", "data.image_size=[32,48]", "model.patch_size=8",
    "data.aspect=native", "trainer.batch_size=16", "trainer.eval_batch_size=7",
    "data.val_fraction=0.2", "data.test_fraction=0.2", "trainer.epochs=2",
    "trainer.save_every=3",
]  # fmt: skip
MIXED = ["augment=strong", "augment.policy=randaugment", "model.patch_dropout=0.25"]


def draw(folder: Path) -> None:
    """90 photos of five shapes: warm ones and cold ones."""
    for label, tint in (("warm", [80, 0, 0]), ("cold", [0, 0, 80])):
        for i in range(45):
            pixels = np.asarray(noise(*SHAPES[i % 5], seed=i)) // 2 + np.array(tint, np.uint8)
            save(folder / "photos" / label / f"{i:02}.png", Image.fromarray(pixels))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, and a run on them: `outputs/whole`."""
    folder = tmp_path_factory.mktemp("native")
    draw(folder)
    done = run("train", *NATIVE, *MIXED, "name=whole", "data.memory=device", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> RunDir:
    return RunDir(folder / "outputs" / "whole")


def test_the_checkpoint_says_so(whole: RunDir) -> None:
    trained = load_trained(whole.path, torch.device("cpu"), pytest.fail)
    assert trained.preprocessing["aspect"] == trained.config["data"]["aspect"] == "native"
    content = checkpoint.load(whole.best)
    del content["preprocessing"]["aspect"]  # as runs of earlier versions
    old = whole.path.parent / "old.pt"
    checkpoint.save(old, content)
    assert load_trained(old, torch.device("cpu"), pytest.fail).preprocessing["aspect"] == "crop"


def test_held_and_streamed_are_the_same_run(
    folder: Path, whole: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    train(composed(*NATIVE, *MIXED, "name=streamed", "data.memory=stream"), Overrides([]))
    assert differences(whole, RunDir(folder / "outputs" / "streamed")) == []


def test_two_processes_train_as_one(folder: Path) -> None:
    args = [*NATIVE, "augment=strong", "augment.policy=randaugment", "trainer.epochs=1"]
    for processes, name in ((1, "one"), (2, "two")):
        done = run_together(processes, *args, f"name={name}", cwd=folder)
        assert done.returncode == 0, done.stdout
    one, two = (RunDir(folder / "outputs" / name) for name in ("one", "two"))
    assert largest_difference(one, two) < 1e-5


def test_a_run_that_went_on_equals_an_unbroken_one(
    folder: Path, whole: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = trainer_module.train_step

    def until(state: TrainState, *args: Any, **kwargs: Any) -> None:
        if state.step == 5:
            raise MemoryError
        step(state, *args, **kwargs)

    monkeypatch.chdir(folder)
    again = composed(*NATIVE, *MIXED, "name=again", "resume=auto", "data.memory=device")
    monkeypatch.setattr(trainer_module, "train_step", until)
    with pytest.raises(MemoryError):
        train(again, Overrides([]))
    gone_on = RunDir(folder / "outputs" / "again")
    assert [file.name for file in gone_on.step_files()] == [gone_on.step_file(3).name]
    monkeypatch.setattr(trainer_module, "train_step", step)
    train(again, Overrides([]))
    assert differences(whole, gone_on) == []


def test_files_and_evaluation_agree_to_the_last_digit(folder: Path, whole: RunDir) -> None:
    tested = lines(whole.path / "metrics.jsonl")[-1]
    args = [f"checkpoint={whole.path}", "tta=flip", "corruptions=true", "output=scored"]
    done = run("eval", *args, cwd=folder)
    assert done.returncode == 0, done.stderr
    scored = json.loads((folder / "scored" / "metrics.json").read_text())
    for key in ("loss", "top1"):
        assert scored["without_tta"][key] == pytest.approx(tested[key], abs=1e-9), key
    assert scored["loss"] != scored["without_tta"]["loss"]


def evaluated(checkpoint: Path, size: int | list[int], output: Path) -> dict[str, Any]:
    """metrics.json of an evaluation at another image size."""
    plain = load_yaml((config_dir() / "eval.yaml").read_text(), "eval.yaml")
    del plain["defaults"]
    plain["data"]["image_size"] = size
    plain |= {"checkpoint": str(checkpoint), "output": str(output), "report": False}
    evaluate(plain, Overrides([]))
    found: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    return found


@pytest.mark.parametrize("size", [[48, 48], [64, 32]])
def test_another_size_is_another_box(
    size: list[int], folder: Path, whole: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    found = evaluated(whole.path, size, tmp_path)
    assert (found["image_size"], found["images"]) == (size, 14)


def probabilities(file: Path) -> dict[str, dict[str, float]]:
    """Of each image and class."""
    with open(file, newline="") as rows:
        return {
            row["image"]: {row["label"]: float(row["probability"]),
                           row["label2"]: float(row["probability2"])}
            for row in csv.DictReader(rows)
        }  # fmt: skip


def test_an_image_is_labelled_the_same_in_company_and_alone(folder: Path, whole: RunDir) -> None:
    for name, more in (("together", []), ("alone", ["batch_size=1"])):
        args = [f"checkpoint={whole.path}", "images=photos", f"output={name}.csv", *more]
        done = run("predict", *args, cwd=folder)
        assert done.returncode == 0, done.stderr
    together, alone = (probabilities(folder / f"{name}.csv") for name in ("together", "alone"))
    assert len(together) == 90
    for image, chances in together.items():
        assert chances == pytest.approx(alone[image], abs=1e-5), image
    trained = load_trained(whole.path, torch.device("cpu"), pytest.fail)
    for width, height in ((40, 60), (20, 90)):  # 24 x 32 and 8 x 32 px: by hand, without a mask
        number = SHAPES.index((width, height))
        image = Image.open(folder / "photos" / "warm" / f"{number:02}.png")
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        size = (32, {40: 24, 20: 8}[width])
        mode = {"mode": "bilinear", "antialias": True}
        resized = torch.nn.functional.interpolate(pixels, size, **mode)
        with torch.no_grad():
            shares = trained.model((resized.round() / 255 - 0.5) / 0.5).softmax(dim=-1)[0]
        by_hand = dict(zip(trained.classes, shares.tolist(), strict=True))
        expected = together[f"photos/warm/{number:02}.png"]
        assert by_hand == pytest.approx(expected, abs=2e-3)  # which rounds pixels in fixed point


def test_pictures_have_no_padding(folder: Path, whole: RunDir) -> None:
    args = ["images=photos/warm", "limit=5", "layers=true", "output=shown"]
    done = run("explain", f"checkpoint={whole.path}", *args, cwd=folder)
    assert done.returncode == 0, done.stderr
    scale = 5  # 48 px at 224 or more
    for number, (rows, columns) in enumerate([(4, 6), (4, 3), (4, 4), (4, 1), (1, 6)]):
        height, width = 8 * rows * scale, 8 * columns * scale
        with Image.open(folder / "shown" / f"{number + 1:03}-{number:02}.png") as picture:
            assert 0 < picture.width - 4 * (width + 4) < 110, number  # a scale and its words
            assert height < picture.height < height + 80
        with Image.open(folder / "shown" / f"{number + 1:03}-{number:02}-layers.png") as layers:
            assert layers.height > 2 * height
    assert (folder / "shown" / "index.png").is_file()


@pytest.mark.parametrize("aspect", ["crop", "native"])
@pytest.mark.parametrize(
    ("size", "patch", "other"),
    [("[32,32]", 8, [48, 80]), ("[48,80]", 16, 32), ("[1024,512]", 64, [512, 1024])],
)
def test_any_size_is_trained_and_evaluated(
    aspect: str, size: str, patch: int, other: int | list[int], folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    args = [
        f"data.image_size={size}", f"model.patch_size={patch}", f"data.aspect={aspect}",
        "trainer.steps=1", "trainer.epochs=null", f"outputs={tmp_path}", "name=one",
    ]  # fmt: skip
    train(composed(*NATIVE, *args), Overrides([]))
    assert evaluated(tmp_path / "one", other, tmp_path / "eval")["images"] == 14


def test_padding_does_not_merge(whole: RunDir, tmp_path: Path) -> None:
    done = run("eval", f"checkpoint={whole.path}", "merge=1", cwd=tmp_path)
    assert done.returncode == 2
    assert "padding does not merge; leave merge out" in done.stderr


def test_padded_models_are_not_exported(whole: RunDir, tmp_path: Path) -> None:
    done = run("export", f"checkpoint={whole.path}", cwd=tmp_path)
    assert done.returncode == 2
    assert "train with data.aspect=crop to export" in done.stderr
