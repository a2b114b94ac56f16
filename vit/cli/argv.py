"""What the user typed, made fit for Hydra's grammar."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable

from vit.config.errors import ConfigError

PATH_KEYS = frozenset(
    {
        "data.root", "outputs", "resume", "checkpoint", "images", "output", "model.weights", "name",
    }
)  # fmt: skip
"""Their values are taken as they are: Hydra's grammar refuses `~`, `=`, parentheses and more."""

HYDRA_FLAGS = frozenset(
    {
        "-m", "--multirun", "-c", "--cfg", "--resolve", "-p", "--package", "-r", "--run", "-cp",
        "--config-path", "-cn", "--config-name", "-cd", "--config-dir", "-i", "--info", "-sc",
        "--shell-completion", "--hydra-help", "--version", "--experimental-rerun",
    }
)  # fmt: skip

_OVERRIDE = re.compile(r"(?P<sign>\+{0,2})(?P<key>[^=\s~+'\"-][^=\s]*)=(?P<value>.*)", re.DOTALL)
_LENGTHS = {"trainer.steps": "trainer.epochs", "trainer.epochs": "trainer.steps"}


def prepare(argv: list[str], groups: Iterable[str]) -> list[str]:
    """Quote paths, let the checks (not Hydra) judge unknown keys, and pair epochs with steps.

    Args:
        argv: the arguments as typed.
        groups: names of config groups, whose overrides (`model=small`) are Hydra's.

    Raises:
        ConfigError: an option that does not exist.
    """
    keys = {match["key"] for arg in argv if (match := _OVERRIDE.fullmatch(arg))}
    flags = [arg for arg in argv if not _OVERRIDE.fullmatch(arg)]
    for flag in flags:
        if flag.startswith("-") and flag.split("=")[0] not in HYDRA_FLAGS:
            raise ConfigError(
                f"{flag} is no option; settings are written key=value, e.g. trainer.epochs=10 "
                f"(vit-train --help lists them)"
            )
    overrides = [arg for arg in argv if _OVERRIDE.fullmatch(arg)]
    # Hydra's parser wants all overrides in one piece.
    prepared = [*flags, *(_prepare_one(arg, frozenset(groups)) for arg in overrides)]
    for given, other in _LENGTHS.items():
        if given in keys and other not in keys:
            prepared.append(f"++{other}=null")
    return prepared


def value_of(argv: Iterable[str], key: str) -> str | None:
    """The last value given to `key`, as typed, without quotes."""
    matches = [m for arg in argv if (m := _OVERRIDE.fullmatch(arg)) and m["key"] == key]
    return matches[-1]["value"].strip("'\"") if matches else None


def safe_name(text: str) -> str:
    """`text` as a folder name of [A-Za-z0-9._-]; a hash keeps what would be lost distinct."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "run"
    if name == text and len(name) <= 120:
        return name
    return f"{name[:100]}-{short_hash(text)}"


def short_hash(text: str) -> str:
    """Eight hexadecimal digits that stand for `text`."""
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def quoted(value: str) -> str:
    """A path in quotes, `~` expanded; `null`, quoted values and lists stay."""
    if value == "null" or value[:1] in ("'", '"', "["):
        return value
    path = os.path.expanduser(value)
    # In Hydra's quotes a backslash is special only before a quote.
    path = re.sub(r"(\\*)(')", r"\1\1\\\2", path)
    path = re.sub(r"(\\+)$", r"\1\1", path)
    return f"'{path}'"


def _prepare_one(arg: str, groups: frozenset[str]) -> str:
    match = _OVERRIDE.fullmatch(arg)
    if match is None:
        return arg
    sign, key, value = match["sign"], match["key"], match["value"]
    if key in groups or key.startswith("hydra") or "@" in key:
        return arg
    if key in PATH_KEYS:
        value = quoted(value)
    return f"{sign or '++'}{key}={value}"
