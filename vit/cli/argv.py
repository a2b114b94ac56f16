"""Command-line arguments, quoted and completed for Hydra's override grammar."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from vit.config.commands import SCHEMAS
from vit.config.plugins import use_plugins
from vit.config.rules import none_of
from vit.config.schema import RunConfig
from vit.config.validate import in_our_words, legal_keys
from vit.errors import ConfigError, printable

PATH_KEYS = frozenset(
    {
        "data.root", "data.images", "data.cache_dir", "outputs", "resume", "checkpoint", "images",
        "output", "model.weights", "distill.teacher", "distill.weights", "name", "sheet", "class",
        "data.image_column", "data.label_column", "data.split_column", "data.weight_column",
        "data.group_column", "data.group",
    }
)  # fmt: skip
"""Their values are taken as they are: Hydra's grammar refuses `~`, `=`, parentheses and more."""

_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
HYDRA_FLAGS: dict[str, Sequence[str]] = {
    "--multirun": (), "--run": (), "--cfg": ("job", "hydra", "all"), "--resolve": (),
    "--package": sorted({key.rpartition(".")[0] for key in legal_keys()} - {""}), "--info": _INFO,
    "--config-dir": ("./mine",), "--shell-completion": (), "--hydra-help": (), "--help": (),
    "--version": (),
}  # fmt: skip
"""Hydra's options that work, and what is given to each: one of these; of a folder an example."""
HYDRA_SETTINGS = (
    "hydra.launcher", "hydra.callbacks", "hydra.job.env_set", "hydra.sweeper.max_batch_size",
)  # fmt: skip
"""Its settings that work, with what is below them; `hydra/launcher` is `hydra.launcher`."""
_SHORT = {
    "-m": "--multirun", "-r": "--run", "-c": "--cfg", "-p": "--package", "-i": "--info",
    "-cd": "--config-dir", "-sc": "--shell-completion", "-h": "--help",
}  # fmt: skip
_ALONE = ("--multirun", "--cfg", "--info", "--shell-completion")
_SHELLS = r"(install|uninstall|query)=(bash|zsh|fish)"

OPTIONAL_GROUPS = frozenset({"experiment", "sweep"})
"""Groups of which nothing may be picked: `null`, which is their default."""

NO_SETTING = "{} is no setting; write key=value, e.g. trainer.epochs=10 (--help lists them)"
_OVERRIDE = re.compile(r"(?P<sign>\+{0,2})(?P<key>[A-Za-z_][^=\s]*)=(?P<value>.*)", re.DOTALL)
_LENGTHS = {"trainer.steps": "trainer.epochs", "trainer.epochs": "trainer.steps"}


def split(argv: list[str], command: str = "train") -> tuple[dict[str, str], list[str]]:
    """Hydra's options by their long names, with their values or "", and overrides.

    What uses a model takes it, then images, also without `checkpoint=` and `images=`. The plug-ins
    of `import=<file.py>` are known from here on.

    Raises:
        ConfigError: an option that does not exist, or lacks its value; what is neither option nor
            setting.
    """
    flags: dict[str, str] = {}
    overrides: list[str] = []
    words: list[str] = []
    rest = list(argv)
    while rest:
        arg = rest.pop(0)
        name, equals, value = arg.partition("=")
        name = _SHORT.get(name, name)
        if name in HYDRA_FLAGS:
            if HYDRA_FLAGS[name] and not equals and rest and (name != "--info" or rest[0] in _INFO):
                value = rest.pop(0)
            flags[name] = value or "all" * (name == "--info")
        elif name.lstrip("+") == "import" and equals:
            use_plugins(value)
        elif _OVERRIDE.fullmatch(arg):
            overrides.append(arg)
        elif arg.startswith("-"):
            if not equals and rest and not (rest[0].startswith("-") or "=" in rest[0]):
                value = rest[0]
            raise ConfigError(
                in_our_words(name, _plain(value), SCHEMAS[command])
                or f"{arg} is no option; settings are written key=value, e.g. trainer.epochs=10 "
                f"(--help lists them)"
            )
        else:
            words.append(arg)
    if words and "--help" not in flags:
        overrides += _without_keys(words, overrides, command)
    _check_flags(flags, overrides)
    if "--help" in flags:
        flags["--help"] = "".join(words[:1])
    return flags, overrides


def _plain(text: str) -> Any:
    for read in (int, float):
        with contextlib.suppress(ValueError):
            return read(text)
    return {"": None, "true": True, "false": False}.get(text.lower(), text)


def _without_keys(words: list[str], overrides: list[str], command: str) -> list[str]:
    """What is given without `key=` as overrides: a checkpoint, then images."""
    given = {line.lstrip("+").partition("=")[0] for line in overrides}
    arg = words[0]
    if command == "train":
        if arg.startswith(("/", "./", "../", "~/")) or os.path.exists(arg):
            raise ConfigError(
                f"{printable(arg)} is a path; data=folder data.root=<path> trains on a folder, "
                f"data=table data.root=<path> on a table, resume=<path> goes on with a run"
            )
        if arg.startswith("~"):
            raise ConfigError(f"{arg} takes away what is needed; give another value, or null")
        raise ConfigError(NO_SETTING.format(printable(arg) or "''"))
    found = [] if "checkpoint" in given else [f"checkpoint={words.pop(0)}"]
    if words and "images" in given:
        raise ConfigError(f"{printable(words[0])} is one too many; images= is given")
    if words:
        listed = f"[{','.join(_in_quotes(os.path.expanduser(word)) for word in words)}]"
        found.append(f"images={listed if len(words) > 1 else words[0]}")
    return found


def _check_flags(flags: dict[str, str], overrides: list[str]) -> None:
    """Refuse what Hydra would ignore, or answer in words of its own."""
    for flag, value in flags.items():
        choices = HYDRA_FLAGS[flag]
        if flag == "--config-dir":
            if not os.path.isdir(value):
                raise ConfigError(f"--config-dir {value} is no folder; give the path of one")
        elif value not in (choices or ("",)) and not (flag == "--package" and "hydra" in value):
            raise ConfigError(f"{flag}={value} {none_of(value, choices or ['alone'])}")
        if flag in ("--package", "--resolve") and "--cfg" not in flags:
            raise ConfigError(f"{flag} is of what --cfg prints; add --cfg job")
    if len(alone := [flag for flag in _ALONE if flag in flags]) > 1:
        raise ConfigError(f"{' and '.join(alone)} do not go together; give one of them")
    if "--shell-completion" in flags and not re.fullmatch(_SHELLS, " ".join(overrides)):
        raise ConfigError(
            '-sc is for a shell, bash, zsh or fish: eval "$(vit-train -sc install=bash)"'
        )


def prepare(overrides: list[str], groups: Iterable[str]) -> list[str]:
    """Quote paths, let the checks (not Hydra) judge unknown keys, and pair epochs with steps.

    Args:
        overrides: as typed.
        groups: names of config groups, whose overrides (`model=small`) are Hydra's.

    Raises:
        ConfigError: one of Hydra's settings that would have no effect.
    """
    for override in overrides:
        key = override.lstrip("+").partition("=")[0]
        if re.match(r"hydra\b", key):
            name = f"{key.replace('/', '.')}."
            if not name.startswith(tuple(f"{setting}." for setting in HYDRA_SETTINGS)):
                raise ConfigError(
                    f"{key} has no effect here; a run lies in outputs=<folder>, called name=<name> "
                    f"(docs/configuration.md lists what there is of Hydra's)"
                )
    # Nothing is picked already, and Hydra knows no word for it.
    nothing = {f"{group}=null" for group in OPTIONAL_GROUPS}
    overrides = [override for override in overrides if override.lstrip("+") not in nothing]
    typed = {m["key"]: m["value"] for m in map(_OVERRIDE.fullmatch, overrides) if m}
    prepared = [_prepare_one(override, frozenset(groups)) for override in overrides]
    for length, other in _LENGTHS.items():
        if typed.get(length, "null") != "null" and other not in typed:
            prepared.append(f"++{other}=null")
    return prepared


def safe_name(text: str) -> str:
    """`text` as a folder name of [A-Za-z0-9._-]; a hash keeps what would be lost distinct."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "run"
    if name == text and len(name) <= 120:
        return name
    return f"{name[:100]}-{short_hash(text)}"


def short_hash(text: str) -> str:
    """Eight hexadecimal digits that stand for `text`."""
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=4).hexdigest()


def quoted(value: str) -> str:
    """A path in quotes, `~` expanded; `null`, quoted values and lists stay."""
    is_quoted = len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]
    if value == "null" or is_quoted or (value.startswith("[") and value.endswith("]")):
        return value
    return _in_quotes(os.path.expanduser(value))


def _in_quotes(path: str) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(path, Quote.single).with_quotes()


def _prepare_one(override: str, groups: frozenset[str]) -> str:
    match = _OVERRIDE.fullmatch(override)
    assert match is not None
    sign, key, value = match["sign"], match["key"], match["value"]
    if key in groups:  # a path, which is a slip, is told as one; whatever lies here, names stay
        is_path = value.startswith(("~", ".", "/")) or os.path.exists(value)
        is_plain = re.fullmatch(r"[\w./-]+", value)
        if key in OPTIONAL_GROUPS or key in {field.name for field in fields(RunConfig)}:
            sign = ""  # one is picked anyway, and Hydra would read the first of two
        return f"{sign}{key}={_in_quotes(value) if is_path and not is_plain else value}"
    if key.startswith("hydra") or "@" in key:
        return override
    if key in PATH_KEYS:
        value = quoted(value)
    return f"{sign or '++'}{key}={value}"
