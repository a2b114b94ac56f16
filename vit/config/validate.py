"""Validation: from plain values to a checked, typed config."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from vit.config import plugins
from vit.config.checks import CHECKS, FITTED_TO_DATA, FROM_WEIGHTS, Check
from vit.config.rules import DurationRule, Percent, none_of
from vit.config.schema import ReadConfig, RunConfig
from vit.config.words import WORDS, timm_shape
from vit.errors import ConfigError, nearest

_NONE = type(None)
_MEANT = {
    "checkpoint": "run folder or checkpoint file",
    "images": "file, folder or pattern",
    "model.weights": "run folder, file or timm/model",
}
"""What is given to keys without a default."""
_MISSING = dataclasses.MISSING
_TO_BE_GIVEN = ("???", "<to be given>", _MISSING)
"""Hydra's word for a value that must be given, one that takes the place of a default, and none."""
_EXAMPLES = {int: "32,32", float: "0.5,0.5"}
Section = TypeVar("Section", bound=ReadConfig)
Config = TypeVar("Config")


def to_config(
    plain: Mapping[str, Any], world_size: int | None = None, *, complete: bool = True
) -> RunConfig:
    """Check the settings of a training run and build its RunConfig.

    Args:
        plain: what the YAML files and the command line say, as nested dicts.
        world_size: number of processes that will share a batch; None: the settings are only
            looked at, not about to be run.
        complete: False: `model.weights`, where there are some, may still bring other values of
            FROM_WEIGHTS, and contradictions with these are not looked at.

    Raises:
        ConfigError: listing *every* unknown key (with the nearest legal one), wrong type, value
            out of range, missing key and contradiction, each with key, value and remedy.
    """
    checks: Sequence[Check] = CHECKS
    if not complete and flatten(plain).get("model.weights") is not None:
        checks = [check for check in CHECKS if not set(check.keys) & set(FROM_WEIGHTS)]
    return checked(RunConfig, plain, checks, world_size)


def checked(
    schema: type[Config], plain: Mapping[str, Any], checks: Sequence[Check] = (),
    world_size: int | None = 1,
) -> Config:  # fmt: skip
    """Check the settings of any command and build `schema` of them; see `to_config`."""
    values: dict[str, Any] = {"world_size": world_size}
    problems = unknown_keys(flatten(plain), schema)
    config: Config = _collect(schema, plain, "", values, problems)
    for check in checks:
        waiting = [key for key in FITTED_TO_DATA if values.get(key) == "auto"]
        if set(check.keys) <= values.keys() - (waiting if check.waits else []):
            problems += check.rule(*(values[key] for key in check.keys))
    if problems:
        raise ConfigError(problems)
    return config


def unknown_keys(flat: Mapping[str, Any], schema: type) -> list[str]:
    """What to say of each key that `schema` does not have, with the nearest legal one."""
    legal = legal_keys(schema)
    known = set(legal) | {key.rpartition(".")[0] for key in legal}
    own = tuple(f"{key}." for key, hint in legal.items() if get_origin(hint) is dict)
    return [
        unknown(key, value, schema)
        for key, value in flat.items()
        if key not in known and not key.startswith(own)
    ]


def to_data_section(schema: type[Section], plain: Mapping[str, Any]) -> Section:
    """Check group `data` alone, and of it what `schema` has; other keys may be any."""
    problems: list[str] = []
    section: Section = _collect(schema, plain, "data.", {}, problems)
    if problems:
        raise ConfigError(problems)
    return section


def to_plain(config: RunConfig) -> dict[str, Any]:
    """The config as nested dicts of plain values; `to_config` of it gives `config` again."""
    return dataclasses.asdict(config)


def misfit(value: Any, hint: Any) -> str | None:
    """The words that say what is legal instead of `value` for the type `hint`; None: it is."""
    return _fit(value, hint)[1]


def misfits(schema: type, values: Mapping[str, Any], where: str = "") -> list[str]:
    """What in nested values is not as the dataclass `schema` says; others than its keys may be any.

    Args:
        schema: whose fields with a default may be missing.
        values: looked at, not changed.
        where: stands before each key.
    """
    problems = []
    hints = get_type_hints(schema, include_extras=True)
    for field in dataclasses.fields(schema):
        key, hint = f"{where}{field.name}", hints[field.name]
        sections = [t for t in (hint, *get_args(hint)) if isinstance(t, type) and is_dataclass(t)]
        if field.name not in values:
            if field.default is field.default_factory is _MISSING:
                problems.append(f"{key} is missing")
        elif sections and isinstance(values[field.name], Mapping):
            problems += misfits(sections[0], values[field.name], f"{key}.")
        elif problem := _fit(values[field.name], hint)[1]:
            problems.append(f"{key} {problem}")
    return problems


def flatten(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as one dict with dotted keys (`trainer.epochs`); an empty dict is a value."""
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def legal_keys(schema: type = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of a schema, in its order, with its type."""
    keys: dict[str, Any] = {}
    for name, hint in get_type_hints(schema, include_extras=True).items():
        if is_dataclass(hint):
            keys |= legal_keys(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            keys[prefix + _key(name)] = hint
    return keys


def in_our_words(word: str, value: Any, schema: type = RunConfig) -> str | None:
    """What another trainer's word is called here, with its value (None: not given), in a sentence.

    A value that does not fit is told with what does; None: nobody says so.
    """
    legal = legal_keys(schema)
    groups = {key.partition(".")[0] for key in legal} if schema is RunConfig else set()
    section, _, name = word.strip("-").lower().replace("-", "_").rpartition(".")
    same = [key for key in legal if key.rpartition(".")[2] == name]
    if section and same:  # a slip in the section
        return None
    said = [ours for words, ours in WORDS.items() if name in words.split()]
    for ours in [*(f"{key}={{}}" for key in groups & {name}), *said, *(f"{k}={{}}" for k in same)]:
        key, equals, given = ours.split()[-1].partition("=")
        if not equals:
            return f"{word}: {ours}"
        if key in legal or key in groups:
            text = ours.format("<value>" if value is None else typed(value))
            if key == "model":
                text = timm_shape(str(value)) or text
            is_checked = key in legal and given == "{}" and value is not None
            problem = _fit(value, legal[key])[1] if is_checked else None
            return f"{word} is {key} here: {text}" + (f" {problem}" if problem else "")
    return None


def _collect(
    schema: type, plain: Mapping[str, Any], prefix: str, values: dict[str, Any], problems: list[str]
) -> Any:
    """Walk schema and values side by side; good values go to `values`, complaints to `problems`.

    Returns:
        `schema` of the values, or None where there are complaints.
    """
    result: dict[str, Any] = {}
    for field, hint in get_type_hints(schema, include_extras=True).items():
        name = _key(field)
        key = prefix + name
        if plain.get(name, _MISSING) in _TO_BE_GIVEN:
            problems.append(f"{key} is missing; give it as {key}=<{_MEANT.get(key, 'value')}>")
        elif is_dataclass(hint):
            if isinstance(plain[name], Mapping):
                section = typing.cast(type, hint)
                result[field] = _collect(section, plain[name], f"{key}.", values, problems)
            else:
                problems.append(f"{key}={plain[name]!r} is a group of keys; set e.g. {key}.<key>")
        else:
            value, problem = _fit(plain[name], hint)
            if problem is None:
                result[field] = values[key] = value
            else:
                problems.append(f"{key}={typed(plain[name])} {problem}")
    if "options" in result:
        result["options"] = _of_plugins(result, f"{prefix}options.", problems)
    return None if problems else schema(**result)


def _of_plugins(section: Mapping[str, Any], prefix: str, problems: list[str]) -> dict[str, Any]:
    """The settings of their own that a section's plug-ins have, every default filled in.

    `options` are those of the part that the section names; of the model, which has several parts,
    `options.<kind>` are.
    """
    group = prefix.removesuffix("options.")
    keys = {kind: key for kind, key in plugins.KINDS.items() if key.startswith(group)}
    kinds = {kind: key.removeprefix(group) for kind, key in keys.items()}
    given = section["options"]
    if len(kinds) == 1:
        ((kind, field),) = kinds.items()
        return _own(kind, section.get(field), given, prefix, problems)
    problems += [f"{prefix}{name} is no known key; give one of {', '.join(kinds)}"
                 for name in given if name not in kinds]  # fmt: skip
    made = {
        kind: _own(kind, section.get(field), given.get(kind, {}), f"{prefix}{kind}.", problems)
        for kind, field in kinds.items()
    }
    return {kind: options for kind, options in made.items() if options}


def _own(kind: str, name: Any, given: Any, prefix: str, problems: list[str]) -> dict[str, Any]:
    """The settings of one plug-in's own, checked by its dataclass."""
    if name is None:  # and complained of
        return {}
    schema = plugins.options_schema(kind, name)
    defaults: dict[str, Any] = {
        field.name: field.default if field.default_factory is _MISSING else field.default_factory()
        for field in (dataclasses.fields(schema) if schema is not None else ())
    }
    if not isinstance(given, Mapping):
        problems.append(f"{prefix[:-1]}={typed(given)} must be a group of keys")
        return {}
    for key in given.keys() - defaults.keys():
        close = nearest(key, defaults)
        known = f"choose one of {', '.join(defaults)}" if defaults else "leave it out"
        hint = f"did you mean {prefix}{close}?" if close else f"of {name}: {known}"
        problems.append(f"{prefix}{key} is no known key; {hint}")
    if schema is None:
        return {}
    built = _collect(schema, {**defaults, **given}, prefix, {}, problems)
    return {} if built is None else dataclasses.asdict(built)


def _key(field: str) -> str:
    """What users call a field: `class`, a word of Python's, is the field `class_`."""
    return field.removesuffix("_")


def unknown(key: str, value: Any = None, schema: type = RunConfig) -> str:
    """What to say of a key that there is not."""
    if meant := in_our_words(key, value, schema):
        return meant
    legal = legal_keys(schema)
    close = nearest(key, [*legal, *dict.fromkeys(name.partition(".")[0] for name in legal)])
    remedy = f"did you mean {close}?" if close else "--help lists all keys"
    return f"{key} is no known key; {remedy}"


def typed(value: Any) -> str:
    """A value as one would type it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _fit(value: Any, hint: Any) -> tuple[Any, str | None]:
    """`value` as the type `hint`, or the words that say what is legal instead."""
    if get_origin(hint) is Annotated:
        base, *rules = get_args(hint)
        value, problem = _fit(value, base)
        for rule in rules:
            if problem is None or isinstance(
                rule, (DurationRule, Percent)
            ):  # says more than a wrong type
                problem = rule(value)
        return value, problem
    if get_origin(hint) in (Union, types.UnionType):
        problems = []
        for option in get_args(hint):
            fitted, problem = _fit(value, option)
            if problem is None:
                return fitted, None
            problems.append(problem)
        return value, _join(problems)
    return _fit_plain(value, hint)


def _join(problems: list[str]) -> str:
    """Put the complaints of a union's members into one sentence."""
    ordered = sorted(dict.fromkeys(problems), key=lambda problem: problem == "must be null")
    first, *others = (problem.removeprefix("must ") for problem in ordered)
    verb = "be " if first.startswith("be ") else ""
    return " or ".join([f"must {first}", *(other.removeprefix(verb) for other in others)])


def _fit_plain(value: Any, hint: Any) -> tuple[Any, str | None]:
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        if any(type(value) is type(choice) and value == choice for choice in choices):
            return value, None
        return value, none_of(value, choices)
    if get_origin(hint) is list:
        (item,) = get_args(hint)
        if not isinstance(value, (list, tuple)):
            kind = next((k for k in _EXAMPLES if k in (item, *get_args(item))), None)
            if kind is None and (problem := _fit(value, item)[1]):
                return value, f"must be a list, of which each {problem}"
            return value, f"must be a list, e.g. [{_EXAMPLES[kind] if kind else value}]"
        fitted = [_fit(entry, item) for entry in value]
        return [entry for entry, _ in fitted], next((why for _, why in fitted if why), None)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and (isinstance(value, int) or hint is int) and abs(value) > 2**63:
        return value, "must be smaller than 2^63"
    if hint is float and is_number:
        return float(value), None
    if hint is int and is_number and math.isfinite(value) and value == int(value):
        return int(value), None
    if hint in (bool, str, _NONE) and isinstance(value, hint):
        return value, None
    if get_origin(hint) is dict and isinstance(value, Mapping):
        kind, _ = get_args(hint)
        return value, next((f"has a key {key!r}" for key in value if type(key) is not kind), None)
    words = {
        bool: "true or false", int: "a whole number", float: "a number", str: "text", _NONE: "null"
    }  # fmt: skip
    return value, f"must be {words.get(hint, 'a group of keys')}"
