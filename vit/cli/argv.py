"""Command-line arguments, quoted and completed for Hydra's override grammar."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import fields

from vit.config.plugins import use_plugins
from vit.config.schema import RunConfig
from vit.errors import ConfigError, printable

PATH_KEYS = frozenset(
    {
        "data.root", "data.cache_dir", "outputs", "resume", "checkpoint", "images", "output",
        "model.weights", "distill.teacher", "distill.weights", "name", "sheet", "class",
    }
)  # fmt: skip
"""Their values are taken as they are: Hydra's grammar refuses `~`, `=`, parentheses and more."""

HYDRA_FLAGS = frozenset(
    {
        "-m", "--multirun", "-c", "--cfg", "--resolve", "-p", "--package", "-cd", "--config-dir",
        "-i", "--info", "-sc", "--shell-completion", "--hydra-help",
    }
)  # fmt: skip
_WITH_VALUE = frozenset({"-c", "--cfg", "-p", "--package", "-cd", "--config-dir"})

OPTIONAL_GROUPS = frozenset({"experiment", "sweep"})
"""Groups of which nothing may be picked: `null`, which is their default."""

NO_SETTING = "{} is no setting; write key=value, e.g. trainer.epochs=10 (--help lists them)"
_OF_FOLDERS = re.compile(r"\+*hydra\.(run\.dir|sweep\.(dir|subdir)|output_subdir|job\.chdir)")
_OVERRIDE = re.compile(r"(?P<sign>\+{0,2})(?P<key>[A-Za-z_][^=\s]*)=(?P<value>.*)", re.DOTALL)
_IMPORT = re.compile(r"\+{0,2}import=(.*)", re.DOTALL)
_LENGTHS = {"trainer.steps": "trainer.epochs", "trainer.epochs": "trainer.steps"}


def without_imports(argv: list[str]) -> list[str]:
    """The arguments without `import=<file.py>`, whose plug-ins are known from here on.

    Raises:
        ConfigError: a file that is none, or has no plug-ins.
    """
    use_plugins(*(match[1] for match in map(_IMPORT.fullmatch, argv) if match))
    return [arg for arg in argv if not _IMPORT.fullmatch(arg)]


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's options with their values, and overrides.

    Raises:
        ConfigError: an option that does not exist, or what is neither option nor setting.
    """
    flags: list[str] = []
    overrides: list[str] = []
    for arg in argv:
        if (flags and flags[-1] in _WITH_VALUE) or not _OVERRIDE.fullmatch(arg):
            flags.append(arg)
        else:
            overrides.append(arg)
    if flags and flags[-1] in _WITH_VALUE:
        raise ConfigError(f"{flags[-1]} needs a value, e.g. --config-dir ./mine or --cfg job")
    for before, flag in zip([None, *flags], flags, strict=False):
        if flag.startswith("-") and flag.split("=")[0] not in HYDRA_FLAGS:
            raise ConfigError(
                f"{flag} is no option; settings are written key=value, e.g. trainer.epochs=10 "
                f"(--help lists them)"
            )
        if not flag.startswith(("-", "~")) and before not in _WITH_VALUE:
            raise ConfigError(NO_SETTING.format(printable(flag) or "''"))
    return flags, overrides


def prepare(overrides: list[str], groups: Iterable[str]) -> list[str]:
    """Quote paths, let the checks (not Hydra) judge unknown keys, and pair epochs with steps.

    Args:
        overrides: as typed.
        groups: names of config groups, whose overrides (`model=small`) are Hydra's.

    Raises:
        ConfigError: one of Hydra's settings that would have no effect.
    """
    for override in overrides:
        if match := _OF_FOLDERS.match(override):
            raise ConfigError(
                f"{match[0]} has no effect here; runs lie in outputs=<folder>, called name=<name>"
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
