"""What there is of Hydra: every row of docs/configuration.md is tried."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from commands import run, start
from hydra._internal.utils import get_args_parser

from vit.cli.argv import HYDRA_FLAGS, HYDRA_SETTINGS
from vit.config.yaml_files import config_dir

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
ROWS = re.findall(r"^\| `([^`]*)`(.*?) \| (.*) \|$", PAGE.read_text(), re.M)
LOOKS = ("--cfg", "-c", "-i", "-sc", "--hydra-help", "-h", "--version")
"""What starts no run."""
SHOWN = {
    "-m seed=0,1": "=== seed-1", "-r": "trainer.epochs=0 must", "-c job": "\ntrainer:",
    "--cfg job --resolve": "\ntrainer:", "--cfg job -p model": "# @package model",
    "-i searchpath": "pkg://hydra.conf", "-cd mine model=mine --cfg job": "name: mine",
    "-sc install=bash": "-F hydra_bash_completion vit-train", "--hydra-help": "== Flags",
    "-h": "usage: vit-train", "--version": "vit-train 0",
    "hydra/launcher=joblib hydra.launcher.n_jobs=2 --cfg hydra": "n_jobs: 2",
    "+hydra.callbacks.own._target_=own.Callback": "told of a job",
    "+hydra.job.env_set.WHO=b/c name=${oc.env:WHO}": "name=b/c must",
    "hydra.sweeper.max_batch_size=1 -m seed=0,1": "=== seed-1",
    "+experiment=photos --cfg job": "name: folder", "++seed=3 --cfg job": "seed: 3",
    "-m model=glob(*)": "=== model-tiny", "-m seed=range(0,2)": "=== seed-1",
    "model.dim=${model.depth} --cfg job": "dim: ${model.depth}",
}  # fmt: skip
"""What is seen of the rows that work."""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder with settings and a callback of one's own."""
    for group in ("model", "experiment"):
        (tmp_path / "mine" / group).mkdir(parents=True)
    (tmp_path / "mine" / "model" / "mine.yaml").write_text(
        "# a model of my own\ndefaults: [_base]\nname: mine\n"
    )
    (tmp_path / "own.py").write_text(
        "from hydra.experimental.callback import Callback as Base\n"
        "class Callback(Base):\n"
        "    def on_job_start(self, **_): print('told of a job')\n"
    )
    return tmp_path


@pytest.mark.parametrize(("given", "more", "answer"), ROWS)
def test_a_row_of_the_page_is_true(given: str, more: str, answer: str, mine: Path) -> None:
    words = shlex.split(given)
    is_run = not set(words) & {*LOOKS}
    if is_run:
        words.append("trainer.epochs=0")
    if "own.Callback" in given:  # found in the folder where a process starts
        out, err = (process := start("train", *words, cwd=mine)).communicate()
        code = process.returncode
    else:
        done = run("train", *words, cwd=mine)
        out, err, code = done.stdout, done.stderr, done.returncode
    assert "Traceback" not in err
    if not answer.startswith("works"):
        assert (code, err) == (2, f"vit-train: {answer}\n")
        return
    assert SHOWN[given] in out + err
    assert "=== model-_base" not in out
    if not is_run:
        assert (code, err) == (0, "")
    assert {path.name for path in mine.iterdir()} <= {"mine", "own.py", "outputs", "__pycache__"}


def test_the_page_has_every_option_and_setting() -> None:
    text = " ".join(given + more for given, more, _ in ROWS).replace("hydra/", "hydra.")
    hydras = {name for action in get_args_parser()._actions for name in action.option_strings}
    for option in {*hydras, *HYDRA_FLAGS}:
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", text), option
    for setting in HYDRA_SETTINGS:
        assert setting in text, setting


# Completion


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "vit-train model=",
            "model=auto model=base model=large model=micro model=small model=tiny",
        ),
        ("vit-train trainer.ep", "trainer.epochs="),
        ("vit-train --config-dir mine model=m", "model=micro model=mine"),
    ],
)
def test_a_shell_is_told_what_there_is(
    line: str, words: str, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    done = run("train", "-sc", "query=bash", cwd=mine)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{words}\n", "")


@pytest.mark.parametrize("words", [["-sc"], ["-sc", "install=tcsh"], ["-sc", "model=small"]])
def test_a_shell_that_hydra_does_not_know(words: list[str], tmp_path: Path) -> None:
    done = run("train", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("vit-train: -sc is for a shell, bash, zsh or fish")
    assert done.stderr.count("\n") == 1


# Files of one's own


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("defaults: [{override /model: nope}]", "model=nope does not exist; choose one of auto, "),
        (
            "defaults: [{override /nope: x}]",
            "nope, which experiment/a.yaml asks for, is no setting",
        ),
        ("defaults: [nope]", "experiment=nope, which experiment/a.yaml asks for, does not exist"),
        ("hydra: {nope: 1}", "experiment/a.yaml cannot be used: Key 'nope' not in 'HydraConf'"),
        ("- 1", "experiment/a.yaml cannot be used: "),
    ],
)
def test_a_file_that_cannot_be_used_is_named(text: str, answer: str, mine: Path) -> None:
    (mine / "mine" / "experiment" / "a.yaml").write_text(f"# @package _global_\n{text}\n")
    done = run("train", "--config-dir", "mine", "experiment=a", cwd=mine)
    assert done.returncode == 2
    assert done.stderr.startswith(f"vit-train: {answer}")
    assert done.stderr.count("\n") == 1
    assert "_base" not in done.stderr


def test_hydras_folders_in_a_file_change_nothing(mine: Path) -> None:
    (mine / "mine" / "experiment" / "a.yaml").write_text(
        "# @package _global_\nhydra: {run: {dir: elsewhere}, output_subdir: .hydra}\n"
    )
    run("train", "--config-dir", "mine", "experiment=a", "trainer.epochs=0", cwd=mine)
    assert {path.name for path in mine.iterdir()} == {"mine", "own.py"}


def test_options_of_ones_own_are_in_the_help(mine: Path) -> None:
    done = run("train", "--config-dir", "mine", "--help", cwd=mine)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^  mine +a model of my own$", done.stdout, re.M)


def test_no_file_of_ours_says_where_hydra_writes() -> None:
    for file in config_dir().glob("*.yaml"):
        assert "hydra" not in yaml.safe_load(file.read_text()), file
