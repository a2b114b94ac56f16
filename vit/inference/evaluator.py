"""The evaluator: a trained model, and the split or folder it is evaluated on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vit.artifacts.run_dir import RunDir
from vit.config.commands import EvalConfig
from vit.config.schema import DataConfig, ReadConfig
from vit.config.validate import to_data_section
from vit.data.loader import EvalLoader
from vit.data.manifest import Manifest, Restored, changed, known_among, restore
from vit.data.reading.reader import Reader
from vit.data.sources import table
from vit.data.sources.folder import load_flat
from vit.data.sources.registry import load_data_set
from vit.data.sources.table_file import shards_of
from vit.data.task import task_of
from vit.data.types import DataSet, FileImages, Samples
from vit.errors import ConfigError, DataError
from vit.inference.load import (
    RELABELLED,
    Trained,
    check_classes,
    load_trained,
    read_manifest,
    tell_changes,
)
from vit.inference.predict import Predictions, predict, with_mirror_images
from vit.model.merging import merged
from vit.runtime import console


@dataclass(frozen=True)
class Evaluator:
    """What predictions are made with; `model` is the trained one, or merges patches."""

    trained: Trained
    model: nn.Module
    config: EvalConfig
    reading: ReadConfig
    reader: Reader

    @classmethod
    def of(cls, place: Path, config: EvalConfig, device: torch.device) -> Evaluator:
        """With the model of a run folder or a checkpoint file.

        Raises:
            NoCheckpointError: nothing there, or nothing undamaged.
            ConfigError: it takes no images of this size, cannot merge so many patches, or its
                settings are not of this version.
        """
        trained = load_trained(
            place.expanduser(), device, console.warn, config.data.size,
            calibrated=config.calibration != "none" and not config.merge,  # which is another model
        )  # fmt: skip
        try:
            model = merged(trained.model, config.merge)
        except ValueError as error:
            raise ConfigError(f"merge={config.merge}: {trained.path}: {error}") from None
        if config.merge and trained.preprocessing.get("aspect") == "native":
            raise ConfigError(
                f"merge={config.merge}: {trained.path} pads its images (data.aspect=native), and "
                f"padding does not merge; leave merge out"
            )
        if config.data.root and trained.config["data"].get("name") == "digits":
            root = config.data.root
            raise ConfigError(f"data.root={root} is not read by data=digits; try images={root}")
        own, given = trained.read_config(), config.data
        limit = given.bad_image_limit
        reading = replace(
            own,
            workers=given.workers,
            on_bad_image=given.on_bad_image or own.on_bad_image,
            bad_image_limit=own.bad_image_limit if limit is None else limit,
        )
        reader = Reader.of(reading, trained.model.config.patch_size, device)
        return cls(trained, model, config, reading, reader)

    def find(self, split: str) -> tuple[Samples, str]:
        """The images to evaluate on, and what to call them: those asked for, else of `split`.

        Raises:
            DataError: the split does not exist, or the classes are not the checkpoint's.
        """
        if self.config.images is not None:
            folder, classes = Path(self.config.images), self.trained.classes
            source = self.trained.config["data"].get("name")
            is_table = folder.is_file() or (source == "table" and shards_of(folder))
            found = (
                table.load_flat(folder, classes, self._data)
                if is_table
                else load_flat(folder, classes, source)
            )
            for note in found.notes:
                console.warn(note)
            samples = found.splits["images"]
            if task_of(samples.labels) is not self.trained.task:
                raise DataError(
                    f"images={folder} has {'one label' if samples.labels.ndim == 1 else 'lists'} "
                    f"for each image, which is another kind of labels than the model's; give a "
                    f"table (CSV) like that of the run"
                )
            return samples, f"images-{folder.resolve().name}"
        for note in self._listed.notes:
            console.warn(note)
        self._tell(split)
        splits = self.splits()
        if split not in splits:
            others = [f"split={name}" for name in splits if name != "train"]
            ways = [*others, "images=<a folder with one sub-folder for each class>"]
            raise DataError(f"split={split}: the run's data has none; give {' or '.join(ways)}")
        return splits[split], split

    def splits(self) -> dict[str, Samples]:
        """The splits of the run: its own images, as far as they are there.

        Raises:
            DataError: the data is missing, or the classes are not the checkpoint's.
        """
        if self._own is None:
            return self._listed.splits
        here = {
            split: samples.take(np.setdiff1d(np.arange(len(samples)), self._own.gone[split]))
            for split, samples in self._own.data.splits.items()
        }
        return {split: samples for split, samples in here.items() if len(samples)}

    def trained_on(self, samples: Samples) -> int | None:
        """How many of the images the weights were trained on; None: not known. It is warned of."""
        known, place = self._trained_on(), self.trained.path
        if known is None:
            console.warn(
                f"which images {place} was trained on is not known (its run folder has no list of "
                f"them): if there are such among these, scores are too high"
            )
            return None
        count = int(known_among(samples, known).sum())
        if count:
            console.warn(
                f"{count:,} of the {len(samples):,} images were trained on by {place}: scores on "
                f"them say little about new ones"
            )
        return count

    def _trained_on(self) -> list[Manifest] | None:
        """What the weights were trained on; None: not known."""
        if self._manifest is not None:
            return self._manifest.trained()
        try:
            manifest = Manifest.of(self._listed)
        except ConfigError:
            return None
        in_files = isinstance(self._listed.splits["train"].images, FileImages)
        same = not in_files or manifest.digest() == self.trained.images
        return manifest.trained() if same else None

    @cached_property
    def _manifest(self) -> Manifest | None:
        return read_manifest(RunDir.of(self.trained.path), self.trained.images)

    @cached_property
    def _data(self) -> DataConfig:
        """Which images the run had."""
        section = self.trained.config["data"]
        return to_data_section(
            DataConfig,
            {
                **section, "root": self.config.data.root or section.get("root"),
                "on_bad_image": self.reading.on_bad_image,
            },
        )  # fmt: skip

    @cached_property
    def _listed(self) -> DataSet:
        """The run's data set as it is now."""
        found = load_data_set(self._data)
        check_classes(
            found.classes, self.trained.classes, str(self._data.root or self._data.name),
            "give the data it was trained on",
        )  # fmt: skip
        return found

    @cached_property
    def _own(self) -> Restored | None:
        """The run's own images in it; None: which they are is not known, or it is another one."""
        if self._manifest is None:
            return None
        own = restore(self._manifest, self._listed)
        here = any(len(own.gone[split]) < len(own.data.splits[split]) for split in own.gone)
        return own if here else None

    def _tell(self, split: str) -> None:
        """What is not as it was when the run started."""
        own, manifest = self._own, self._manifest
        if manifest is None:
            return
        if own is None:
            console.warn(
                f"{self._data.root} holds none of the images that the run was started with: its "
                f"{split} images as they are now are scored"
            )
        elif split in own.data.splits:
            gone = [own.data.splits[split].names[i] for i in own.gone[split].tolist()]
            others = changed(manifest, own, split)
            tell_changes(RELABELLED, own.relabelled)
            tell_changes(f"of {split} gone since the run started, not scored", gone)
            tell_changes("that came after the run started, left out", own.added)
            tell_changes(f"of {split} changed since the run started", others)

    def open(self, samples: Samples, what: str) -> EvalLoader:
        """The images as the model wants them; few of them are decoded without workers.

        Raises:
            DataError: a worker failed.
        """
        reader = replace(self.reader, pool=self.reader.pool.for_images(len(samples)))
        samples = reader.with_cache({what: samples}, self.reading)[what]
        return EvalLoader(samples, self.trained.evaluation["batch_size"], reader)

    def predict(self, loader: EvalLoader) -> Predictions:
        """Predictions of the images, with their mirror images where these are asked for.

        Raises:
            DataError: an image is damaged and may not be, or a worker failed.
            DivergedError: an answer is not finite.
        """
        trained, flips = self.trained, self.config.tta == "flip"
        precision = trained.evaluation["precision"]
        predictions = predict(self.model, loader, precision, logits=True, mirrored=flips)
        for answers in (predictions.losses, predictions.logits, predictions.mirrored):
            if answers is not None:
                trained.check(torch.from_numpy(answers))
        for name, why in loader.corrupt.news().items():
            console.warn(f"damaged images are left out of the scores: {name} ({why})")
        return with_mirror_images(predictions) if flips else predictions
