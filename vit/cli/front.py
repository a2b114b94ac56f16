"""The entry of every command: argv to Hydra, errors to one line and an exit code."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vit.cli.answers import errors_to_exit_code, hydra_words
from vit.cli.argv import OPTIONAL_GROUPS, prepare, quoted, short_hash, split
from vit.cli.overrides import Overrides
from vit.cli.sweep import SweepInterrupted, as_sweep_job, report
from vit.cli.usage import groups_in, usage
from vit.config import plugins
from vit.config.commands import SCHEMAS
from vit.config.validate import legal_keys, misfit, typed, unknown_keys
from vit.config.words import timm_shape
from vit.config.yaml_files import config_dir
from vit.data.sources.table_file import ENDINGS
from vit.errors import ConfigError, VitError, nearest
from vit.runtime.memory import retain_freed_memory

Job = Callable[[dict[str, Any], Overrides], object]
"""Runs on plain settings and the overrides that led to them; raises typed errors."""
Groups = Mapping[str, Mapping[str, Path]]
"""Config groups, each with its options and their files."""


_COMPOSING = threading.Lock()
_NO_SETTING = re.compile(r"hydra\b|search\b|.*@")
"""Keys that are not of a run's settings."""


def run(command: str, job: Job) -> int:
    """Run `vit-<command>` on sys.argv; returns the exit code."""
    with errors_to_exit_code(command) as outcome:
        flags, lines = split(sys.argv[1:], command)
        groups = _groups(flags)
        if "--help" in flags:
            print(usage(command, groups, flags["--help"]), end="")
        elif "--version" in flags:
            print(f"vit-train {version('vit-train')}")
        elif "--shell-completion" in flags:
            _complete(command, lines)
        else:
            _compose_and_run(command, job, flags, Overrides(prepare(lines, groups)), groups)
    return outcome[0]


def composed(command: str, overrides: Sequence[str]) -> tuple[dict[str, Any], Overrides]:
    """The settings of `vit-<command>` as plain values, for those who call from Python.

    Raises:
        ConfigError: what the command would answer.
    """
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    for given in overrides:
        if not isinstance(given, str):
            raise ConfigError(f"{given!r} is no text; give settings: 'key=value'")
        if given.startswith(("-", "~")):
            raise ConfigError(f"{given} is for the command line; give settings: 'key=value'")
    _, lines = split(list(overrides), command)
    groups = _groups({})
    try:
        parsed = Overrides(prepare(lines, groups))
        _check_groups(command, parsed, groups)
        if parsed.several or is_sweep({}, parsed):
            raise ConfigError(
                f"{[*parsed.several, 'sweep'][0]} asks for several runs; write a loop, or start a "
                f"sweep with vit-train -m"
            )
        # Hydra composes for one thread at a time, and not within an application of its own.
        with _COMPOSING, _apart(), initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = compose(command, parsed.lines)
            plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    except VitError:
        raise
    except Exception as error:
        words = hydra_words(error)
        if words is None:
            raise
        raise ConfigError(words[0]) from None
    plain.pop("search", None)
    return plain, parsed


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Hydra is as if it had not begun; afterwards as it was."""
    from hydra.core.global_hydra import GlobalHydra

    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().hydra = None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = before


def is_sweep(flags: Mapping[str, str], overrides: Overrides) -> bool:
    """Whether the arguments ask for several runs."""
    return "--multirun" in flags or overrides.text("sweep") not in (None, "null")


def sweep_folder(overrides: Overrides) -> Path:
    """A sweep's folder: its name, or a hash of its overrides, so that it is found again."""
    outputs = Path(os.path.expanduser(overrides.text("outputs") or "outputs"))
    name = overrides.text("name")
    if name in (None, "null"):
        lines = sorted(str(override.input_line) for override in overrides.parsed)
        name = f"sweep-{short_hash(' '.join(lines))}"
    return outputs / str(name)


def _compose_and_run(
    command: str, job: Job, flags: dict[str, str], overrides: Overrides, groups: Groups
) -> None:
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    sweeps = is_sweep(flags, overrides)
    if sweeps and command != "train":
        raise ConfigError(f"vit-{command} takes no -m; run it once for each checkpoint")
    if sweeps and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("torchrun runs one training, not a sweep; leave out -m and sweep=")
    if sweeps and {"--cfg", "--info"} & set(flags):
        raise ConfigError("--cfg shows the settings of one run; leave out sweep=")
    _check_groups(command, overrides, groups)
    if overrides.several and not sweeps:
        raise ConfigError(
            [f"{line} asks for several runs; add -m, or write [a,b]" for line in overrides.several]
        )
    legal = legal_keys(SCHEMAS[command])
    if wrong := [
        f"{key}={typed(value)} {problem}"
        for key, values in (overrides.tried() if sweeps else {}).items()
        for value in values
        if key in legal and (problem := misfit(value, legal[key]))
    ]:
        raise ConfigError(wrong)
    if "--cfg" in flags:  # prints before anything is checked
        given = {o.key_or_group: o.value() for o in overrides.parsed}
        given = {k: v for k, v in given.items() if k not in groups and not _NO_SETTING.match(k)}
        if wrong := unknown_keys(given, SCHEMAS[command]):
            raise ConfigError(wrong)
    failure: list[Exception] = []

    def task(config: Any) -> None:
        try:  # Hydra would print a line of its own about an exception
            plain = OmegaConf.to_container(config, resolve=True)
            if folder is None and plain.pop("search", None):  # type: ignore[union-attr,call-arg,arg-type]
                raise ConfigError("search= is part of a sweep; start it with -m")
            job(plain, Overrides(HydraConfig.get().overrides.task))  # type: ignore[arg-type]
        except Exception as error:
            failure.append(error)

    if command != "train":  # which gives back what loading its data took
        retain_freed_memory()
    folder = sweep_folder(overrides) if sweeps else None
    lines = [*overrides.written_out(groups), "hydra.run.dir=.", "hydra.output_subdir=null"]
    if folder is not None:
        job = as_sweep_job(job, folder, overrides)
        flags = {**flags, "--multirun": ""}
        lines = [*lines, f"hydra.sweep.dir={quoted(str(folder))}", "hydra.sweep.subdir=."]
    _start_hydra(command, flags, lines, task)
    if failure:
        raise failure[0]
    if folder is not None:
        report(folder)


def _start_hydra(
    command: str, flags: Mapping[str, str], lines: list[str], task: Callable[[Any], None]
) -> None:
    import hydra

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting
    before = sys.argv
    options = [f"{flag}={value}" if value else flag for flag, value in flags.items()]
    sys.argv = [f"vit-{command}", *options, *lines]
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=command)(task)()
    except SweepInterrupted as stopped:
        raise stopped.error from None
    finally:
        sys.argv = before


def _complete(command: str, lines: list[str]) -> None:
    """What Hydra tells a shell, without `model=_base`, which is no option."""
    flags = {"--shell-completion": ""}
    own = re.search(r" (?:--config-dir|-cd)[ =](\S+)", os.environ.get("COMP_LINE", ""))
    if own and os.path.isdir(own[1]):
        flags["--config-dir"] = own[1]
    with contextlib.redirect_stdout(io.StringIO()) as told:
        _start_hydra(command, flags, lines, print)
    print(re.sub(r"\w+=_\w*\s", "", told.getvalue()), end="")


def _groups(flags: Mapping[str, str]) -> Groups:
    """Every config group with its options, plug-ins and the user's own included."""
    own = [Path(flags["--config-dir"])] if "--config-dir" in flags else []
    for folder in own:
        _refuse_calls(folder)
    legal = legal_keys()
    found = groups_in(config_dir(), *own)
    for group in (group for group in found if plugins.KINDS.get(group) == f"{group}.name"):
        for name in set(plugins.names(group)) - found[group].keys():
            found[group][name] = _offer(group, name)
    return {group: options for group, options in found.items() if group not in legal}


def _refuse_calls(folder: Path) -> None:
    """Refuse YAML files that name code, which Hydra and Python's logging would import and call.

    Raises:
        ConfigError: a value of `_target_`, `()` or `class` that is not Hydra's own.
    """
    import yaml

    for file in sorted(folder.rglob("*.yaml")):
        rest: list[Any] = []
        with contextlib.suppress(yaml.YAMLError, ValueError, OSError):  # which Hydra will tell
            rest = [yaml.safe_load(file.read_text(encoding="utf-8"))]
        known: set[int] = set()  # for YAML may hold itself
        for value in rest:  # which grows
            if id(value) in known:
                continue
            known.add(id(value))
            if isinstance(value, list):
                rest += value
            for key, inner in value.items() if isinstance(value, dict) else ():
                rest.append(inner)
                if key in ("_target_", "()", "class") and not str(inner).startswith("hydra"):
                    raise ConfigError(
                        f"{file}: {key}: {inner} names code, which no YAML runs here; plug-ins are "
                        f"given as import=<file.py>"
                    )


def _offer(group: str, name: str) -> Path:
    """Let Hydra find a plug-in as an option of a group, whose base it takes."""
    from hydra.core.config_store import ConfigStore

    base = "none" if group == "tracker" else "_base"
    node = {"defaults": [base], "name": name}
    fitted = {"image_size": "auto"} if group == "data" else {}
    ConfigStore.instance().store(name, {**node, **fitted}, group, provider="plug-in")
    return config_dir() / group / f"{base}.yaml"


def _check_groups(command: str, overrides: Overrides, groups: Groups) -> None:
    """Refuse `data=cifar`, naming what there is, and `data=~/photos`; the rest is Hydra's."""
    problems = []
    for group, options in groups.items():
        for name in overrides.choices(group, options):
            if name in options and command == "train":
                continue
            if "/" in name or name.startswith(("~", ".")) or os.path.exists(name):
                problems.append(f"{group}={name} is a path; try {_for_path(command, group, name)}")
            elif command != "train":
                hint = _ELSEWHERE.get(group, f"see vit-{command} --help")
                problems.append(f"{group}={name} is for vit-train; {hint}")
            elif name == "null" and group in OPTIONAL_GROUPS:
                problems.append(f"{group}=null is no choice of a sweep; run it by itself")
            else:
                close = (group == "model" and timm_shape(name)) or nearest(name, options)
                elsewhere = f", or {plugins.ELSEWHERE}" if group in plugins.KINDS else ""
                hint = f" (did you mean {close}?)" if close else elsewhere
                listed = ", ".join(options)
                problems.append(f"{group}={name} does not exist; choose one of {listed}{hint}")
    if problems:
        raise ConfigError(problems)


_ELSEWHERE = {
    "data": "give images=<folder>, or data.root=<where the run's data is now>",
    "model": "give checkpoint=<run folder or file>",
}
"""What commands that use a model take instead of an option of a group."""


def _for_path(command: str, group: str, path: str) -> str:
    """What takes the path that was given to a group."""
    is_yaml = path.endswith((".yaml", ".yml"))
    if group == "data" and not is_yaml:
        kind = "table" if Path(path).suffix.lower() in ENDINGS else "folder"
        return f"data={kind} data.root={path}" if command == "train" else f"images={path}"
    if group == "model" and not is_yaml:
        return f"model.weights={path}" if command == "train" else f"checkpoint={path}"
    name = Path(path).stem
    return f"--config-dir <folder> {group}={name}, with the file as <folder>/{group}/{name}.yaml"
