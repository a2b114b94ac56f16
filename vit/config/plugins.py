"""Plug-ins: parts from outside of this package, picked by their names in the settings.

An installed package has them as entry points (`[project.entry-points."vit.optim"]`); a file of the
user's, given as `import=<file.py>` on the command line, in a dictionary that is read as text:

    PLUGINS = {"vit.optim": {"sgd": sgd}}

So names are known without running anything. What a name stands for is loaded when settings pick it,
and no file but those of the command line: nothing that stands in a YAML or a checkpoint is.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cache, partial
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from typing import Any, TypeVar

from vit.errors import ConfigError

KINDS = {
    "data": "data.name", "augment": "augment.policy", "optim": "optim.name",
    "schedule": "schedule.name", "positions": "model.positions", "attention": "model.attention",
    "pool": "model.pool", "norm": "model.norm", "mlp": "model.mlp", "export": "format",
    "tracker": "tracker.name",
}  # fmt: skip
"""What a plug-in may be, and the setting that picks it."""
_files: dict[Path, set[tuple[str, str]]] = {}
"""Files of the user's, and what each has by (kind, name)."""
Part = TypeVar("Part")


@dataclass(frozen=True)
class Plugin:
    """A plug-in that is there.

    Attributes:
        source: package and version, or file.
        load: what its name stands for.
    """

    source: str
    load: Callable[[], Any]


def use_plugins(*files: str | Path) -> None:
    """Make the plug-ins of Python files known, as `import=<file.py>` does; nothing is run yet.

    Raises:
        ConfigError: there is no such file, or it has no dictionary PLUGINS that can be read.

    Example:
        >>> use_plugins("shapes.py")  # doctest: +SKIP
        >>> run = vit.train(["data=shapes"])  # doctest: +SKIP
    """
    for given in files:
        path = Path(given).expanduser().absolute()
        _files[path] = _listed(path)


def files() -> tuple[Path, ...]:
    """The files that `use_plugins` was given."""
    return tuple(_files)


def names(kind: str) -> tuple[str, ...]:
    """The plug-ins of a kind (a key of KINDS)."""
    of_files = {name for listed in _files.values() for of, name in listed if of == kind}
    return tuple(sorted(of_files | _installed(kind).names))


def find(kind: str, name: str) -> Plugin:
    """The plug-in of a name; that of a file comes before that of a package.

    Raises:
        ConfigError: there is none, or two packages have one.
    """
    for path, listed in _files.items():
        if (kind, name) in listed:
            return Plugin(path.name, partial(_of_file, path, kind, name))
    found = list(_installed(kind).select(name=name))
    sources = [f"{point.dist.name} {point.dist.version}" for point in found if point.dist]
    if len(found) > 1:
        raise ConfigError(f"{kind}={name} is a plug-in of {' and of '.join(sources)}; remove one")
    if not found:
        raise ConfigError(f"{KINDS[kind]}={name} is {ELSEWHERE}")
    return Plugin(sources[0], found[0].load)


ELSEWHERE = "of a plug-in that is not here: install its package, or give import=<its file.py>"


def part(
    table: Mapping[str, Part], kind: str, name: str, options: Mapping[str, Any] | None = None
) -> Part:
    """What `name` stands for: an entry of `table`, or a plug-in, which gets its own settings.

    Args:
        table: what this package has.
        options: the plug-in's own settings; of each that is left out, its default.

    Raises:
        ConfigError: it is neither, or cannot be loaded.
    """
    if name in table:
        return table[name]
    loaded = _loaded(kind, name)
    if (schema := options_of(loaded)) is not None:
        loaded = partial(loaded, options=schema(**(options or {})))
    return loaded  # type: ignore[no-any-return]


def options_schema(kind: str, name: str) -> type | None:
    """The dataclass of the settings of its own that a plug-in has; None: it has none."""
    return options_of(_loaded(kind, name)) if name in names(kind) else None


def options_of(loaded: Any) -> type | None:
    """The dataclass that a plug-in's parameter `options` is annotated with."""
    try:
        parameter = inspect.signature(loaded, eval_str=True).parameters.get("options")
    except (TypeError, ValueError):  # it is nothing to be called
        return None
    schema = None if parameter is None else parameter.annotation
    return schema if isinstance(schema, type) and is_dataclass(schema) else None


def sources(settings: Mapping[str, Any]) -> dict[str, str]:
    """The plug-ins that flat settings pick, as `key=name`, and where each is from."""
    picked = ((kind, key, settings.get(key)) for kind, key in KINDS.items())
    used = ((kind, key, name) for kind, key, name in picked if name in names(kind))
    return {f"{key}={name}": find(kind, name).source for kind, key, name in used}


def missing(needed: Mapping[str, str]) -> list[str]:
    """Of what `sources` told, what is not here, as words to read."""
    kinds = {key: kind for kind, key in KINDS.items()}
    told = ((*picked.partition("=")[::2], source) for picked, source in needed.items())
    return [
        f"{key}={name} of {source}" for key, name, source in told
        if key in kinds and name not in names(kinds[key])
    ]  # fmt: skip


def _loaded(kind: str, name: str) -> Any:
    plugin = find(kind, name)
    try:
        return plugin.load()
    except Exception as error:
        *_, last = traceback.extract_tb(error.__traceback__)
        where = f"{Path(last.filename).name}:{last.lineno}"
        told = " ".join(str(error).split())
        raise ConfigError(
            f"{KINDS[kind]}={name} of {plugin.source} cannot be loaded: {type(error).__name__}: "
            f"{told} ({where})"
        ) from error


@cache
def _installed(kind: str) -> EntryPoints:
    """The entry points of installed packages."""
    return entry_points(group=f"vit.{kind}")


def _kind(group: str, path: Path) -> str:
    kind = group.removeprefix("vit.")
    if group == kind or kind not in KINDS:
        known = ", ".join(f"vit.{kind}" for kind in KINDS)
        raise ConfigError(f"import={path}: {group} is no group of plug-ins; these are {known}")
    return kind


def _listed(path: Path) -> set[tuple[str, str]]:
    """What the dictionary PLUGINS of a file has by (kind, name): read, not run."""
    try:
        groups = dictionary(path, "PLUGINS")
    except LookupError:
        raise ConfigError(
            f'import={path} has no dictionary PLUGINS = {{"vit.optim": {{"name": function}}}}; '
            f"docs/plugins.md says more"
        ) from None
    except (OSError, ValueError, SyntaxError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"import={path}: {reason}; give a Python file") from None
    return {(_kind(group, path), name) for group, table in groups for name, _ in _entries(table)}


def dictionary(path: Path, name: str) -> list[tuple[str, ast.expr]]:
    """The entries of the dictionary `name` of a Python file, which is read, not run.

    Raises:
        LookupError: it has none.
    """
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign([ast.Name(target)], value) | ast.AnnAssign(ast.Name(target), _, value):
                if target == name:
                    return _entries(value)
    raise LookupError(f"{path} has no dictionary {name}")


def _entries(table: ast.expr | None) -> list[tuple[str, ast.expr]]:
    """What stands in a dictionary under keys that are plain text."""
    pairs = zip(table.keys, table.values, strict=True) if isinstance(table, ast.Dict) else ()
    return [(str(key.value), value) for key, value in pairs if isinstance(key, ast.Constant)]


def load_files(*paths: Path) -> None:
    """Run files of the user's, for what has their classes (a worker is sent objects of them)."""
    for path in paths:
        _module(path)


def _of_file(path: Path, kind: str, name: str) -> Any:
    return _module(path).PLUGINS[f"vit.{kind}"][name]


def _module(path: Path) -> Any:
    """A file of the user's as a module, run once."""
    module = f"vit_plugin_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    if module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[module] = importlib.util.module_from_spec(spec)  # where its classes look for it
        try:
            spec.loader.exec_module(sys.modules[module])
        except BaseException:
            del sys.modules[module]
            raise
    return sys.modules[module]
