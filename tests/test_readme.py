"""Every command in the README and in --help is one that the settings accept."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from vit.cli.argv import prepare, split
from vit.cli.overrides import Overrides
from vit.cli.usage import EXAMPLES, FIRST_RUN, groups_in
from vit.config.commands import SCHEMAS
from vit.config.validate import legal_keys
from vit.config.yaml_files import config_dir

ROOT = Path(__file__).resolve().parent.parent
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PLUGINS = re.findall(r'^    "vit\.\w+": {"(\w+)"', (ROOT / "docs/plugins.md").read_text(), re.M)
"""The names that the example of docs/plugins.md has."""
COMMANDS = sorted(
    {
        line.split("#")[0].strip("`$ ")
        for text in TEXTS
        for line in re.findall(
            rf"(?:^|`)((?:{'|'.join(f'vit-{command}' for command in SCHEMAS)})[^`\n]*)",
            text.read_text(),
            re.M,
        )
    }
    | {FIRST_RUN, *(line for examples in EXAMPLES.values() for line, _ in examples)}
)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_accepted(command: str) -> None:
    program, *args = shlex.split(command)
    groups = groups_in(config_dir())
    legal = set(legal_keys(SCHEMAS[program.removeprefix("vit-")]))
    args = [re.sub(r"[<>]", "", arg) for arg in args if not arg.startswith("import=")]
    if "--config-dir" in args:  # which need not be here
        args[args.index("--config-dir") + 1] = "."
    _, lines = split(args, program.removeprefix("vit-"))
    overrides = Overrides(prepare(lines, groups))
    for key in overrides.keys:
        if key in groups:
            assert set(overrides.choices(key)) <= {*groups[key], *PLUGINS}, command
        elif not key.startswith("hydra"):
            assert key.partition(".options.")[0] in legal | {"optim", "data"}, command


@pytest.mark.parametrize("text", [t for t in TEXTS if "```python" in t.read_text()], ids=str)
def test_python_in_the_texts_runs(text: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", text.read_text(), re.S):
        exec(compile(block, text.name, "exec"), {})


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 10


def test_every_file_in_the_texts_exists() -> None:
    named = {
        f
        for text in TEXTS
        for f in re.findall(r"\b(?:vit|tests|configs)/[\w/]+\.\w+", text.read_text())
    }
    assert len(named) > 30
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_make_target_in_the_texts_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    used = {t for text in TEXTS for t in re.findall(r"\bmake ([a-z-]+)", text.read_text())}
    assert used <= targets
    assert {"setup", "train", "test", "lint", "help", "clean", "tensorboard"} <= targets
