"""From a path to a model: golden files, best and last weights, evaluation on other folders."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import SMALL, run
from pictures import noise, save
from PIL import Image
from try_damages import WRONG, places

from vit.artifacts import checkpoint
from vit.artifacts.run_dir import RunDir
from vit.cli import front
from vit.cli.eval import evaluate
from vit.cli.explain import explain
from vit.cli.export import export
from vit.cli.predict import predict
from vit.config.validate import to_config
from vit.config.yaml_files import dump_yaml
from vit.data.manifest import Manifest
from vit.errors import NoCheckpointError
from vit.inference.load import load_trained

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CPU = torch.device("cpu")


def test_every_format_version_has_a_golden_file() -> None:
    wanted = {f"v{version}.pt" for version in range(1, checkpoint.FORMAT_VERSION + 1)}
    assert {path.name for path in GOLDEN.iterdir()} == wanted


def test_a_golden_checkpoint_gives_the_logits_it_gave() -> None:
    trained = load_trained(GOLDEN / "v1.pt", CPU, pytest.fail)
    assert trained.images is None
    logits = trained.model(torch.linspace(-1, 1, 64).view(1, 1, 8, 8))[0]
    expected = [
        -0.088177, -0.005094, -0.191054, 0.001749, 0.112221, 0.042285, 0.026613, 0.058298,
        0.014081, -0.008738,
    ]  # fmt: skip
    torch.testing.assert_close(logits, torch.tensor(expected), atol=2e-5, rtol=0)
    assert to_config(trained.config).model.dim == 8


@pytest.mark.parametrize("version", range(1, checkpoint.FORMAT_VERSION + 1))
def test_a_golden_run_goes_on(tmp_path: Path, version: int) -> None:
    folder = RunDir(tmp_path / "outputs" / "golden")
    folder.checkpoints.mkdir(parents=True)
    shutil.copy(GOLDEN / f"v{version}.pt", folder.step_file(30))
    saved = checkpoint.load(folder.step_file(30))
    folder.write_config(dump_yaml(saved["config"]))
    folder.metrics.write_bytes(b" " * saved["training"]["metrics_bytes"])
    done = run("train", "resume=outputs/golden", "trainer.steps=33", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert folder.read_summary()["step"] == 33
    kept = checkpoint.load(folder.step_file(33))
    assert kept["config"]["data"]["split_by"] == ("position" if version == 1 else "name")
    images = Manifest.from_bytes(folder.images.read_bytes())  # made anew: of digits it is known
    assert kept["images"] == images.digest() == (saved["images"] or images.digest())
    assert len(images.splits["test"].names) == (359 if version == 1 else 348)


def test_a_spec_that_names_no_model_is_refused(tmp_path: Path) -> None:
    content = checkpoint.load(GOLDEN / "v1.pt")
    content.pop("format_version")
    for spec in ({"dim": 8, "os": "rm"}, {**content["spec"], "pool": "os.system"}, {}):
        checkpoint.save(tmp_path / "c.pt", {**content, "spec": spec})
        with pytest.raises(NoCheckpointError, match=r"no checkpoint of vit-train \(spec\."):
            load_trained(tmp_path / "c.pt", CPU, print)


@pytest.mark.parametrize("part", ["spec", "preprocessing", "classes", "evaluation", "config",
                                  "step", "weights", "images", "training"])  # fmt: skip
def test_values_of_other_types_are_refused(tmp_path: Path, part: str) -> None:
    """Each value of a checkpoint in turn; what is refused is refused at once, and as no crash."""
    content = checkpoint.load(GOLDEN / "v2.pt")
    content.pop("format_version")
    refused = 0
    for way in [way for way in places(content) if way[0] == part]:
        for wrong in random.Random(str(way)).sample(WRONG, 2 if len(way) > 1 else 12):
            changed = copy.deepcopy(content)
            place = changed
            for key in way[:-1]:
                place = place[key]
            place[way[-1]] = wrong
            checkpoint.save(tmp_path / "c.pt", changed)
            began = time.monotonic()
            refused += 1
            with contextlib.suppress(NoCheckpointError):
                load_trained(tmp_path / "c.pt", CPU, print)
                refused -= 1
            assert time.monotonic() - began < 5
    assert refused >= 8


@pytest.mark.parametrize(
    "change", [{"depth": 10**6}, {"dim": 10**6}, {"num_classes": 10**9}, {"mlp_dim": 10**7}]
)
def test_an_architecture_that_the_weights_are_not_of_is_found_at_once(
    tmp_path: Path, change: dict[str, int]
) -> None:
    content = checkpoint.load(GOLDEN / "v2.pt")
    content.pop("format_version")
    checkpoint.save(tmp_path / "c.pt", {**content, "spec": {**content["spec"], **change}})
    began = time.monotonic()
    with pytest.raises(NoCheckpointError, match="describes no model of this version"):
        load_trained(tmp_path / "c.pt", CPU, print)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("way", "value"),
    [("training.best.top1", "x"), ("training.marks", []), ("training.model", {"head.bias": 0}),
     ("config.trainer.batch_size", "many"), ("training.optimizer", {"state": {}}),
     ("training.odometer", "x"), ("training.environment", None), ("config.data", [])],
)  # fmt: skip
def test_a_run_does_not_go_on_from_values_of_other_types(
    tmp_path: Path, way: str, value: object
) -> None:
    folder = RunDir(tmp_path / "outputs" / "golden")
    folder.checkpoints.mkdir(parents=True)
    content = checkpoint.load(GOLDEN / "v2.pt")
    content.pop("format_version")
    folder.write_config(dump_yaml(content["config"]))
    folder.metrics.write_bytes(b" " * content["training"]["metrics_bytes"])
    place = content
    *sections, name = way.split(".")
    for section in sections:
        place = place[section]
    place[name] = value
    checkpoint.save(folder.step_file(30), content)
    done = run("train", "resume=outputs/golden", "trainer.steps=33", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-1].startswith("vit-train: ")
    assert "Traceback" not in done.stderr


def test_a_hostile_config_in_a_checkpoint_is_text(tmp_path: Path) -> None:
    """Resolvers and tags in a saved config do nothing; names come from registries."""
    content = checkpoint.load(GOLDEN / "v1.pt")
    content.pop("format_version")
    content["config"]["data"]["root"] = "${oc.env:HOME}"
    content["config"]["data"]["name"] = "os.system"
    checkpoint.save(tmp_path / "c.pt", content)
    done = run("eval", f"checkpoint={tmp_path / 'c.pt'}", cwd=tmp_path)
    assert done.returncode == 2
    assert "data.name=os.system must be one of" in done.stderr
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: !!python/object/apply:os.mkdir [marker]\n")
    done = run("train", f"resume={tmp_path / 'run'}", cwd=tmp_path)
    assert done.returncode == 2
    assert not (tmp_path / "marker").exists()


def test_what_uses_a_model_needs_no_training_settings(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Of the run's settings only those that say how images are read, and which ones, are used."""
    _, content = checkpoint.newest(RunDir(finished), print)
    content.pop("format_version")
    config = content["config"]
    config["trainer"] |= {"label_smoothing": 7.0, "precision": "fp7"}
    config["optim"], config["model"]["heads"], config["augment"]["crop"] = {}, -3, "sideways"
    checkpoint.save(tmp_path / "c.pt", content)
    for label in content["classes"][:2]:
        for i in range(4):
            save(tmp_path / "images" / label / f"{i}.png", noise(8, 8, "L", seed=i))
    monkeypatch.chdir(tmp_path)
    commands = {"predict": predict, "explain": explain, "eval": evaluate, "export": export}
    own = ["report=false"]
    for name, *arguments in (
        ("predict", "images=images"),
        ("explain", "images=images"),
        ("eval", "images=images", "report=false"),
        ("export", "images=images", "format=safetensors"),
        ("eval", *own),
    ):
        monkeypatch.setattr(sys, "argv", [f"vit-{name}", "checkpoint=c.pt", *arguments])
        assert front.run(name, commands[name]) == 0, capsys.readouterr().err
    config["data"] |= {"name": "nowhere", "val_fraction": 9}  # which images the run had
    checkpoint.save(tmp_path / "c.pt", content)
    for arguments, code in ((["images=images", "report=false"], 0), (own, 2)):
        monkeypatch.setattr(sys, "argv", ["vit-eval", "checkpoint=c.pt", *arguments])
        capsys.readouterr()
        assert front.run("eval", evaluate) == code
    assert "data.name=nowhere must be one of" in capsys.readouterr().err


def test_best_beats_last_and_damage_falls_back(finished: Path, tmp_path: Path) -> None:
    copy = RunDir(Path(shutil.copytree(finished, tmp_path / "copy")))
    assert load_trained(copy.path, CPU, pytest.fail).path == copy.best
    copy.best.write_bytes(copy.best.read_bytes()[:-100])
    said: list[str] = []
    assert load_trained(copy.path, CPU, said.append).path == copy.step_files()[0]
    assert "newest checkpoint instead of the best" in said[0]


def test_a_checkpoint_of_an_averaged_run_carries_the_average(finished: Path) -> None:
    _, content = checkpoint.newest(RunDir(finished), print)
    training = content["training"]
    for name, weight in content["weights"].items():
        assert torch.equal(weight, training["ema"][name])
    assert any(
        not torch.equal(content["weights"][n], training["model"][n]) for n in training["ema"]
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that a tiny model tells apart: dark and bright, with splits."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 7)):
        for name, level in (("dark", 40), ("hell-größe", 200)):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(level - 40, level + 40, (20, 24, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


def test_a_folder_trains_and_evaluates_elsewhere(photos: Path, tmp_path: Path) -> None:
    args = [*SMALL, "data=folder", f"data.root={photos}", "data.image_size=16", "name=p"]
    done = run("train", *args, "trainer.epochs=15", "trainer.batch_size=16", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = RunDir(tmp_path / "outputs" / "p").read_summary()
    assert summary["test_top1"] == 100.0

    done = run("eval", "checkpoint=outputs/p", f"images={photos / 'val'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "outputs/p/eval/images-val/metrics.json").read_text())
    assert (metrics["images"], metrics["top1"]) == (14, 100.0)
    table = (tmp_path / "outputs/p/eval/images-val/predictions.csv").read_text()
    assert "hell-größe/3.png,hell-größe,hell-größe," in table

    moved = tmp_path / "moved"
    shutil.copytree(photos, moved)
    done = run("eval", "checkpoint=outputs/p", f"data.root={moved}", "split=test", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (moved / "val" / "dark").rename(moved / "val" / "night")
    done = run("eval", "checkpoint=outputs/p", f"images={moved / 'val'}", cwd=tmp_path)
    assert done.returncode == 2
    assert "missing dark, not expected night" in done.stderr
    assert "night" in done.stderr


def test_eval_errors_are_one_line(finished: Path, tmp_path: Path) -> None:
    for args, code, words in (
        (["checkpoint=nowhere"], 3, "nowhere does not exist"),
        (["chekpoint=x"], 2, "did you mean checkpoint?"),
        ([f"checkpoint={finished}", "split=all"], 2, "val, test"),
        ([f"checkpoint={finished}", "images=nowhere"], 2, "nowhere is no folder"),
        ([f"checkpoint={finished}", "data.root=/x"], 2, "try images=/x"),
        ([f"checkpoint={finished}", "data=/x"], 2, "try images=/x"),
        ([], 2, "checkpoint"),
    ):
        done = run("eval", *args, cwd=tmp_path)
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr
        assert "Traceback" not in done.stderr
