"""Predictions: of a split, every sample once, summed in order in float64; and of image files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vit.artifacts.predictions import Labelled
from vit.data.loader import EvalLoader
from vit.data.padding import mirrored as mirror_images
from vit.data.reading.cache import CacheSpec, ResizedImage
from vit.data.reading.decode import reason, upright
from vit.data.reading.reader import Reader
from vit.data.task import SEVERAL_LABELS, Task, task_of
from vit.data.types import CachedImage, FileImages, Samples
from vit.errors import ConfigError, DataError
from vit.inference.calibration import Limits
from vit.inference.load import Trained
from vit.model.vit import VisionTransformer
from vit.report.multilabel import fit_thresholds
from vit.runtime.device import autocast
from vit.runtime.dist import is_sharded

_ENDS = ((), (1,), (3,))
"""What the shape of an image in memory may end with after its height and width."""


@dataclass(frozen=True)
class Predictions:
    """What the model says of each of N samples, in their order.

    Attributes:
        losses: cross-entropy (of several labels per image their mean) in nats, float64 (N,).
        top: the five most probable classes, best first (fewer with fewer classes), (N, 5).
        probability: of the best class, float32 (N,).
        labels: the truth, (N,); of several labels per image (N, K).
        index: which samples of the split they are, (N,): damaged ones may have been left out.
        logits, mirrored: of images and mirror images, float32 (N, K), if they were asked for; the
            logits of several labels in any case.
        alone: those of the images alone; None: these are.
    """

    losses: np.ndarray
    top: np.ndarray
    probability: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    logits: np.ndarray | None = None
    mirrored: np.ndarray | None = None
    alone: Predictions | None = None

    @property
    def task(self) -> Task:
        """What the labels are."""
        return task_of(self.labels)

    @property
    def probabilities(self) -> np.ndarray:
        """Of all classes, of the logits, float64 (N, K)."""
        logits = torch.from_numpy(self.logits).double()
        return self.task.probabilities(logits).numpy()

    def fit_thresholds(self) -> list[float]:
        """See `multilabel.fit_thresholds`."""
        found: list[float] = fit_thresholds(self.labels, self.probabilities).tolist()
        return found

    @property
    def correct(self) -> np.ndarray:
        """Whether the first guess was right, (N,)."""
        right: np.ndarray = self.top[:, 0] == self.labels
        return right

    def scores(self) -> dict[str, float]:
        """`loss` in nats, and those of `Task.scores`, over all samples alike."""
        loss = float(self.losses.sum() / len(self.losses))
        return {"loss": loss, **self.task.scores(self.top, self.labels, self.logits)}


@torch.no_grad()
def predict(
    model: nn.Module,
    loader: EvalLoader,
    precision: str,
    between: Callable[[], None] = lambda: None,
    *,
    logits: bool = False,
    mirrored: bool = False,
) -> Predictions:
    """Run `model` over a split, each process over its batches.

    Args:
        model: from images to logits, its weights as they are; always run eagerly, so that a
            compiled training run and a later evaluation of its checkpoint give the same numbers.
        precision: of matrix products: `bf16`, `fp16`, `fp32` or `tf32`.
        between: called after every batch, equally often by every process; may raise to stop.
        logits, mirrored: keep the logits; run the mirror images too, and keep theirs.

    Returns:
        The predictions for the whole split, the same in every process and for every world.
    """
    model.eval()
    parts: list[dict[str, Tensor]] = []
    for images, labels, index, mask in loader:
        answer = _logits(model, images, mask, precision)
        judged = _judge(answer, labels, loader.task)
        part = {"labels": labels, "index": torch.from_numpy(index), **judged}
        if logits or loader.task is SEVERAL_LABELS:
            part["logits"] = answer
        if mirrored:
            part["mirrored"] = _logits(model, mirror_images(images, mask), mask, precision)
        parts.append(part)
        between()
    for _ in range(len(loader) - len(parts)):  # rounds in which other processes have a batch
        if is_sharded(model):  # whose weights are gathered by all or by none
            for _ in range(1 + mirrored):
                _logits(model, loader.dummy_batch(), None, precision)
        between()
    ours = [{name: column.cpu().numpy() for name, column in part.items()} for part in parts]
    shares = loader.world.all_gather_object((ours, loader.corrupt.reasons))
    for _, reasons in shares:
        loader.corrupt.note(reasons)
    in_order = [part[k] for k in range(len(loader)) for part, _ in shares if k < len(part)]
    columns = {name: np.concatenate([part[name] for part in in_order]) for name in in_order[0]}
    return Predictions(**_exact(columns))


def with_mirror_images(predictions: Predictions) -> Predictions:
    """Predictions by the mean probabilities of image and mirror image; `logits` are their logs."""
    assert predictions.logits is not None
    assert predictions.mirrored is not None
    alone, mirrored = map(torch.from_numpy, (predictions.logits, predictions.mirrored))
    logits = predictions.task.mean(alone, mirrored)
    judged = _judge(logits, torch.from_numpy(predictions.labels), predictions.task)
    columns = {name: column.numpy() for name, column in judged.items()}
    return replace(predictions, **_exact(columns), logits=logits.numpy(), alone=predictions)


def _exact(columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """The losses in float64, which not every device has."""
    return {**columns, "losses": columns["losses"].astype(np.float64)}


def _logits(model: nn.Module, images: Tensor, mask: Tensor | None, precision: str) -> Tensor:
    """Of a batch, in float32."""
    with autocast(images.device, precision):
        logits: Tensor = model(images, mask) if is_sharded(model) else model.forward(images, mask)
    return logits.float()


def _judge(logits: Tensor, labels: Tensor, task: Task) -> dict[str, Tensor]:
    """Loss, best classes and probability of the best one, of each image of a batch."""
    return {
        "losses": task.losses(logits, labels),
        "top": logits.topk(min(5, logits.shape[1])).indices,
        "probability": task.probabilities(logits).amax(dim=-1),
    }


@torch.no_grad()
def features(
    model: VisionTransformer, images: Tensor, mask: Tensor | None, precision: str
) -> Tensor:
    """What the head of `model` sees of normalised images, in evaluation: float32 (B, D)."""
    model.eval()
    with autocast(images.device, precision):
        x, mask = model.encode(images, mask, model.queries)
        return model.forward_head(x, mask, pre_logits=True).float()


@dataclass(frozen=True)
class GivenImage(CachedImage):
    """An image in memory: upright, uint8 (H, W, C), and what it is called in messages."""

    name: str
    pixels: np.ndarray

    @classmethod
    def of(cls, image: Image.Image | np.ndarray, name: str, channels: int) -> GivenImage:
        """From an image of Pillow's, or an array: uint8 (H, W), (H, W, 1) or (H, W, 3).

        Raises:
            ConfigError: it is something else.
            DataError: it is damaged.
        """
        if isinstance(image, np.ndarray):
            shape = image.shape
            fits = len(shape) in (2, 3) and shape[2:] in _ENDS and 0 not in shape
            if image.dtype != np.uint8 or not fits:
                raise ConfigError(
                    f"{name}: an array must be uint8 (height, width, 3) with values up to 255, "
                    f"not {image.dtype} {shape}"
                )
            image = Image.fromarray(image.reshape(shape[:2]) if shape[2:] == (1,) else image)
        if not isinstance(image, Image.Image):
            raise ConfigError(
                f"{name} is of type {type(image).__name__}; give a path, an array or an "
                f"image of Pillow's"
            )
        try:
            return cls(name, upright(image, channels))
        except (OSError, ValueError, SyntaxError) as error:  # of one that Pillow reads only now
            raise DataError(f"{name} cannot be decoded ({reason(error)})") from None

    def __str__(self) -> str:
        return self.name

    def open(self) -> np.ndarray:
        """The pixels."""
        return self.pixels


class UserImages(FileImages):
    """Images that a user names: what is in memory, and files, kept by the run as `spec` says."""

    def __init__(self, given: Sequence[str | GivenImage], spec: CacheSpec | None) -> None:
        super().__init__("", list(map(str, given)))
        self.given = given
        self.spec = spec

    def source(self, index: int) -> str | CachedImage:
        """Where image `index` is read from."""
        image = self.given[index]
        if isinstance(image, GivenImage) or self.spec is None:
            return image
        return ResizedImage(image, self.spec)


def unlabelled(given: Sequence[str | GivenImage], spec: CacheSpec | None = None) -> Samples:
    """Images that a user names, all of class 0; see `UserImages`."""
    images, count = UserImages(given, spec), len(given)
    return Samples(np.zeros(count, np.int64), images.names, images, np.arange(count))


def open_images(
    trained: Trained,
    images: Sequence[str | GivenImage],
    workers: int | Literal["auto"] = 0,
    batch_size: int | None = None,
) -> EvalLoader:
    """Images as the run's own evaluation sees its images; the damaged ones are left out.

    Files are named by their paths. `workers` decode where there are many; the batches are of
    `batch_size` images, or of as many as the run's own.

    Raises:
        ConfigError: how the run read its images is not of this version.
    """
    samples = unlabelled(images, CacheSpec.of(trained.read_config()))
    return open_samples(trained, samples, workers, batch_size)


def open_samples(
    trained: Trained,
    samples: Samples,
    workers: int | Literal["auto"] = 0,
    batch_size: int | None = None,
) -> EvalLoader:
    """As `open_images`, of images of any source."""
    config = replace(trained.read_config(), workers=workers)
    reader = Reader.of(config, trained.model.config.patch_size, trained.device)
    reader = replace(reader, pool=reader.pool.for_images(len(samples)), bad_images=1.0)
    return EvalLoader(samples, batch_size or trained.evaluation["batch_size"], reader)


@torch.no_grad()
def answers(
    trained: Trained, loader: EvalLoader
) -> Iterator[tuple[Tensor, Tensor | None, np.ndarray, Tensor]]:
    """Normalised images (E, C, height, width), their mask, positions and float32 logits (E, K).

    Computed in fp32, whatever the run was trained in: the same answers as those of an export. What
    is damaged is missing, and in `loader.corrupt`.

    Raises:
        DataError: a worker failed.
        DivergedError: an answer is not finite.
    """
    for images, _, index, mask in loader:
        if len(index):
            logits = _logits(trained.model, images, mask, "fp32")
            trained.check(logits)
            yield images, mask, index, logits


def classify(
    trained: Trained, loader: EvalLoader, top: int, limits: Limits | None = None
) -> Iterator[Labelled]:
    """The `top` most probable classes of each image of `loader` (or all K), in order; with `limits`
    also its set, and whether it is unknown.

    What is missing and the errors are those of `answers`.
    """
    for _, _, index, logits in answers(trained, loader):
        best = logits.topk(min(top, logits.shape[1])).indices
        chances = trained.probabilities(logits)
        given = trained.given(logits)
        rows = logits.cpu().numpy()
        sets = None if limits is None or limits.set is None else limits.sets(rows)
        unknown = None if limits is None or limits.unknown is None else limits.refused(rows)
        ranked = zip(index, best.tolist(), chances.gather(1, best).tolist(), given, strict=True)
        for row, (position, numbers, share, own) in enumerate(ranked):
            refused = None if unknown is None else bool(unknown[row])
            inside = None if sets is None else [trained.classes[k] for k in sets[row]]
            labels = [trained.classes[number] for number in numbers]
            yield Labelled(
                loader.names[position],
                [] if refused else list(zip(labels, share, strict=True)),
                own,
                [] if refused and inside is not None else inside,
                refused,
            )
