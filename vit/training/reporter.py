"""Reporting of a run: log lines, the progress bar, pictures."""

from __future__ import annotations

import sys
import time

from vit.artifacts.logger import image_grid
from vit.config.validate import flatten, to_plain
from vit.data.reading.reader import CorruptImages
from vit.inference.predict import Predictions
from vit.runtime import console
from vit.runtime.device import matrix_rate
from vit.training.clock import Clock
from vit.training.components import Components
from vit.training.curriculum import Curriculum
from vit.training.monitor import TensorBoardPictures
from vit.training.state import NonFiniteSteps

NOTABLE = 0.1
"""From this share on, the time that images were waited for is said."""
SETTLED = 3.0
"""Seconds of training after which it is known how long the rest takes."""
PAUSE = 3.0
"""Seconds between lines on a terminal."""


class Reporter:
    """Tells console, `metrics.jsonl` and TensorBoard how a run fares.

    Of `parts` it changes nothing but the windows over which means are taken.
    """

    def __init__(self, parts: Components, clock: Clock, curriculum: Curriculum) -> None:
        self.parts = parts
        self.state = parts.state
        self.clock = clock
        self.curriculum = curriculum
        self.rate = matrix_rate(parts.device, parts.config.trainer.precision)
        self.bar = console.RunBar(parts.plan.steps)
        self.only_warned = console.OnlyWarned()
        self._pictures: TensorBoardPictures | None = None
        self._last_log = (parts.state.seconds, parts.state.images, 0.0)
        self._began = parts.state.seconds
        self._val_scores: dict[str, float] = {}
        self._last_line = 0.0
        self._told_length = self._told_waiting = False

    def first_batch(self) -> None:
        """The first images as the model sees them, in TensorBoard."""
        parts = self.parts
        if self.state.step == 0 and parts.world.is_main and not parts.trains_on_features:
            with self.only_warned("a picture of the first batch"):
                images = parts.train.normalise.undo(parts.train.batch_at(0).images[:32])
                parts.logger.images("train/first_batch", image_grid(images.cpu()), 0)

    def log(self, lr: float) -> tuple[NonFiniteSteps, float]:
        """The line of some steps: read the counters from the device, write them down.

        Returns:
            the steps without a finite loss and gradient, and the mean gradient norm of the others.
        """
        parts, state = self.parts, self.state
        means = state.window_means("log", reset=True)
        non_finite = state.non_finite.log_line()
        seconds = self.clock.seconds
        then, images_then, waited_then = self._last_log
        self._last_log = (seconds, state.images, parts.train.waited)
        past = max(seconds - then, 1e-9)
        speed = (state.images - images_then) / past
        head = 2 * state.model.head.weight.numel()
        flops = head if parts.trains_on_features else self.curriculum.flops()
        utilisation = 3 * flops * speed / self.rate / parts.world.size
        values = {
            "epoch": parts.epoch,
            "loss": means["loss"],
            "top1": means["top1"],
            "lr": lr,
            "grad_norm": means["grad_norm"],
            "bad_steps": non_finite.total,
            "bad_images": len(parts.train.corrupt.reasons),
            "images_per_second": round(speed, 1),
            "mfu": round(utilisation, 4),
            "data_share": round((parts.train.waited - waited_then) / past, 3),
            "seconds": round(seconds, 3),
        }
        parts.logger.log("train", state.step, values)
        self.bar.show(self._epochs(), loss=f"{means['loss']:.3f}", top1=f"{means['top1']:.1f}")
        if not self._told_length and seconds - self._began >= SETTLED:
            self._told_length = True
            console.say(f"time     about {console.duration(self._left(speed))} from here on")
        self.warn_corrupt(parts.train.corrupt, "replaced by the next ones")
        return non_finite, means["grad_norm"]

    def evaluated(self, scores: dict[str, float]) -> None:
        """The line of a validation with these scores."""
        parts, state = self.parts, self.state
        weights = "model" if state.ema is None else "ema"
        parts.logger.log("val", state.step, {"epoch": parts.epoch, **scores, "weights": weights})
        self._val_scores = scores

    def epoch_line(self, *, is_end: bool, is_last: bool) -> None:
        """How the epoch went, or went so far: on a terminal every few seconds, and at the end."""
        parts, state = self.parts, self.state
        means = state.window_means("epoch", reset=is_end)
        line = f"{self._epochs()}  loss {means['loss']:.3f} top-1 {means['top1']:5.2f}"
        if self._val_scores and state.evaluated_at == state.step:
            best = " *" if state.best is not None and state.best.step == state.step else ""
            loss, top1 = self._val_scores["loss"], self._val_scores["top1"]
            line += f"  val loss {loss:.3f} top-1 {top1:5.2f}{best}"
        seconds = max(self.clock.seconds, 1e-9)
        speed = state.images / seconds
        left = console.duration(seconds if is_last else self._left(speed))
        line += f"  {speed:,.0f} img/s  {left}{'' if is_last else ' left'}"
        if is_last or not sys.stdout.isatty() or time.monotonic() - self._last_line >= PAUSE:
            self._last_line = time.monotonic()
            console.say(line)
        else:
            console.keep(line)
        share = parts.train.waited / max(seconds - self._began, 1e-9)
        if share >= NOTABLE and not self._told_waiting:
            self._told_waiting = True
            console.say(
                f"waiting  {100 * share:.0f} % of the time goes to waiting for images; try "
                f"data.cache=jpeg, or more data.workers"
            )

    def _epochs(self) -> str:
        parts = self.parts
        return f"epoch {parts.epoch:.1f}/{float(parts.plan.epoch_at(parts.plan.steps)):.4g}"

    def _left(self, speed: float) -> float:
        """Seconds until the end at so many images/s; of a validation's images a third of the time,
        that of the forward pass.
        """
        parts, steps = self.parts, self.parts.plan.steps - self.state.step
        images = steps * parts.config.trainer.batch_size
        if parts.val is not None:
            images += int(steps / parts.plan.eval_every) * len(parts.val) // 3
        return images / max(speed, 1e-9)

    def pictures(self, predictions: Predictions, *, is_last: bool) -> None:
        """Pictures of the selected weights after a validation, as far as there is time for them."""
        with self.clock.paused(), self.only_warned("pictures of the validation"):
            self._show(predictions, is_last)

    def _show(self, predictions: Predictions, is_last: bool) -> None:
        parts, state = self.parts, self.state
        assert parts.val is not None
        if self._pictures is None:
            self._pictures = TensorBoardPictures(parts.logger, parts.val, parts.classes)
        if self._pictures.is_due(self.clock.seconds) or is_last:
            self._pictures.add(state.eval_model, predictions, state.step)
        if parts.config.trainer.histograms:
            for name, weights in state.model.named_parameters():
                for kind, values in (("weights", weights), ("gradients", weights.grad)):
                    if values is not None and bool(values.isfinite().all()):
                        parts.logger.histogram(f"{kind}/{name}", values, state.step)

    def warn_corrupt(self, bad: CorruptImages, fate: str) -> None:
        """Name damaged images that were not named before."""
        for name, why in bad.news().items():
            console.warn(f"damaged images are {fate}: {name} ({why})")

    def final(self, scores: dict[str, float]) -> None:
        """The settings beside the final scores."""
        settings = flatten(to_plain(self.parts.config))
        named = {f"hparam/{key}": value for key, value in scores.items()}
        self.parts.logger.hparams(self.state.step, settings, named)
