"""The data sets by name: `data=<name>` picks one. A new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable

from vit.config.schema import DataConfig
from vit.data import cifar, digits, folder
from vit.data.splits import complete
from vit.data.types import DataSet

SOURCES: dict[str, Callable[[DataConfig], DataSet]] = {
    "digits": digits.load,
    "cifar10": cifar.load_cifar10,
    "cifar100": cifar.load_cifar100,
    "folder": folder.load,
}


def load_data_set(config: DataConfig) -> DataSet:
    """List the data set that `config` names, with train, val and test cut as it says.

    Raises:
        DataError: it is missing or unusable; the message says what to do.
    """
    listed = SOURCES[config.name](config)
    splits = complete(listed.splits, config.val_fraction, config.test_fraction, config.split_seed)
    return DataSet(listed.classes, splits)
