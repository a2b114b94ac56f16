"""The training loop."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from fractions import Fraction

import torch.nn.functional as F

from vit.artifacts import checkpoint, console
from vit.artifacts.logger import image_grid
from vit.config.compose import flatten, to_plain
from vit.config.errors import DataError, DivergedError, InterruptedRun, PrunedRun
from vit.config.schema import height_width
from vit.data.loader import EvalLoader
from vit.data.reader import BadImages
from vit.data.types import Batch
from vit.engine.album import Album
from vit.engine.cadence import due
from vit.engine.clock import Clock
from vit.engine.evaluate import Predictions, predict
from vit.engine.parts import Parts, schedule_lr
from vit.engine.restore import load_trained, to_checkpoint
from vit.engine.state import Best, flops_per_image
from vit.engine.step import train_step
from vit.model.vit import VisionTransformer
from vit.runtime.device import matrix_rate
from vit.runtime.dist import Agreement, is_sharded

START_AGAIN = "start again with a lower optim.lr, optim.clip_norm=1.0 or trainer.precision=fp32"


class Trainer:
    """Trains `parts.state` to the end of `parts.plan`, wherever it starts."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.state = parts.state
        self.size = parts.config.data.size
        self.flops: dict[tuple[object, ...], int] = {}
        self.rate = matrix_rate(parts.device, parts.config.trainer.precision)
        self.clock = Clock(parts.device, parts.state.seconds)
        self.last_log = (parts.state.seconds, parts.state.images)
        self.bar = console.EpochBar()
        self.compiling = parts.config.trainer.compile
        self.val_scores: dict[str, float] = {}
        self.agreement = Agreement(parts.world)
        self.album: Album | None = None
        self.only_warned = console.OnlyWarned()

    def fit(self) -> dict[str, float]:
        """Train, then evaluate the selected weights on the test set.

        Returns:
            `val_*` and `test_*` scores of the final weights, as far as there are such splits.

        Raises:
            InterruptedRun: a signal came; the state was saved.
            DataError: a damaged image, or a worker that failed; the state was saved.
            DivergedError: too many steps in a row, or most of all, or final scores were not finite.
        """
        self.parts.stop.defer()
        with contextlib.closing(self.bar):
            try:
                return self._train()
            except InterruptedRun:
                self._save()
                self.parts.world.wait()  # who leaves first would end the one that still writes
                raise
            except DataError as error:
                nothing_done = self.state.step == 0 and self.parts.stop.signum is None
                if nothing_done or self.parts.world.size > 1:
                    raise
                self._save()
                self._stop_if_asked()  # a signal to all processes ends the workers too
                raise DataError(f"{error}; {self._saved_here()}") from None

    def _train(self) -> dict[str, float]:
        self._show_first_batch()
        if self._evaluation_is_due():  # a signal cut it short
            self._round_off()
        elif self.state.evaluated_at == self.state.step:  # a kill may have cut the answer short
            self._ask_search()
        while not self._finished():
            self._step()
            self._round_off()
            self._stop_if_asked()
        return self._final_scores()

    def _finished(self) -> bool:
        patience = self.parts.config.trainer.early_stop
        stale = patience is not None and self.state.stale >= patience
        return stale or self.state.step >= self.parts.plan.steps

    def _step(self) -> None:
        """One step, and a log line when it is due."""
        parts, state, config = self.parts, self.state, self.parts.config
        self._open_bar()
        lr = self.lr(state.step)
        batch = self._as_scheduled(parts.train.batch_at(state.step))
        # The first call compiles, which is no training time.
        with self.clock.paused() if self.compiling else contextlib.nullcontext():
            train_step(
                state, batch, lr, seed=config.seed, world=parts.world,
                config=config.trainer, loss=parts.loss, clip_norm=config.optim.clip_norm,
                device=parts.device,
            )  # fmt: skip
        if not self.compiling:
            state.images += config.trainer.batch_size
        self.compiling = False
        self.bar.advance(config.trainer.batch_size)
        if self._due(parts.plan.log_every):
            self._log(lr)

    def _as_scheduled(self, batch: Batch) -> Batch:
        """Fewer patches, smaller images: until the schedule's step for each."""
        parts, model, step = self.parts, self.state.model, self.state.step
        drops = step < parts.plan.patch_dropout_end
        model.patch_dropout.rate = drops * parts.config.model.patch_dropout
        small = parts.config.schedule.small_images
        if small is None or step >= parts.plan.small_images_end:
            self.size, model.interpolate_positions = parts.config.data.size, False
            return batch
        self.size, model.interpolate_positions = height_width(small), True
        images = F.interpolate(batch.images, self.size, mode="bilinear", antialias=True)
        return replace(batch, images=images)

    def _flops(self) -> int:
        """Of an image of the size and with the patches that the last step had."""
        if self.parts.config.trainer.cache_features:
            return 2 * self.state.model.head.weight.numel()
        rate = self.state.model.patch_dropout.rate
        if (rate, self.size) not in self.flops:
            self.flops[rate, self.size] = flops_per_image(self.state.model, rate, self.size)
        return self.flops[rate, self.size]

    def _round_off(self) -> None:
        """What falls due after a step: evaluation, the line of the epoch, a checkpoint."""
        plan = self.parts.plan
        evaluates = self._evaluation_is_due()
        seen = None
        if evaluates:
            with self.clock.paused():
                seen = self._evaluate()
        if self._due(plan.steps_per_epoch) or evaluates:
            self._epoch_line()
        if self._due(plan.save_every):
            self._save()
        if seen is not None:  # after what must not be lost
            with self.clock.paused(), self.only_warned("pictures of the validation"):
                self._show(seen)
        if evaluates:
            self._ask_search()

    def _ask_search(self) -> None:
        """Whether the search that this run is part of wants it to go on."""
        parts, state = self.parts, self.state
        if state.best is None or self._finished():
            return
        if parts.watch(float(parts.plan.epoch_at(state.step)), state.best.top1):
            self._save()
            raise PrunedRun(f"pruned and {self._saved_here()}")

    def _evaluation_is_due(self) -> bool:
        state = self.state
        due_now = state.evaluated_at < state.step and self._due(self.parts.plan.eval_every)
        return due_now and self.parts.val is not None

    def _due(self, every: Fraction) -> bool:
        """Due at its own cadence and at the end."""
        return due(self.state.step, every) or self.state.step == self.parts.plan.steps

    def lr(self, step: int) -> float:
        """The learning rate of step number `step`."""
        return schedule_lr(self.parts.config, self.parts.plan, step)

    def _log(self, lr: float) -> None:
        """Read the counters from the device, write them down, and judge them."""
        state, config = self.state, self.parts.config
        self._share_damaged()
        means = state.since("log", move=True)
        in_row, most, total, last = state.bad.tolist()
        seconds = self.clock.seconds
        then, images_then = self.last_log
        self.last_log = (seconds, state.images)
        speed = (state.images - images_then) / max(seconds - then, 1e-9)
        values = {
            "epoch": float(self.parts.plan.epoch_at(state.step)),
            "loss": means["loss"],
            "top1": means["top1"],
            "lr": lr,
            "grad_norm": means["grad_norm"],
            "bad_steps": total,
            "bad_images": len(self.parts.train.bad.reasons),
            "images_per_second": round(speed, 1),
            "mfu": round(3 * self._flops() * speed / self.rate / self.parts.world.size, 4),
            "seconds": round(seconds, 3),
        }
        self.parts.logger.log("train", state.step, values)
        left = (self.parts.plan.steps - state.step) * config.trainer.batch_size / max(speed, 1e-9)
        self.bar.show(
            loss=f"{means['loss']:.3f}", top1=f"{means['top1']:.1f}", eta=console.duration(left)
        )
        self._tell_damaged(self.parts.train.bad, "replaced by the next ones")
        if most >= config.trainer.max_bad_steps:
            ids = [self.parts.train.names[i] for i in self.parts.train.indices_at(last)[:8]]
            raise DivergedError(
                f"{most} steps in a row without a finite loss and gradient, the last of them step "
                f"{last} (lr {self.lr(last):g}, mean norm of the finite gradients before "
                f"{means['grad_norm']:g}, images {', '.join(ids)}, ...); {START_AGAIN}"
            )
        state.bad[1] = in_row

    def _evaluate(self) -> Predictions | None:
        """Score the selected weights on validation and keep them if they are the best so far.

        What is not finite is never the best.

        Returns:
            What can be shown in pictures by this process, if anything.
        """
        parts, state = self.parts, self.state
        assert parts.val is not None
        predictions = self._predict(state.selected, parts.val)
        scores = predictions.scores()
        epoch = float(parts.plan.epoch_at(state.step))
        is_finite = math.isfinite(scores["loss"]) and state.is_finite()
        if is_finite and (
            state.best is None or state.best.beaten_by(scores["top1"], scores["loss"])
        ):
            state.best = Best(**scores, step=state.step, epoch=epoch)
            state.stale = 0
            content = to_checkpoint(state, parts.config, parts.classes, parts.images, training=None)
            if parts.world.leads:
                checkpoint.save(parts.run.best, content)
        else:
            state.stale += 1
        state.evaluated_at = state.step
        self.val_scores = scores
        weights = "model" if state.ema is None else "ema"
        parts.logger.log("val", state.step, {"epoch": epoch, **scores, "weights": weights})
        shows = parts.world.leads and is_finite and not is_sharded(state.model)
        return predictions if shows else None

    def _show(self, predictions: Predictions) -> None:
        """Pictures of the selected weights, as far as there is time for them."""
        parts, state = self.parts, self.state
        assert parts.val is not None
        if self.album is None:
            self.album = Album(parts.logger, parts.val, parts.classes)
        if self.album.is_due(self.clock.seconds) or self._finished():
            self.album.add(state.selected, predictions, state.step)
        if parts.config.trainer.histograms:
            for name, weights in state.model.named_parameters():
                for kind, values in (("weights", weights), ("gradients", weights.grad)):
                    if values is not None and bool(values.isfinite().all()):
                        parts.logger.histogram(f"{kind}/{name}", values, state.step)

    def _predict(self, model: VisionTransformer, loader: EvalLoader) -> Predictions:
        precision = self.parts.config.trainer.precision
        predictions = predict(model, loader, self.parts.device, precision, self._stop_if_asked)
        self._tell_damaged(loader.bad, "left out of the scores")
        return predictions

    def _share_damaged(self) -> None:
        """Every process knows the damaged images that any of them met."""
        bad = self.parts.train.bad
        for reasons in self.parts.world.gather(bad.reasons):
            bad.note(reasons)

    def _tell_damaged(self, bad: BadImages, fate: str) -> None:
        for name, why in bad.news().items():
            console.warn(f"damaged images are {fate}: {name} ({why})")

    def _epoch_line(self) -> None:
        state, plan = self.state, self.parts.plan
        means = state.since("epoch", move=self._due(plan.steps_per_epoch))
        total = float(plan.epoch_at(plan.steps))
        line = (
            f"epoch {float(plan.epoch_at(state.step)):6.2f}/{total:g}  step {state.step}  "
            f"train loss {means['loss']:.4f} top-1 {means['top1']:5.2f}"
        )
        if self.val_scores and state.evaluated_at == state.step:
            best = " *" if state.best is not None and state.best.step == state.step else ""
            loss, top1 = self.val_scores["loss"], self.val_scores["top1"]
            line += f" | val loss {loss:.4f} top-1 {top1:5.2f}{best}"
        speed = state.images / max(self.clock.seconds, 1e-9)
        console.say(f"{line} | {speed:,.0f} images/s  {console.duration(self.clock.seconds)}")

    def _save(self) -> None:
        """Write a checkpoint that the run can go on from."""
        parts, state = self.parts, self.state
        state.seconds = self.clock.seconds
        self._share_damaged()
        with self.clock.paused():
            if not state.is_finite():
                raise DivergedError(
                    f"weights are not finite at step {state.step}, and no checkpoint of them is "
                    f"written; {START_AGAIN}"
                )
            metrics_bytes, metrics_digest = parts.logger.durable()
            training = {
                **state.state_dict(),
                "metrics_bytes": metrics_bytes,
                "metrics_digest": metrics_digest,
                "environment": parts.environment,
                "bad_images": parts.train.bad.reasons,
            }
            content = to_checkpoint(state, parts.config, parts.classes, parts.images, training)
            if parts.world.leads:
                checkpoint.save(parts.run.step_file(state.step), content)
                parts.run.prune(parts.config.trainer.keep)

    def _stop_if_asked(self) -> None:
        """Stop where a signal came, to any of the processes."""
        signum = self.agreement.largest(self.parts.stop.signum or 0)
        if signum:
            raise InterruptedRun(
                signum,
                f"interrupted and {self._saved_here()}",
            )

    def _saved_here(self) -> str:
        return (
            f"saved at step {self.state.step}; go on with `vit-train resume={self.parts.run.path}`"
        )

    def _final_scores(self) -> dict[str, float]:
        """Scores of the best weights (without validation: the last) on val and test."""
        state, parts = self.state, self.parts
        scores: dict[str, float] = {}
        if state.best is not None:
            best = state.best
            scores = {"val_loss": best.loss, "val_top1": best.top1, "val_top5": best.top5}
        elif parts.val is not None:
            scores = {"val_loss": math.nan}
        self._check_finished(scores)
        state.seconds = self.clock.seconds
        if parts.test is not None:
            parts.world.wait()  # until the best checkpoint is written
            trained = load_trained(parts.run.path, parts.device, console.warn)
            test = self._predict(trained.model, parts.test).scores()
            parts.logger.log(
                "test", state.step, {"epoch": float(parts.plan.epoch_at(state.step)), **test}
            )
            scores |= {f"test_{key}": value for key, value in test.items()}
            self._check_finished(scores)
        settings = flatten(to_plain(parts.config))
        final = {f"hparam/{key}": value for key, value in scores.items()}
        parts.logger.hparams(state.step, settings, final)
        return scores

    def _check_finished(self, scores: dict[str, float]) -> None:
        why = self.state.diverged(scores)
        if why is not None:
            raise DivergedError(f"the run ended, but {why}; {START_AGAIN}")

    def _open_bar(self) -> None:
        """A new bar at the start of an epoch, or where a resumed run is."""
        plan, step = self.parts.plan, self.state.step
        if self.bar.is_open and not due(step, plan.steps_per_epoch):
            return
        images = len(self.parts.train)
        epoch, done = divmod(step * self.parts.config.trainer.batch_size, images)
        self.bar.start(epoch + 1, images, done)

    def _show_first_batch(self) -> None:
        """The first images as the model sees them, in TensorBoard."""
        caches = self.parts.config.trainer.cache_features
        if self.state.step == 0 and self.parts.world.leads and not caches:
            with self.only_warned("a picture of the first batch"):
                images = self.parts.train.normalise.undo(self.parts.train.batch_at(0).images[:32])
                self.parts.logger.images("train/first_batch", image_grid(images.cpu()), 0)
