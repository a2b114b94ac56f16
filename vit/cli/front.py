"""The entry of every command: argv to Hydra, errors to one line and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vit.cli.answers import errors_to_exit_code, hydra_words
from vit.cli.argv import OPTIONAL_GROUPS, prepare, quoted, short_hash, split, without_imports
from vit.cli.overrides import Overrides
from vit.cli.sweep import SweepInterrupted, as_sweep_job, report
from vit.cli.usage import groups_in, usage
from vit.config import plugins
from vit.config.validate import config_dir, legal_keys
from vit.errors import ConfigError, VitError, nearest

Job = Callable[[dict[str, Any], Overrides], object]
"""Runs on plain settings and the overrides that led to them; raises typed errors."""


_COMPOSING = threading.Lock()


def run(command: str, job: Job) -> int:
    """Run `vit-<command>` on sys.argv; returns the exit code."""
    with errors_to_exit_code(command) as outcome:
        argv = without_imports(sys.argv[1:])
        if {"-h", "--help"} & set(argv):
            print(usage(command, config_dir()), end="")
            return 0
        if "--version" in argv:
            print(f"vit-train {version('vit-train')}")
            return 0
        flags, lines = split(argv)
        groups = _groups(flags)
        overrides = Overrides(prepare(lines, groups))
        if is_sweep(flags, overrides) and command != "train":
            raise ConfigError(f"vit-{command} takes no -m; run it once for each checkpoint")
        if is_sweep(flags, overrides) and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("torchrun runs one training, not a sweep; leave out -m and sweep=")
        _check_groups(command, overrides, groups)
        _compose_and_run(command, job, flags, overrides)
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
    _, lines = split(without_imports(list(overrides)))
    groups = _groups([])
    try:
        parsed = Overrides(prepare(lines, groups))
        _check_groups(command, parsed, groups)
        several = [o.key_or_group for o in parsed.parsed if o.is_sweep_override()]
        if several or is_sweep([], parsed):
            raise ConfigError(
                f"{(several or ['sweep'])[0]} asks for several runs; write a loop, or start a "
                f"sweep with vit-train -m"
            )
        # Hydra composes for one thread at a time.
        with _COMPOSING, initialize_config_dir(str(config_dir()), version_base="1.3"):
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


def is_sweep(flags: list[str], overrides: Overrides) -> bool:
    """Whether the arguments ask for several runs."""
    asked = {"-m", "--multirun"} & set(flags)
    return bool(asked) or overrides.text("sweep") not in (None, "null")


def sweep_folder(overrides: Overrides) -> Path:
    """A sweep's folder: its name, or a hash of its overrides, so that it is found again."""
    outputs = Path(os.path.expanduser(overrides.text("outputs") or "outputs"))
    name = overrides.text("name")
    if name in (None, "null"):
        lines = sorted(str(override.input_line) for override in overrides.parsed)
        name = f"sweep-{short_hash(' '.join(lines))}"
    return outputs / str(name)


def _compose_and_run(command: str, job: Job, flags: list[str], overrides: Overrides) -> None:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    failure: list[Exception] = []

    def task(config: Any) -> None:
        try:  # Hydra would print a line of its own about an exception
            plain = OmegaConf.to_container(config, resolve=True)
            if folder is None and plain.pop("search", None):  # type: ignore[union-attr,call-arg,arg-type]
                raise ConfigError("search= is part of a sweep; start it with -m")
            job(plain, Overrides(HydraConfig.get().overrides.task))  # type: ignore[arg-type]
        except Exception as error:
            failure.append(error)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting
    folder = sweep_folder(overrides) if is_sweep(flags, overrides) else None
    lines = overrides.lines
    if folder is not None:
        if {"-c", "--cfg", "-i", "--info"} & set(flags):
            raise ConfigError("--cfg shows the settings of one run; leave out -m and sweep=")
        job = as_sweep_job(job, folder, overrides)
        flags = ["-m", *(flag for flag in flags if flag not in ("-m", "--multirun"))]
        lines = [*lines, f"hydra.sweep.dir={quoted(str(folder))}", "hydra.sweep.subdir=."]
    before = sys.argv
    sys.argv = [f"vit-{command}", *flags, *lines]
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=command)(task)()
    except SweepInterrupted as stopped:
        raise stopped.error from None
    finally:
        sys.argv = before
    if failure:
        raise failure[0]
    if folder is not None:
        report(folder)


def _groups(flags: list[str]) -> dict[str, list[str]]:
    """Every config group with its options, plug-ins and the user's own included."""
    groups = groups_in(config_dir())
    for group in (group for group in groups if plugins.KINDS.get(group) == f"{group}.name"):
        for name in plugins.names(group):
            _offer(group, name)
            groups[group] = sorted({*groups[group], name})
    own = _after(flags, "--config-dir") or _after(flags, "-cd")
    if own and Path(own).is_dir():
        _refuse_calls(Path(own))
        for group, options in groups_in(Path(own)).items():
            if group not in legal_keys():
                groups[group] = sorted({*groups.get(group, []), *options})
    return groups


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


def _offer(group: str, name: str) -> None:
    """Let Hydra find a plug-in as an option of a group that has no YAML of its own."""
    from hydra.core.config_store import ConfigStore

    base = "none" if group == "tracker" else "_base"
    node = {"defaults": [base], "name": name}
    fitted = {"image_size": "auto"} if group == "data" else {}
    ConfigStore.instance().store(name, {**node, **fitted}, group, provider="plug-in")


def _check_groups(command: str, overrides: Overrides, groups: dict[str, list[str]]) -> None:
    """Refuse `data=cifar`, naming what there is, and `data=~/photos`; the rest is Hydra's."""
    problems = []
    for group, options in groups.items():
        for name in overrides.choices(group):
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
                close = nearest(name, options)
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
        return f"data=folder data.root={path}" if command == "train" else f"images={path}"
    if group == "model" and not is_yaml:
        return f"model.weights={path}" if command == "train" else f"checkpoint={path}"
    name = Path(path).stem
    return f"--config-dir <folder> {group}={name}, with the file as <folder>/{group}/{name}.yaml"


def _after(flags: list[str], flag: str) -> str | None:
    for i, arg in enumerate(flags):
        if arg == flag and i + 1 < len(flags):
            return flags[i + 1]
        if arg.startswith(f"{flag}="):
            return arg.split("=", 1)[1]
    return None
