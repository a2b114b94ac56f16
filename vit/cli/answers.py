"""What every error is answered with: one line, and the exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

from vit.cli.argv import NO_SETTING
from vit.errors import (
    ConfigError,
    DataError,
    DiskFullError,
    InterruptedRun,
    PrunedRun,
    VitError,
    printable,
)
from vit.runtime.files import is_full


@contextlib.contextmanager
def errors_to_exit_code(command: str) -> Iterator[list[int]]:
    """Print what went wrong in words and put the exit code into the list that is yielded.

    Args:
        command: the part of the name behind `vit-`.
    """
    outcome = [0]
    try:
        yield outcome
    except VitError as error:
        # Processes that train together share most errors; what one met alone, it says itself.
        rank = int(os.environ.get("RANK", "0"))
        shared = isinstance(error, (ConfigError, InterruptedRun))
        if rank == 0 or not shared or isinstance(error, DataError):
            who = f"vit-{command}" if rank == 0 else f"vit-{command}, process {rank}"
            for line in getattr(error, "problems", [str(error)]):
                print(f"{who}: {printable(line)}", file=sys.stderr)
        elif isinstance(error, ConfigError):
            time.sleep(3)  # torchrun ends all with the first that ends: let process 0 speak
        outcome[0] = error.exit_code
    except BrokenPipeError:  # the reader of our output (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        outcome[0] = 1
    except KeyboardInterrupt:
        print(f"vit-{command}: interrupted", file=sys.stderr)
        outcome[0] = 130
    except Exception as error:
        words = _system_words(error) or hydra_words(error) or _memory_words(error, command)
        if words is None:
            traceback.print_exc()
            resume = "; a run that has saved a checkpoint goes on with resume=<run folder>"
            words = f"unexpected {type(error).__name__}{resume if command == 'train' else ''}", 1
        text, outcome[0] = words
        print(f"vit-{command}: {printable(text)}", file=sys.stderr)


def failure(error: Exception) -> dict[str, Any]:
    """How a run ended that raised `error`, for its summary.json."""
    if isinstance(error, PrunedRun):
        return {"state": "pruned"}
    code = error.exit_code if isinstance(error, VitError) else 1
    if isinstance(error, InterruptedRun):
        return {"state": "interrupted", "exit_code": code}
    return {"state": "failed", "exit_code": code, "error": str(error) or repr(error)}


_OF_COMPOSING = frozenset({"hydra", "omegaconf", "antlr4", "yaml"})
_OF_THE_SYSTEM = {
    errno.ENOENT: "it was moved or deleted, or never there",
    errno.EACCES: "look at its rights and its owner",
    errno.EPERM: "look at its rights and its owner",
    errno.EROFS: "choose another folder",
    errno.EMFILE: "allow more open files (ulimit -n 4096) or give less data.workers",
    errno.ENFILE: "allow more open files (sysctl fs.file-max)",
}


def _system_words(error: Exception) -> tuple[str, int] | None:
    """What the operating system refused, with a remedy where there is one."""
    if not isinstance(error, OSError) or error.errno is None:
        return None
    what = f"{error.filename}: " if error.filename else ""
    remedy = _OF_THE_SYSTEM.get(error.errno)
    reason = os.strerror(error.errno)
    code = DiskFullError.exit_code if is_full(error) else VitError.exit_code
    return f"{what}{reason}" + (f"; {remedy}" if remedy else ""), code


def hydra_words(error: Exception) -> tuple[str, int] | None:
    """Hydra's and OmegaConf's own complaints as one line; they are configuration errors."""
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, InterpolationKeyError):
        named = re.sub(r".*Interpolation key '(.*)' not found.*", r"\1", str(error), flags=re.S)
        return (
            f"{error.full_key} asks for the value of {named} (${{{named}}}), which is no setting; "
            f"--help lists them",
            2,
        )
    if isinstance(error, YAMLError):
        return f"a settings file is not readable YAML: {' '.join(str(error).split())}", 2
    if isinstance(error, OverrideParseException):
        typed = str(error.override).lstrip("+")
        if "=" not in typed:
            return NO_SETTING.format(typed), 2
        return f"{typed} cannot be read; put special characters in quotes: \"key='value'\"", 2
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, OmegaConfBaseException):
        why = re.sub(r"^\w+ raised while .*?: ", "", lines[0]).strip('"')
        return f"{error.full_key or 'a setting'} cannot be computed: {why} (see --help)", 2
    if isinstance(error, HydraException):
        return _composition_words(error, lines), 2
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    if package in _OF_COMPOSING:  # by input that Hydra itself does not expect
        return f"the settings cannot be read: {' '.join(str(error).split())} (see --help)", 2
    return None


def _composition_words(error: Exception, lines: list[str]) -> str:
    """What Hydra says of the options and files that it puts together."""
    from hydra.errors import InstantiationException, MissingConfigException

    file = re.match(r"In '(?!hydra/config)(\S+/\S+)':", lines[0])
    by = f", which {file[1]}.yaml asks for," if file else ""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).removesuffix(".yaml").rpartition("/")
        options = [option for option in error.options or () if not option.startswith("_")]
        listed = f"; choose one of {', '.join(options)}" if options else ""
        if group == "hydra/launcher":
            listed += "; pip install 'vit-train[sweep]' brings joblib, 'vit-train[slurm]' submitit"
        return f"{group}={name}{by} does not exist{listed}"
    if key := re.search(r"ould not override '(.*?)'", lines[0]):
        of = "; e.g. hydra/launcher=joblib has hydra.launcher.n_jobs" * ("launcher" in key[1])
        return f"{key[1]}{by} is no setting that there is{of} (--help lists them)"
    if merged := re.search(r"rror merging override \+*(.*)", lines[0]):
        return f"{merged[1]} is no value that it takes: {str(error.__cause__).splitlines()[0]}"
    if isinstance(error, InstantiationException):
        why = lines[0].partition(", set env")[0]
        return f"hydra.callbacks needs _target_=<module>.<class> for each: {why}"
    if file:
        return f"{file[1]}.yaml cannot be used: {' '.join(lines[1:2])} (see docs/configuration.md)"
    return f"{' '.join(lines[:5])} (see --help)"


_LESS_MEMORY = {
    "train": "trainer.accumulate=auto (finds what fits, same result), a smaller "
    "trainer.eval_batch_size, or trainer.precision=bf16",
    "predict": "a smaller batch_size=<images at once>, or device=cpu",
    "eval": "device=cpu, or a smaller data.image_size",
    "embed": "a smaller batch_size=<images at once>, or device=cpu",
    "explain": "device=cpu, or layers=false",
    "export": "a smaller data.image_size",
}


def _memory_words(error: Exception, command: str) -> tuple[str, int] | None:
    """Out of memory, on any device, with the overrides that help."""
    import torch

    is_of_torch = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    if is_of_torch or isinstance(error, MemoryError):
        remedy = _LESS_MEMORY.get(command)
        return "out of memory" + (f"; try {remedy}" if remedy else ""), 1
    return None
