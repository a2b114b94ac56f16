"""The data sets by name: `data=<name>` picks one. A new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vit.config.plugins import part
from vit.config.schema import DataConfig
from vit.data.sources import cifar, digits, folder, table
from vit.data.sources.splits import Cutter, grouped
from vit.data.types import DataSet

SOURCES: dict[str, Callable[[DataConfig], DataSet]] = {
    "digits": digits.load,
    "cifar10": cifar.load,
    "cifar100": cifar.load,
    "folder": folder.load,
    "imagenet": folder.load,
    "table": table.load,
}


def load_data_set(config: DataConfig) -> DataSet:
    """List the data set that `config` names, with train, val and test cut as it says.

    Raises:
        DataError: it is missing or unusable; the message says what to do.
    """
    return cut_data_set(list_data_set(config), config)


def list_data_set(config: DataConfig) -> DataSet:
    """The data set with the splits that it has itself; see `load_data_set`."""
    return part(SOURCES, "data", config.name, config.options)(config)


def cut_data_set(listed: DataSet, config: DataConfig) -> DataSet:
    """A data set as listed, with the splits that `config` says; see `load_data_set`."""
    splits = listed.splits
    if config.group is not None:
        splits = {name: grouped(samples, config.group) for name, samples in splits.items()}
    cutter = Cutter(config.split_seed, config.split_by)
    fold = None if config.folds is None else (config.fold or 0, config.folds)
    splits = cutter.complete(splits, config.val_fraction, config.test_fraction, fold)
    unused = {}
    if config.limit_per_class is not None:
        splits["train"], unused["train"] = cutter.limit(splits["train"], config.limit_per_class)
    small = sorted({listed.classes[label] for label in cutter.small})
    notes = [*listed.notes]
    if splits["train"].groups is not None:
        counts = [f"{len(set(own.groups or ())):,} in {name}" for name, own in splits.items()]
        notes.append(f"groups: {', '.join(counts)}")
    return replace(listed, splits=splits, notes=notes, unused=unused, small=small)
