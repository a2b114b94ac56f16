"""Writing and reading checkpoints: atomic, checksummed, plain types and tensors only."""

from __future__ import annotations

import argparse
import contextlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vit.artifacts.run_dir import RunDir
from vit.config.plugins import missing
from vit.config.resume import migrate, migrate_spec
from vit.config.saved import Checkpoint
from vit.config.validate import misfits
from vit.errors import NoCheckpointError, first_line, shortened
from vit.runtime.files import write_atomic

FORMAT_VERSION = 2

IN_SAFETENSORS = "vit"
"""Under which key of its metadata a safetensors file says what a checkpoint does; of several keys,
the order would be random."""


class BadCheckpointError(NoCheckpointError):
    """A checkpoint is damaged, of another kind, or of a version that cannot be read."""


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint, as `config.saved.Checkpoint` says, that is there whole or not at all.

    Raises:
        DiskFullError: no space; the file that was there is intact.
    """
    buffer = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, **content}, buffer)
    write_atomic(path, buffer.getbuffer())


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint after checking every byte against its checksums; nothing is executed.

    Raises:
        BadCheckpointError: missing, damaged, not ours, or of a newer format.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"checksum of {damaged}")
        content = _read(path)
    except FileNotFoundError:
        raise BadCheckpointError(f"{path} does not exist") from None
    except Exception as error:  # a damaged archive fails in many ways
        if type(error).__name__ == "UnpicklingError":  # torch's word for what it will not execute
            raise BadCheckpointError(
                f"{path} holds more than plain values and tensors; it is refused"
            ) from None
        raise BadCheckpointError(f"{path} is damaged ({first_line(error)})") from None
    return _checked(content, path)


def foreign(path: Path) -> Any:
    """What another program saved with torch: tensors, plain values, NumPy scalars and the arguments
    of its command line. Nothing else is read, nothing executed.

    Raises:
        BadCheckpointError: it holds something else.
    """
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    numbers: list[Any] = [type(np.dtype(kind)) for kind in "?bhilqBHILQefd"]
    scalars = [np.dtype, scalar, (scalar, "numpy.core.multiarray.scalar"), *numbers]
    try:
        with torch.serialization.safe_globals([argparse.Namespace, *scalars]):
            return _read(path)
    except Exception as error:
        executed = type(error).__name__ == "UnpicklingError" and "nsupported" in str(error)
        if not executed and "TorchScript" not in str(error):
            raise
        raise BadCheckpointError(
            f"{path} holds more than weights, which is not read: where it was made, save these "
            f"alone by torch.save(model.state_dict(), 'weights.pth')"
        ) from None


def _read(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def newest(run: RunDir, report: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    """The newest undamaged checkpoint of a run; `report` is told of each that is passed over.

    Raises:
        NoCheckpointError: there is none, or all are damaged.
    """
    files = run.step_files()
    for path in files:
        try:
            return path, load(path)
        except BadCheckpointError as error:
            report(f"{error}; falling back to the one before")
    if files:
        raise NoCheckpointError(
            f"all {len(files)} checkpoints in {run.checkpoints} are damaged; restore one from a "
            f"backup or start again under another name"
        )
    raise NoCheckpointError(f"no checkpoint in {run.checkpoints}; start a new run")


def _checked(content: Any, path: Path) -> dict[str, Any]:
    version = content.get("format_version") if isinstance(content, dict) else None
    if type(version) is not int:
        raise BadCheckpointError(f"{path} is no checkpoint of vit-train")
    if version > FORMAT_VERSION:
        raise BadCheckpointError(
            f"{path} has format {version}, this version reads up to {FORMAT_VERSION}; "
            f"upgrade vit-train"
        )
    if version < 2:  # whose runs kept no list of their images
        content = {**content, "images": None}
    migrated: dict[str, Any] = dict(content)
    with contextlib.suppress(Exception):  # of settings that are none, which is said below
        migrated["config"] = migrate(content["config"])
        migrated["spec"] = migrate_spec(content["spec"])
    wrong = misfits(Checkpoint, migrated)
    told = content["plugins"] if isinstance(content.get("plugins"), dict) else {}
    needed = missing({k: v for k, v in told.items() if str(k).startswith("model.")})
    if needed and any(problem.startswith("spec.") for problem in wrong):
        raise NoCheckpointError(
            f"{path} needs the plug-in {' and '.join(needed)}: install its package, or give "
            f"import=<its file.py>"
        )
    if wrong:
        raise BadCheckpointError(f"{path} is no checkpoint of vit-train ({shortened(wrong, 3)})")
    return migrated
