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

from vit.cli.argv import NO_SETTING
from vit.errors import ConfigError, DataError, DiskFullError, InterruptedRun, VitError, printable
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
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if any("--multirun" in line for line in lines):
            return f"{lines[0].replace('++', '')}: add -m to run each value, or write [a,b]", 2
        return f"{' '.join(lines[:5])} (see --help)", 2
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    if package in _OF_COMPOSING:  # by input that Hydra itself does not expect
        return f"the settings cannot be read: {' '.join(str(error).split())} (see --help)", 2
    return None


_LESS_MEMORY = {
    "train": "trainer.accumulate=auto (finds what fits, same result), a smaller "
    "trainer.eval_batch_size, or trainer.precision=bf16",
    "predict": "a smaller batch_size=<images at once>, or device=cpu",
    "eval": "device=cpu, or a smaller data.image_size",
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
