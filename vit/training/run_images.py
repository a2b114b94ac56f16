"""The images of a run: a manifest when it starts, the same images whenever it is resumed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vit.artifacts.run_dir import RunDir
from vit.config.schema import DataConfig
from vit.data.manifest import Manifest, Restored, changed, known_among, restore, without
from vit.data.reading.reader import allowed_of, share_of
from vit.data.types import DataSet, FileImages
from vit.errors import DataError, shortened
from vit.inference.load import RELABELLED, check_classes, read_manifest, tell_changes
from vit.runtime import console
from vit.runtime.files import write_atomic

NO_LIST = (
    "this run was started by a version that kept no list of its images: if files came or went "
    "since, images of its test set may have been trained on"
)


@dataclass(frozen=True)
class RunImages:
    """The images of a run.

    Attributes:
        data: its splits.
        digest: of their list; empty in a process that does not lead a run that starts.
        gone: which images of each split are not there any more, by position, and why.
    """

    data: DataSet
    digest: str
    gone: dict[str, dict[int, str]] = field(default_factory=dict)


def images_of_new(
    data: DataSet, run: RunDir, known: Sequence[Manifest], *, is_main: bool
) -> RunImages:
    """The images of a run that starts; their list is written.

    Args:
        data: as listed.
        run: its folder.
        known: images that the weights it starts from were trained on; none is tested on.
        is_main: whether this process writes; others get no digest.
    """
    data = without(data, known)
    if not is_main:
        return RunImages(data, "")
    manifest = Manifest.of(data, known)
    if "test" in data.splits:
        own = known_among(data.splits["test"], manifest.trained()[:1])
        if own.any():
            names = [data.splits["test"].names[i] for i in np.flatnonzero(own).tolist()]
            console.warn(
                f"{len(names):,} test images have the content of training images: "
                f"{shortened(names)}; remove one of each two"
            )
    write_atomic(run.images, manifest.to_bytes())
    return RunImages(data, manifest.digest())


def images_of_resumed(
    data: DataSet, run: RunDir, saved: dict[str, Any], config: DataConfig, *, is_main: bool
) -> RunImages:
    """The images that a run was started with.

    Args:
        data: as listed now.
        run: its folder.
        saved: its newest checkpoint.
        config: what becomes of images that are gone.
        is_main: whether this process speaks and writes.

    Raises:
        DataError: the classes are others, images are gone and may not be, or which ones there were
            is not known.
    """
    check_classes(
        data.classes, saved["classes"], f"data.root={config.root}" if config.root else config.name,
        "give the data that the run was started with (data.root=<where it is now>), or start a new "
        f"run from its weights: {_from_weights(run, config)}",
    )  # fmt: skip
    digest: str | None = saved["images"]
    manifest = read_manifest(run, digest)
    if manifest is None:
        manifest = Manifest.of(data)
        if digest is None and isinstance(data.splits["train"].images, FileImages):
            console.warn(NO_LIST)
        if digest not in (None, manifest.digest()):
            raise DataError(
                f"{run.images} cannot be used, and the data set does not give the same list any "
                f"more; restore the file or the data set, or start a new run from its weights: "
                f"{_from_weights(run, config)}"
            )
        if is_main:
            write_atomic(run.images, manifest.to_bytes())
    restored = restore(manifest, data)
    gone = [restored.data.splits[split].names[i] for split, at in restored.gone.items() for i in at]
    if len(gone) == sum(map(len, restored.data.splits.values())):
        raise DataError(
            f"data.root={config.root} holds none of the run's images; give the folder that the run "
            f"was started with, where it is now"
        )
    if missing := _settings_to_miss(restored, config):
        raise DataError(
            f"{len(gone):,} of the run's images are gone: {shortened(gone)}; put them back, or go "
            f"on without them with {missing}"
        )
    if is_main:
        splits = restored.data.splits
        others = [name for split in splits for name in changed(manifest, restored, split)]
        tell_changes(RELABELLED, restored.relabelled)
        tell_changes("gone since the run started", gone)
        tell_changes("that came after the run started, left out", restored.added)
        tell_changes("changed since the run started, so it is not bit-exact", others)
    reasons = {
        split: dict.fromkeys(at.tolist(), "gone since the run started")
        for split, at in restored.gone.items()
    }
    return RunImages(restored.data, manifest.digest(), reasons)


def _from_weights(run: RunDir, config: DataConfig) -> str:
    """The command that starts a new run on the data as it is, from the weights of another."""
    root = [] if config.root is None else [f"data.root={config.root}"]
    return shlex.join(["vit-train", f"data={config.name}", *root, f"model.weights={run.path}"])


def _settings_to_miss(restored: Restored, config: DataConfig) -> str:
    """What lets a run go on without the images that are gone; empty: it may as it is."""
    counts = [(len(at), len(restored.data.splits[s])) for s, at in restored.gone.items() if len(at)]
    if not counts:
        return ""
    settings = [] if config.on_bad_image == "skip" else ["data.on_bad_image=skip"]
    if any(gone > allowed_of(config.bad_image_limit, images) for gone, images in counts):
        settings += [f"data.bad_image_limit={max(share_of(*count) for count in counts)}"]
    return " ".join(settings)
