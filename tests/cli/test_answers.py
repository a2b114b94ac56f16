"""What an error is answered with: a line, remedies that the command has, and an exit code."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from commands import run

from vit.cli.answers import errors_to_exit_code
from vit.config.yaml_files import config_dir, load_yaml

COMMANDS = ["train", "eval", "predict", "embed", "explain", "export", "runs"]


def answered(command: str, error: Exception, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and the last line."""
    with errors_to_exit_code(command) as outcome:
        raise error
    return outcome[0], capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("command", COMMANDS)
def test_only_what_can_go_on_is_told_to(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = answered(command, RuntimeError("odd"), capsys)
    assert code == 1
    assert line.startswith(f"vit-{command}: unexpected RuntimeError")
    assert ("resume=" in line) == (command == "train")


@pytest.mark.parametrize("command", COMMANDS)
def test_less_memory_is_asked_for_in_settings_that_there_are(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = answered(command, MemoryError(), capsys)
    assert code == 1
    assert line.startswith(f"vit-{command}: out of memory")
    words = line.replace("=", " ").replace(",", " ").split()
    named = {word for word in words if word in ("device", "layers", "batch_size") or "." in word}
    assert bool(named) == (command != "runs")
    if command == "runs":
        return
    plain = load_yaml((config_dir() / f"{command}.yaml").read_text(), command)
    for key in named:
        group, _, name = key.rpartition(".")
        if group == "trainer":
            place = load_yaml((config_dir() / "trainer" / "default.yaml").read_text(), key)
        else:
            place = plain[group] if group else plain
        assert name in place, key


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.EMFILE, 1, "ulimit -n"), (errno.ENOENT, 1, "moved or deleted"),
        (errno.EACCES, 1, "rights"), (errno.ENOSPC, 5, "No space left"), (errno.EIO, 1, "error"),
    ],
)  # fmt: skip
def test_what_the_system_refuses_is_one_line(
    number: int, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with errors_to_exit_code("eval") as outcome:
        raise OSError(number, os.strerror(number), "a/\x1b[2Jb")
    err = capsys.readouterr().err
    assert (outcome[0], err.count("\n")) == (code, 1)
    assert err.startswith("vit-eval: a/\\x1b[2Jb: ")
    assert words in err


def test_an_evaluation_looks_at_its_output_before_any_work(tmp_path: Path) -> None:
    done = run("eval", "checkpoint=nowhere", "output=/proc/no/where", cwd=tmp_path)
    assert done.returncode == 2  # and not 3, for the checkpoint is looked at later
    assert done.stderr.startswith("vit-eval: output=/proc/no/where cannot be written (")
    assert done.stderr.count("\n") == 1
