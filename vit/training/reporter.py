"""Reporting of a run: log lines, the progress bar, pictures."""

from __future__ import annotations

import math
import sys
import time

from vit.artifacts.logger import image_grid
from vit.config.saved import MAIN
from vit.data.reading.reader import CorruptImages
from vit.inference.predict import Predictions
from vit.runtime import console
from vit.runtime.device import synchronize
from vit.training.clock import Clock, times_due
from vit.training.components import Components
from vit.training.curriculum import Curriculum
from vit.training.monitor import TensorBoardPictures

NOTABLE = 0.1
"""From this share on, the time that images were waited for is said."""
WARM_UP, MEASURED = 3, 2.0
"""First steps that are not measured, and seconds of steps that the length of a run is told from."""
SMOOTHING = 0.3
"""Weight of the newest log line in the seconds that a step takes."""
PAUSE = 3.0
"""Seconds between epoch lines on a terminal, at least."""
_BAR = "{desc} |{bar}| {percentage:.0f} %{postfix}"


class Reporter:
    """Tells console, `metrics.jsonl` and TensorBoard how a run fares.

    Of `parts` it changes nothing but the windows over which means are taken.
    """

    def __init__(self, parts: Components, clock: Clock, curriculum: Curriculum) -> None:
        self.parts = parts
        self.state = parts.state
        self.clock = clock
        self.curriculum = curriculum
        self.bar = console.progress(
            total=parts.plan.steps, initial=parts.state.step, desc=self._epochs(),
            bar_format=_BAR, dynamic_ncols=True,
        )  # fmt: skip
        self.only_warned = console.OnlyWarned()
        self._pictures: TensorBoardPictures | None = None
        self._last_log = (parts.state.seconds, parts.state.images, parts.train.waited)
        self._began = (parts.state.seconds, parts.state.images)
        self._warm = parts.state.seconds
        self._per_step: float | None = None  # seconds, from when the length of the run is told
        self._fares = ""
        self._val_scores: dict[str, float] = {}
        self._predictions: Predictions | None = None  # of the last validation, to be drawn
        self._held: dict[bool, str] = {}  # lines of the best epoch and of the last, to be shown
        self._shown_at = -math.inf
        self._told_waiting = False

    def first_batch(self) -> None:
        """The first images as the model sees them, in TensorBoard."""
        parts = self.parts
        if self.state.step == 0 and parts.world.is_main and parts.train.features is None:
            with self.only_warned("a picture of the first batch"):
                images = parts.train.normalise.undo(parts.train.batch_at(0).images[:32])
                parts.logger.images("train/first_batch", image_grid(images.cpu()), 0)

    def stepped(self) -> None:
        """Move the bar, and tell the length of the run as soon as it is known."""
        state, is_known = self.state, self._per_step is not None
        # Steps that compiled are not among the images.
        counted = (state.images - self._began[1]) // self.parts.config.trainer.batch_size - WARM_UP
        if counted <= 0:
            synchronize(self.parts.device)
            self._warm = self.clock.seconds
        elif not is_known and self.clock.seconds - self._warm >= MEASURED:
            synchronize(self.parts.device)
            self._per_step = (self.clock.seconds - self._warm) / counted
        left = self._left()
        if not is_known and left is not None and left > MEASURED:
            self._tell_length(left)
        if not self.bar.disable:
            eta = "" if left is None else f"{console.duration(left)} left"
            self.bar.set_description_str(self._epochs(), refresh=False)
            self.bar.set_postfix_str(", ".join(filter(None, (eta, self._fares))), refresh=False)
        self.bar.update()

    def _left(self) -> float | None:
        """Seconds to the end of the run, each validation and save as long as the last one; None at
        the end, and as long as that is not known.
        """
        parts, plan, step = self.parts, self.parts.plan, self.state.step
        if self._per_step is None or step == plan.steps:
            return None
        validations = float(times_due(step, plan.steps, plan.eval_every))
        if parts.val is not None and parts.test is not None:
            validations += len(parts.test) / len(parts.val)
        took = self.clock.took
        return (
            self._per_step * (plan.steps - step)
            + took.get("validation", 0.0) * validations
            + took.get("save", 0.0) * times_due(step, plan.steps, plan.save_every)
        )

    def _tell_length(self, left: float) -> None:
        about = "about" if self.parts.config.trainer.early_stop is None else "at most"
        unknown = self.parts.val is not None and "validation" not in self.clock.took
        besides = ", and the validations" if unknown else ""
        console.say(f"time     {about} {console.roughly(left)} from here on{besides}")

    def log(self, lr: float) -> float:
        """The line of some steps: read them from the device, write them down.

        Returns:
            the mean gradient norm of those that had a finite one.
        """
        parts, state, task = self.parts, self.state, self.parts.loss.task
        means = state.window_means("log", reset=True)
        seconds = self.clock.seconds
        then, images_then, waited_then = self._last_log
        self._last_log = (seconds, state.images, parts.train.waited)
        past = max(seconds - then, 1e-9)
        speed = (state.images - images_then) / past
        head = 2 * state.model.head.weight.numel()
        flops = self.curriculum.flops() if parts.train.features is None else head
        utilisation = 3 * flops * speed / parts.rate / parts.world.size
        values = {
            "epoch": parts.epoch,
            "loss": means["loss"],
            task.right_key: means["right"],
            "lr": lr,
            "grad_norm": means["grad_norm"],
            "bad_steps": state.non_finite.total,
            "bad_images": len(parts.train.corrupt.reasons),
            "images_per_second": round(speed, 1),
            "mfu": round(utilisation, 4),
            "data_share": round((parts.train.waited - waited_then) / past, 3),
            "seconds": round(seconds, 3),
        }
        parts.logger.log("train", state.step, values)
        if speed and self._per_step is not None:
            newest = parts.config.trainer.batch_size / speed
            self._per_step += SMOOTHING * (newest - self._per_step)
        right = f"{task.right_key.replace('top1', 'top-1')} {means['right']:.1f}"
        self._fares = f"{speed:,.0f} img/s, loss {_loss(means['loss'])}, {right}"
        self.warn_corrupt(parts.train.corrupt, "replaced by the next ones")
        return means["grad_norm"]

    def evaluated(self, scores: dict[str, float], predictions: Predictions | None) -> None:
        """The line of a validation with these scores; `pictures` will show the predictions."""
        parts, state = self.parts, self.state
        weights = "model" if state.ema is None else "ema"
        parts.logger.log("val", state.step, {"epoch": parts.epoch, **scores, "weights": weights})
        self._val_scores, self._predictions = scores, predictions

    def epoch_line(self, *, is_end: bool) -> None:
        """How the epoch went, or went so far; on a terminal every few seconds, and the best and the
        last in any case.
        """
        parts, state = self.parts, self.state
        means = state.window_means("epoch", reset=is_end)
        task = parts.loss.task
        loss, score = f"loss {_loss(means['loss'])}", MAIN[task.score]
        if task.right_key == task.score:
            score += f" {means['right']:5.2f}"
        is_best = False
        if self._val_scores and state.evaluated_at == state.step:
            is_best = state.best is not None and state.best.step == state.step
            loss += f" val {_loss(self._val_scores['loss'])}"
            score += f" val {self._val_scores[task.score]:5.2f}{' *' if is_best else '  '}"
        seconds, left = max(self.clock.seconds, 1e-9), self._left()
        done = state.step == parts.plan.steps
        when = console.duration(left or seconds)
        when += " left" if left else " in all" if done else " so far"
        line = f"{self._epochs()}  {loss}  {score}  {state.images / seconds:,.0f} img/s  {when}"
        console.keep(line)
        if is_best:
            self._held.clear()
        self._held[is_best] = line
        if not sys.stdout.isatty() or time.monotonic() - self._shown_at >= PAUSE:
            self._show_held()
        share = parts.train.waited / max(seconds - self._began[0], 1e-9)
        streams = parts.config.data.memory == "stream"
        if streams and share >= NOTABLE and not self._told_waiting:
            self._told_waiting = True
            console.say(
                f"waiting  {100 * share:.0f} % of the time goes to waiting for images; try "
                f"data.cache=jpeg, or more data.workers"
            )

    def _show_held(self) -> None:
        for line in self._held.values():
            console.show(line)
        self._held.clear()
        self._shown_at = time.monotonic()

    def close(self) -> None:
        """Show what is held back, and remove the bar."""
        self._show_held()
        self.bar.close()
        compiling = self.clock.took.get("compiling", 0.0)
        if compiling > self.clock.seconds - self._began[0]:
            console.say(
                f"compiled for {console.duration(compiling)}, longer than it trained; "
                f"trainer.compile=false is faster for so few steps"
            )

    def _epochs(self) -> str:
        total = self.parts.epochs_text(self.parts.plan.steps)
        return f"epoch {self.parts.epochs_text(self.state.step):>{len(total)}}/{total}"

    def pictures(self, *, is_last: bool) -> None:
        """Pictures of the selected weights after a validation, as far as there is time for them."""
        parts, state, predictions = self.parts, self.state, self._predictions
        if predictions is None:
            return
        self._predictions = None
        with self.clock.paused(), self.only_warned("pictures of the validation"):
            if self._pictures is None:
                assert parts.val is not None
                self._pictures = TensorBoardPictures(parts.logger, parts.val, parts.classes)
            if self._pictures.is_due(self.clock.seconds) or is_last:
                self._pictures.add(state.eval_model, predictions, state.step)
            drawn = state.model.named_parameters() if parts.config.trainer.histograms else ()
            for name, weights in drawn:
                for kind, values in (("weights", weights), ("gradients", weights.grad)):
                    if values is not None and bool(values.isfinite().all()):
                        parts.logger.histogram(f"{kind}/{name}", values, state.step)

    def warn_corrupt(self, bad: CorruptImages, fate: str) -> None:
        """Name damaged images that were not named before."""
        for name, why in bad.news().items():
            console.warn(f"damaged images are {fate}: {name} ({why})")


def _loss(loss: float) -> str:
    """In seven characters at most, whatever it is."""
    return f"{loss:.3f}" if loss < 100 else f"{loss:.0f}" if loss < 1e5 else f"{loss:.0e}"
