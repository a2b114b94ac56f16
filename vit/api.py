"""From Python: `vit.train` and `vit.load_run`, with the numbers of the commands."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from vit.artifacts.run_dir import RunDir
from vit.cli import front
from vit.cli import train as command
from vit.cli.explain import class_number
from vit.config.commands import SET, UNKNOWN, EvalConfig
from vit.config.validate import checked
from vit.data.loader import EvalLoader
from vit.data.sources.listing import list_images
from vit.errors import MOST_NAMES, ConfigError, DataError, first_line
from vit.evaluation.evaluate import evaluate
from vit.inference import pictures
from vit.inference.calibration import Limits
from vit.inference.embedding import embed
from vit.inference.load import Trained, load_trained
from vit.inference.pictures import Explained
from vit.inference.predict import GivenImage, classify, open_images
from vit.runtime import console
from vit.runtime.device import select_device

Picture: TypeAlias = "str | PathLike[str] | Image | np.ndarray"
"""A path, an image of Pillow's, or an array: uint8 (height, width), or (height, width, 1 or 3)."""
Pictures: TypeAlias = "Picture | Sequence[Picture]"
"""One or several; a path may also be a folder or a pattern such as `photos/**/*.jpg`."""

_EXPLAINED_AT_ONCE = 8


@dataclass(frozen=True)
class Prediction:
    """What a model says of an image.

    Attributes:
        name: the image's path, or `image 3` for the one at position 3.
        labels, probabilities: of the most probable classes, the best first.
        given: those that it has by their thresholds, of several labels per image; None: of one.
        set, unknown: see `Run.predict`; None: not asked for.
    """

    name: str
    labels: list[str]
    probabilities: list[float]
    given: list[str] | None = None
    set: list[str] | None = None
    unknown: bool | None = None

    @property
    def label(self) -> str | None:
        """The most probable class; None: the image is unknown."""
        return self.labels[0] if self.labels else None

    @property
    def probability(self) -> float | None:
        """Of `label`."""
        return self.probabilities[0] if self.labels else None


@dataclass(frozen=True, repr=False)
class Run(Trained):
    """A trained run, or a checkpoint: the model, and what the commands do with it.

    Images are seen as the run's own evaluation sees its images. One that cannot be decoded is an
    error.
    """

    def __repr__(self) -> str:
        """Without the layers of the model."""
        few = len(self.classes) <= MOST_NAMES
        classes = f"classes {self.classes}" if few else f"{len(self.classes):,} classes"
        return f"Run({str(self.path)!r}, step {self.step}, {classes})"

    @property
    def scores(self) -> dict[str, float]:
        """What the run's folder has now: `val_*`, and of a finished run `test_*`.

        Top-1 and top-5 in percent, loss in nats. Empty outside a run.
        """
        run = RunDir.of(self.path)
        values = run.read_summary().items() if run is not None else ()
        return {k: v for k, v in values if k.startswith(("val_", "test_")) and v is not None}

    def predict(
        self, images: Pictures, top: int = 5, *, set: str | None = None, unknown: str | None = None
    ) -> list[Prediction]:
        """The `top` most probable classes of each image, as `vit-predict` gives them.

        Args:
            set: `95%`: also the labels among which the true one is in so many cases.
            unknown: `5%`: no labels for images that are less like known ones than all but 5 % of
                those are.

        Raises:
            DataError: an image is missing or cannot be decoded.
            ConfigError: something is no image, `top` is less than 1, `set` or `unknown` is no such
                share, or the model has nothing that was fitted on validation.
            DivergedError: an answer is not finite.
        """
        if not isinstance(top, int) or top < 1:
            raise ConfigError(f"top={top} must be a whole number, 1 or more")
        for key, value, rule in (("set", set, SET), ("unknown", unknown, UNKNOWN)):
            if value is not None and (problem := rule(value)):
                raise ConfigError(f"{key}={value} {problem}")
        limits = Limits.of(self.calibration, set, unknown, self.path)
        with self._opened(images) as loader:
            found = classify(self, loader, top, limits)
            with console.progress(found, desc="predicting", total=len(loader.names)) as bar:
                return [
                    Prediction(name, [label for label, _ in best], [p for _, p in best], *own)
                    for name, best, *own in bar
                ]

    def embed(self, images: Pictures) -> np.ndarray:
        """What the head sees of each image, float32 (N, D): for a neighbour search or a classifier.

        Raises:
            DataError, ConfigError: as in `predict`.
        """
        with self._opened(images) as loader:
            return embed(self, loader)[0]

    def attention(
        self, images: Pictures, method: str = "rollout", label: str | None = None
    ) -> list[Explained]:
        """Where the model looks in each image, as `vit-explain` shows it.

        Args:
            method: `rollout`, `attention`, or `relevance` (of `label`).
            label: a class; None: the most probable one of each image.

        Returns:
            Of each `.heats[method]`, in [0, 1], (rows, columns); `.layers`, of every head; and
            `.figure()`, a picture of it, which notebooks show.

        Raises:
            DataError, ConfigError: as in `predict`; there is no such method or class.
        """
        if not isinstance(method, str) or method not in pictures.METHODS:
            raise ConfigError(f"method={method} is none of {', '.join(pictures.METHODS)}")
        wanted = class_number(label, self.classes, "label")
        with self._opened(images, _EXPLAINED_AT_ONCE) as loader:
            return list(pictures.explain(self, loader, [method], wanted))

    def transform(self, image: Picture) -> Tensor:
        """One image as the model takes it: float32 (C, height, width), on the model's device.

        Raises:
            DataError, ConfigError: as in `predict`; these are several images.
        """
        with self._opened([image], 1) as loader:
            if len(loader.names) > 1:
                raise ConfigError(f"{image} has {len(loader.names):,} images; give one")
            seen, _, _, _ = next(iter(loader))
        return seen[0]

    def evaluate(self, *overrides: str) -> dict[str, Any]:
        """The scores that `vit-eval` writes to metrics.json, of the checkpoint's file and with its
        settings (`split=val`, `tta=flip`, `images=~/more`); nothing is written.

        Raises:
            ConfigError, DataError: as `vit-eval` answers; the file has other weights since this
                was loaded.
        """
        own = [f"checkpoint={self.path}", f"device={self.device.type}"]
        plain, _ = front.composed("eval", [*own, *overrides])
        if any(line.lstrip("+").startswith(("checkpoint=", "device=")) for line in overrides):
            raise ConfigError(
                "checkpoint and device are those of this run; for others, load_run(path, device)"
            )
        metrics = evaluate(checked(EvalConfig, plain), self.device).metrics
        if metrics["step"] != self.step:
            raise ConfigError(
                f"{self.path} has the weights of step {metrics['step']} now, and had those of step "
                f"{self.step} when it was loaded; load it again"
            )
        return metrics

    @contextlib.contextmanager
    def _opened(self, images: Pictures, batch_size: int | None = None) -> Iterator[EvalLoader]:
        """The images; in the end DataError where an answer would lack those that are damaged."""
        given = _listed(images, self.preprocessing["channels"])
        loader = open_images(self, given, batch_size=batch_size)
        yield loader
        if found := loader.corrupt.named():
            raise DataError(console.damaged(found, len(loader.names)))


def load_run(
    path: str | PathLike[str], device: str | torch.device = "cpu", *, calibrated: bool = True
) -> Run:
    """The trained model of a run folder (its best weights) or of a checkpoint file; `calibrated`:
    its probabilities are by what was fitted on validation, as far as the checkpoint has that.

    Warns when the best checkpoint is damaged and the newest is taken instead.

    Raises:
        NoCheckpointError: nothing there, or nothing undamaged.
        ConfigError: there is no such device.

    Example:
        >>> run = load_run("outputs/flowers")  # doctest: +SKIP
        >>> [answer.label for answer in run.predict("photos")]  # doctest: +SKIP
        ['rose', 'tulip']
    """
    told: list[str] = []
    where = Path(path).expanduser().absolute()
    trained = load_trained(where, _device(device), told.append, calibrated=calibrated)
    for message in told:
        warnings.warn(message, stacklevel=2)
    return Run(**vars(trained))


def train(overrides: Sequence[str] = ()) -> Run:
    """Train as `vit-train` does, or go on with a run, and load what came of it.

    The settings are as on the command line, one text each; sweeps are the command's.

    Raises:
        VitError: what the command would answer in a line; see `vit.errors`.

    Example:
        >>> run = train(["data=folder", "data.root=~/flowers"])  # doctest: +SKIP
        >>> run.scores["test_top1"]  # doctest: +SKIP
        93.1
    """
    if isinstance(overrides, str):
        raise ConfigError(f"give a list of settings: vit.train([{overrides!r}])")
    plain, parsed = front.composed("train", overrides)
    path = command.train(plain, parsed)
    return load_run(path, select_device(plain["trainer"]["device"]))


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name}: {first_line(error)}") from None
    if device.type in ("cuda", "mps"):
        select_device(device.type)
    return device


def _listed(images: Pictures, channels: int) -> list[str | GivenImage]:
    """The images in order: paths of files, and what is in memory."""
    one = (str, bytes, PathLike, Image, np.ndarray)
    if isinstance(images, one) or not isinstance(images, Iterable):
        images = [images]
    found: list[str | GivenImage] = []
    for number, image in enumerate(images):
        if isinstance(image, (str, PathLike)):
            found += list_images(fspath(image), warnings.warn)
        else:
            found.append(GivenImage.of(image, f"image {number}", channels))
    if not found:
        raise ConfigError("there are no images; give paths, images of Pillow's or arrays")
    return found
