"""The data sets that are no folder: the digits, and CIFAR without a network."""

from typing import ClassVar
from urllib.error import URLError

import numpy as np
import pytest
import torchvision
from pictures import (
    data_config,
    pixels_of,
)  # fmt: skip

from vit.data.sources.registry import load_data_set
from vit.errors import ConfigError, DataError

# The digits


def test_digits():
    data = load_data_set(data_config("digits"))
    assert data.classes == list("0123456789")
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 1264, "val": 185, "test": 348}
    everything = np.concatenate([pixels_of(split) for split in data.splits.values()])
    assert everything.shape == (1797, 1, 8, 8)
    assert everything.dtype == np.uint8
    assert (everything.min(), everything.max()) == (0, 255)
    assert len(np.unique(everything)) == 17
    numbers = sorted(i for split in data.splits.values() for i in split.index.tolist())
    assert numbers == list(range(1797))
    for split in data.splits.values():
        counts = np.bincount(split.labels, minlength=10) / len(split)
        assert ((counts > 0.06) & (counts < 0.14)).all()


def test_digits_have_the_mean_and_deviation_of_their_config():
    config = data_config("digits")
    pixels = pixels_of(load_data_set(config).splits["train"]) / 255
    assert pixels.mean() == pytest.approx(config.mean[0], abs=0.005)
    assert pixels.std() == pytest.approx(config.std[0], abs=0.005)


@pytest.mark.parametrize(("source", "size"), [("digits", 8), ("cifar10", 32), ("cifar100", 32)])
def test_fixed_sizes_are_checked(source, size):
    with pytest.raises(ConfigError, match=f"give data.image_size={size}"):
        load_data_set(data_config(source, image_size=24))


# CIFAR


class FakeCifar:
    """torchvision's CIFAR10 with 40 + 20 images and no files."""

    filename = "cifar-10-python.tar.gz"
    url = "https://example.org/files/cifar-10-python.tar.gz"
    tgz_md5 = "c58f30108f718f92721af3b95e74349a"
    error: Exception | None = None
    roots: ClassVar[list[str]] = []

    def __init__(self, root, train, download):
        if self.error is not None:
            raise self.error
        self.roots.append(str(root))
        count = 40 if train else 20
        shape = (count, 32, 32, 3)
        self.data = np.random.default_rng(train).integers(0, 256, shape, dtype=np.uint8)
        self.targets = [i % 2 for i in range(count)]
        self.classes = ["plane", "car"]


@pytest.fixture
def fake_cifar(monkeypatch):
    monkeypatch.setattr(FakeCifar, "roots", [])
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCifar)
    return FakeCifar


def test_cifar(fake_cifar, tmp_path):
    data = load_data_set(data_config("cifar10", root=str(tmp_path)))
    assert fake_cifar.roots == [str(tmp_path)] * 2
    assert data.classes == ["plane", "car"]
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 38, "val": 2, "test": 20}
    for name, split in data.splits.items():
        source = FakeCifar(tmp_path, name != "test", download=True)
        expected = source.data[split.index].transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(pixels_of(split), expected)
        assert split.labels.tolist() == [source.targets[i] for i in split.index]
        assert list(split.names) == [str(i) for i in split.index]


@pytest.mark.parametrize(
    "reason", [URLError("no route to host"), RuntimeError("Dataset not found or corrupted.\n...")]
)
def test_cifar_without_files_says_what_to_put_where(fake_cifar, monkeypatch, tmp_path, reason):
    monkeypatch.setattr(fake_cifar, "error", reason)
    with pytest.raises(DataError) as error:
        load_data_set(data_config("cifar10", root=str(tmp_path)))
    message = str(error.value)
    assert str(reason).splitlines()[0] in message
    archive = tmp_path / "cifar-10-python.tar.gz"
    assert f"put cifar-10-python.tar.gz (md5 {FakeCifar.tgz_md5}) at {archive}" in message
    assert "\n" not in message
    assert error.value.__cause__ is None
