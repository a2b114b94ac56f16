"""Weights that are not finite, or whose answers are not, are used by no command."""

from __future__ import annotations

import math
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from composing import changed, sized
from pictures import CPU, noise, save
from safetensors.torch import save_file

from vit.artifacts import checkpoint
from vit.artifacts.run_dir import RunDir
from vit.cli import eval as eval_command
from vit.cli import explain, export, front, predict
from vit.config.resolve import resolve
from vit.errors import ConfigError
from vit.training.distill import load_teacher
from vit.training.weight_files import load_pretrained


@pytest.fixture(scope="module")
def spoiled(finished: Path, tmp_path_factory) -> dict[str, Path]:
    """A run with a weight that is no number, and one whose finite weights give no numbers."""
    folder = tmp_path_factory.mktemp("spoiled")
    places = {}
    for kind in ("weights", "answers"):
        places[kind] = Path(shutil.copytree(finished, folder / kind))
        best = RunDir(places[kind]).best
        content = {k: v for k, v in checkpoint.load(best).items() if k != "format_version"}
        if kind == "weights":
            content["weights"]["blocks.1.mlp.fc1.bias"][3] = math.nan
        else:
            content["weights"]["norm.weight"].fill_(3e38)
        checkpoint.save(best, content)
    save(folder / "photos" / "1" / "a.png", noise(8, 8, seed=0))
    return {**places, "photos": folder / "photos"}


COMMANDS = {
    "eval": (eval_command.evaluate, ["output={out}"]),
    "predict": (predict.predict, ["output={out}/labels.csv", "images={photos}"]),
    "explain": (explain.explain, ["output={out}", "images={photos}"]),
    "export": (export.export, ["output={out}/model.pt2", "format=torch", "limit=20"]),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("kind", "code"), [("weights", 3), ("answers", 4)])
def test_every_command_refuses_in_one_line(
    spoiled, command, kind, code, tmp_path, monkeypatch, capfd
):
    job, more = COMMANDS[command]
    argv = [f"checkpoint={spoiled[kind]}"]
    argv += [arg.format(photos=spoiled["photos"], out=tmp_path) for arg in more]
    monkeypatch.setattr(sys, "argv", [f"vit-{command}", *argv])
    assert front.run(command, job) == code
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = [line for line in re.split(r"[\r\n]+", err) if "vit-" in line]
    assert "not finite" in line
    assert "give another checkpoint" in line
    assert "Traceback" not in err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_weights_to_start_from_are_finite(spoiled, tmp_path):
    tensors = checkpoint.load(RunDir(spoiled["weights"]).best)["weights"]
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "a.pth")
    for place in (spoiled["weights"], tmp_path / "a.safetensors", tmp_path / "a.pth"):
        with pytest.raises(
            ConfigError, match=r"^model\.weights=.*not finite \(blocks\.1\.mlp"
        ) as e:
            load_pretrained(str(place))
        assert e.value.exit_code == 2


def test_a_teacher_is_finite(spoiled, tmp_path):
    import timm

    theirs = timm.create_model("test_vit", num_classes=10).state_dict()
    theirs["norm.bias"][0] = math.inf
    torch.save(theirs, tmp_path / "t.pth")
    for settings in (
        {"distill__teacher": str(spoiled["weights"])},
        {"distill__teacher": "timm/test_vit", "distill__weights": str(tmp_path / "t.pth")},
    ):
        config = resolve(sized(changed(**settings)), precision="fp32")
        with pytest.raises(ConfigError, match=r"^distill\..*not finite \(.*; give") as e:
            load_teacher(config, list("0123456789"), CPU)
        assert e.value.exit_code == 2
