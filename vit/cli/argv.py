"""Command-line arguments, quoted and completed for Hydra's override grammar."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from vit.config.commands import SCHEMAS
from vit.config.plugins import use_plugins
from vit.config.schema import RunConfig
from vit.config.validate import in_our_words, legal_keys
from vit.errors import ConfigError, printable

PATH_KEYS = frozenset(
    {
        "data.root", "data.images", "data.cache_dir", "outputs", "resume", "checkpoint", "images",
        "output", "model.weights", "distill.teacher", "distill.weights", "name", "sheet", "class",
        "knn", "page",
        "data.image_column", "data.label_column", "data.split_column", "data.weight_column",
        "data.group_column", "data.group", "data.label_separator",
    }
)  # fmt: skip
"""Their values are taken as they are: Hydra's grammar refuses `~`, `=`, parentheses and more."""

_FOLDER = "a run lies in outputs=<folder>, called name=<name>"
_OWN = "--config-dir <folder> adds settings of yours, experiment=<name> picks <folder>/experiment"
_TOLD = "a run says what it does, every trainer.log_every=<steps>, and writes metrics.jsonl"
_SWEEP = "vit-train -m key=<value>,<value> tries each, sweep=<name> what its file says"

HYDRA_FLAGS = {
    "--multirun": "", "--run": "", "--cfg": "", "--resolve": "", "--package": "", "--info": "",
    "--config-dir": "", "--shell-completion": "", "--hydra-help": "", "--help": "", "--version": "",
    "--config-path": _OWN, "--config-name": _OWN,
    "--experimental-rerun": "resume=<run folder> goes on with a run",
    "--hydra-version": "--info tells it",
}  # fmt: skip
"""Hydra's options: nothing, where one works, else what to do here (docs/configuration.md)."""
HYDRA_SETTINGS = {
    "hydra.searchpath": _OWN, "hydra.launcher": "", "hydra.callbacks": "", "hydra.job.env_set": "",
    "hydra.sweeper.max_batch_size": "",
    "hydra.run": _FOLDER, "hydra.sweep": _FOLDER, "hydra.output_subdir": _FOLDER,
    "hydra.job.chdir": _FOLDER, "hydra.job.name": _FOLDER,
    "hydra.verbose": _TOLD, "hydra.job_logging": _TOLD, "hydra.hydra_logging": _TOLD,
    "hydra.mode": _SWEEP, "hydra.sweeper": _SWEEP,
    "hydra": "docs/configuration.md lists what there is of Hydra's",
}  # fmt: skip
"""The same of its settings, and of what is below them; `hydra/launcher` is `hydra.launcher`."""
_SHORT = {
    "-m": "--multirun", "-r": "--run", "-c": "--cfg", "-p": "--package", "-i": "--info",
    "-cd": "--config-dir", "-sc": "--shell-completion", "-h": "--help", "-cp": "--config-path",
    "-cn": "--config-name",
}  # fmt: skip
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_VALUES = {
    "--cfg": ("job", "hydra", "all"),
    "--info": _INFO,
    "--package": sorted({key.rpartition(".")[0] for key in legal_keys()} - {""}),
    "--config-dir": ("./mine",),
}
"""What is given to options: one of these, of a folder an example."""
_ALONE = ("--multirun", "--cfg", "--info", "--shell-completion")
_SHELLS = r"(install|uninstall|query)=(bash|zsh|fish)"

OPTIONAL_GROUPS = frozenset({"experiment", "sweep"})
"""Groups of which nothing may be picked: `null`, which is their default."""

NO_SETTING = "{} is no setting; write key=value, e.g. trainer.epochs=10 (--help lists them)"
_OVERRIDE = re.compile(r"(?P<sign>\+{0,2})(?P<key>[A-Za-z_][^=\s]*)=(?P<value>.*)", re.DOTALL)
_LENGTHS = ("trainer.epochs", "trainer.steps", "trainer.minutes")
"""Of which one is given."""


def split(argv: list[str], command: str = "train") -> tuple[dict[str, str], list[str]]:
    """Hydra's options by their long names, with their values or "", and overrides.

    What uses a model takes it, then images, also without `checkpoint=` and `images=`. The plug-ins
    of `import=<file.py>` are known from here on.

    Raises:
        ConfigError: an option that does not exist or does nothing here, or lacks its value; what is
            neither option nor setting.
    """
    flags: dict[str, str] = {}
    overrides: list[str] = []
    words: list[str] = []
    rest = list(argv)
    while rest:
        arg = rest.pop(0)
        name, equals, value = arg.partition("=")
        name = _SHORT.get(name, name)
        if HYDRA_FLAGS.get(name):
            raise ConfigError(f"{name} has no effect here; {HYDRA_FLAGS[name]}")
        if name in HYDRA_FLAGS:
            takes_next = name in _VALUES and rest and (name != "--info" or rest[0] in _INFO)
            flags[name] = rest.pop(0) if takes_next and not equals else value
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
    if command == "eval" and found and words and all(map(_is_trained, (arg, words[0]))):
        found = [f"checkpoint={_listed([arg, words.pop(0)])}"]
    if words and "images" in given:
        raise ConfigError(f"{printable(words[0])} is one too many; images= is given")
    if words:
        found.append(f"images={_listed(words) if len(words) > 1 else words[0]}")
    return found


def _listed(words: list[str]) -> str:
    return f"[{','.join(_in_quotes(os.path.expanduser(word)) for word in words)}]"


def _is_trained(word: str) -> bool:
    """Whether this is a run folder or a checkpoint, and no images."""
    path = Path(word).expanduser()
    return (path / "checkpoints").is_dir() or path.suffix == ".pt"


def _check_flags(flags: dict[str, str], overrides: list[str]) -> None:
    """Refuse what Hydra would ignore, or answer in words of its own."""
    for flag, value in flags.items():
        choices = _VALUES.get(flag, ())
        if not value and choices and flag != "--info":
            raise ConfigError(f"{flag} needs a value, e.g. {flag} {choices[0]}")
        if flag == "--config-dir":
            if not os.path.isdir(value):
                raise ConfigError(f"--config-dir {value} is no folder; check the path")
        elif value and value not in choices and not (flag == "--package" and "hydra" in value):
            raise ConfigError(
                f"{flag} {value} is not taken"
                + (f"; choose one of {', '.join(choices)}" if choices else ", it has no value")
            )
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
            name = key.replace("/", ".")
            while name not in HYDRA_SETTINGS:
                name = name.rpartition(".")[0]
            if HYDRA_SETTINGS[name]:
                raise ConfigError(f"{key} has no effect here; {HYDRA_SETTINGS[name]}")
    # Nothing is picked already, and Hydra knows no word for it.
    nothing = {f"{group}=null" for group in OPTIONAL_GROUPS}
    overrides = [override for override in overrides if override.lstrip("+") not in nothing]
    typed = {m["key"]: m["value"] for m in map(_OVERRIDE.fullmatch, overrides) if m}
    prepared = [_prepare_one(override, frozenset(groups)) for override in overrides]
    lengths = [key for key in _LENGTHS if typed.get(key, "null") != "null"]
    if {"trainer.steps", "trainer.minutes"} <= {*lengths}:  # in a config the steps may be theirs
        raise ConfigError("trainer.steps and trainer.minutes contradict each other; give only one")
    if lengths:
        prepared += [f"++{key}=null" for key in _LENGTHS if key not in typed]
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


def quoted(value: str, key: str = "") -> str:
    """A path in quotes, `~` expanded; `null`, quoted values and lists of `key` stay."""
    is_quoted = len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]
    takes_lists = key in ("checkpoint", "images", "data.label_column")
    if value == "null" or is_quoted or (takes_lists and value[:1] + value[-1:] == "[]"):
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
        value = quoted(value, key)
    return f"{sign or '++'}{key}={value}"
