"""The YAML files of settings: where they are, read and written as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vit.errors import ConfigError, first_line

_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, twenty times faster


def config_dir() -> Path:
    """The folder of the YAML files: inside the installed package, else beside it (a checkout)."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"no configs/train.yaml in {package} or beside it; reinstall vit-train")


def dump_yaml(plain: Mapping[str, Any]) -> str:
    """Plain values as YAML text that `load_yaml` reads back unchanged."""
    readable = str(yaml.safe_dump(dict(plain), sort_keys=False, allow_unicode=True))
    if yaml.safe_load(readable) == plain:
        return readable
    return str(yaml.safe_dump(dict(plain), sort_keys=False))  # rare characters need escapes


def load_yaml(text: str | bytes, where: str) -> dict[str, Any]:
    """Read YAML without tags, resolvers or interpolation (a saved config is untrusted text).

    Raises:
        ConfigError: the text is not YAML, not a mapping, or no end of one; names `where`.
    """
    try:
        try:
            plain = yaml.load(text, _SafeLoader)
        except yaml.YAMLError:  # of the two only the slow one knows bytes that are no UTF-8
            plain = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{where} is not readable YAML ({first_line(error)}); restore it"
        ) from None
    if not isinstance(plain, dict) or not _is_small(plain):
        raise ConfigError(f"{where} holds no settings; restore it")
    return plain


def _is_small(value: Any, most: int = 10_000) -> bool:
    """Whether nested values, aliases written out, are no more than settings may be."""
    rest = [value]
    for _ in range(most):
        if not rest:
            return True
        value = rest.pop()
        if isinstance(value, (Mapping, list)):
            rest += value.values() if isinstance(value, Mapping) else value
    return False
