"""The training loop."""

from __future__ import annotations

import contextlib
import math
from fractions import Fraction

from vit.artifacts import checkpoint
from vit.config.saved import SavedBest
from vit.config.telling import telling
from vit.data.loader import EvalLoader
from vit.data.task import ONE_LABEL
from vit.data.types import Batch
from vit.errors import DataError, DivergedError, InterruptedRun, PrunedRun
from vit.inference.calibration import fitted, keep
from vit.inference.load import Trained, load_trained
from vit.inference.predict import Predictions, predict
from vit.model.vit import VisionTransformer
from vit.optim.schedule import lr_at
from vit.runtime import console
from vit.runtime.dist import AsyncMax, is_sharded
from vit.training.clock import Clock, due
from vit.training.components import Components
from vit.training.curriculum import Curriculum
from vit.training.reporter import Reporter
from vit.training.step import train_step

START_AGAIN = "start again with a lower optim.lr, optim.clip_norm=1.0 or trainer.precision=fp32"


class Trainer:
    """Trains `parts.state` to the end of `parts.plan`, wherever it starts."""

    def __init__(self, parts: Components) -> None:
        self.parts = parts
        self.state = parts.state
        self.clock = Clock(parts.device, parts.state.seconds)
        self.curriculum = Curriculum(parts.config, parts.plan, parts.state.model)
        self.reporter = Reporter(parts, self.clock, self.curriculum)
        self.compiled: set[float] = set()
        self.async_max = AsyncMax(parts.world)

    def fit(self) -> dict[str, float]:
        """Train, then evaluate the selected weights on the test set.

        Returns:
            `val_*` and `test_*` scores of the final weights, as far as there are such splits.

        Raises:
            InterruptedRun: a signal came; the state was saved.
            DataError: a damaged image, or a worker that failed; the state was saved.
            DivergedError: too many steps in a row, or most of all, or final scores were not finite.
        """
        self.parts.stop.deferred = True
        with contextlib.closing(self.reporter):
            try:
                return self._train()
            except InterruptedRun:
                self._save()
                # A rank that leaves destroys the process group under those that still write.
                self.parts.world.barrier()
                raise
            except DataError as error:
                nothing_done = self.state.step == 0 and self.parts.stop.signum is None
                if nothing_done or self.parts.world.size > 1:
                    raise
                self._save()
                self._stop_if_signalled()  # a signal to all processes ends the workers too
                raise DataError(f"{error}; {self._saved_here()}") from None

    def _train(self) -> dict[str, float]:
        parts, plan, state = self.parts, self.parts.plan, self.state
        self.reporter.first_batch()
        cut_short = self._evaluation_is_due()  # a signal came in it: the step itself was saved
        if not cut_short:
            self._maybe_prune()  # a kill may have come before the answer
        while cut_short or not self._finished():
            if not cut_short:
                lr = lr_at(parts.config, plan, state.step)
                self.curriculum.begin(state.step)
                self._step(parts.train.batch_at(state.step), lr)
                if self._due(plan.log_every):
                    self._log(lr)
            cut_short = False
            is_epoch = self._due(plan.steps_per_epoch)
            if evaluates := self._evaluation_is_due():
                self._evaluate()
            if is_epoch or evaluates:
                self.reporter.epoch_line(is_end=is_epoch)
            if self._due(plan.save_every):
                self._save()
            if evaluates:
                # after what must not be lost
                self.reporter.pictures(is_last=self._finished())
                self._maybe_prune()
            self._stop_if_signalled()
        return self._final_scores()

    def _finished(self) -> bool:
        patience = self.parts.config.trainer.early_stop
        stale = patience is not None and self.state.evals_since_best >= patience
        return stale or self.state.step >= self.parts.plan.steps

    def _due(self, every: Fraction) -> bool:
        """Due at its own cadence and at the end."""
        return due(self.state.step, every) or self.state.step == self.parts.plan.steps

    def _evaluation_is_due(self) -> bool:
        state = self.state
        due_now = state.evaluated_at < state.step and self._due(self.parts.plan.eval_every)
        return due_now and self.parts.val is not None

    def _step(self, batch: Batch, lr: float) -> None:
        parts, state, config = self.parts, self.state, self.parts.config
        # What is seen for the first time is compiled for, which is no training time.
        compiles = config.trainer.compile and self.curriculum.rate not in self.compiled
        with self.clock.paused("compiling") if compiles else contextlib.nullcontext():
            train_step(
                state, batch, lr, seed=config.seed, world=parts.world,
                config=config.trainer, loss=parts.loss, clip_norm=config.optim.clip_norm,
                device=parts.device,
            )  # fmt: skip
        if compiles:
            self.compiled.add(self.curriculum.rate)
        else:
            state.images += config.trainer.batch_size
        self.reporter.stepped()

    def _log(self, lr: float) -> None:
        """Write down how training goes, and judge it."""
        self._share_corrupt()
        grad_norm, found = self.reporter.log(lr), self.state.non_finite
        if found.most_in_row < self.parts.config.trainer.max_bad_steps:
            found.most_in_row = found.in_row
            return
        train = self.parts.train
        ids = [train.names[i] for i in train.indices_at(found.last)[:8]]
        lr = lr_at(self.parts.config, self.parts.plan, found.last)
        raise DivergedError(
            f"{found.most_in_row} steps in a row without a finite loss and gradient, the last of "
            f"them step {found.last} (lr {lr:g}, mean norm of the finite "
            f"gradients before {grad_norm:g}, images {', '.join(ids)}, ...); {START_AGAIN}"
        )

    def _evaluate(self) -> None:
        """Score the selected weights on validation and keep them if they are the best so far.

        What is not finite is never the best.
        """
        parts, state = self.parts, self.state
        assert parts.val is not None
        with self.clock.paused("validation"):
            predictions = self._predict(state.eval_model, parts.val)
            scores = predictions.scores()
            is_finite = math.isfinite(scores["loss"]) and state.is_finite()
            if is_finite and state.thresholds is not None:
                state.thresholds = predictions.fit_thresholds()
            if is_finite and state.improves(scores):
                state.best = SavedBest(**scores, step=state.step, epoch=parts.epoch)
                state.evals_since_best = 0
                content = parts.to_checkpoint(None)
                if parts.world.is_main:
                    checkpoint.save(parts.run.best, content)
            else:
                state.evals_since_best += 1
            state.evaluated_at = state.step
            shows = parts.world.is_main and is_finite and not is_sharded(state.model)
            self.reporter.evaluated(scores, predictions if shows else None)

    def _maybe_prune(self) -> None:
        """End the run if the search that it is part of wants that."""
        parts, state = self.parts, self.state
        if state.evaluated_at != state.step or state.best is None or self._finished():
            return
        if parts.should_prune(parts.epoch, state.best.score):
            self._save()
            raise PrunedRun(f"pruned and {self._saved_here()}")

    def _predict(
        self, model: VisionTransformer, loader: EvalLoader, *, logits: bool = False
    ) -> Predictions:
        precision = self.parts.config.trainer.precision
        predictions = predict(model, loader, precision, self._stop_if_signalled, logits=logits)
        self.reporter.warn_corrupt(loader.corrupt, "left out of the scores")
        return predictions

    def _share_corrupt(self) -> None:
        """Every process knows the damaged images that any of them met."""
        bad = self.parts.train.corrupt
        for reasons in self.parts.world.all_gather_object(bad.reasons):
            bad.note(reasons)

    def _save(self) -> None:
        """Write a checkpoint that the run can go on from."""
        parts, state = self.parts, self.state
        state.seconds = self.clock.seconds
        self._share_corrupt()
        with self.clock.paused("save"):
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
                "environment": parts.fingerprint,
                "bad_images": parts.train.corrupt.reasons,
            }
            content = parts.to_checkpoint(training)
            if parts.world.is_main:
                checkpoint.save(parts.run.step_file(state.step), content)
                parts.run.prune(parts.config.trainer.keep)

    def _stop_if_signalled(self) -> None:
        """Stop where a signal came, to any of the processes."""
        if signum := self.async_max.largest(self.parts.stop.signum or 0):
            raise InterruptedRun(signum, f"interrupted and {self._saved_here()}")

    def _saved_here(self) -> str:
        return (
            f"saved at step {self.state.step}; go on with `vit-train resume={self.parts.run.path}`"
        )

    def _final_scores(self) -> dict[str, float]:
        """Scores of the best weights (without validation: the last) on val and test."""
        state, parts = self.state, self.parts
        scores: dict[str, float] = {}
        if best := state.best:
            scores = {f"val_{key}": value for key, value in best.scores.items()}
        elif parts.val is not None:
            scores = {"val_loss": math.nan}
        self._check_finished(scores)
        state.seconds = self.clock.seconds
        if parts.test is not None or state.best is not None:
            parts.world.barrier()  # until the best checkpoint is written
            trained = load_trained(parts.run.path, parts.device, console.warn)
        if state.best is not None:
            self._calibrate(trained)
        if parts.test is not None:
            test = self._predict(trained.model, parts.test).scores()
            parts.logger.log("test", state.step, {"epoch": parts.epoch, **test})
            scores |= {f"test_{key}": value for key, value in test.items()}
            self._check_finished(scores)
        parts.logger.hparams(state.step, telling(parts.config, parts.user_keys), scores)
        return scores

    def _calibrate(self, trained: Trained) -> None:
        """Fit on validation what makes the probabilities of the best weights ones to act on, and
        keep it with them.
        """
        parts = self.parts
        assert parts.val is not None
        if parts.loss.task is not ONE_LABEL:  # whose thresholds are fitted at each validation
            return
        predictions = self._predict(trained.model, parts.val, logits=True)
        if parts.world.is_main:
            assert predictions.logits is not None
            record = fitted(predictions.logits, predictions.labels)
            keep(trained.path, record)
            console.say(f"answers  probabilities {record.told()}")

    def _check_finished(self, scores: dict[str, float]) -> None:
        """Raises DivergedError: a run with these final scores is no finished work."""
        state, why = self.state, None
        state.metric_sums()
        bad = state.non_finite.total
        if nan := [key for key, value in scores.items() if not math.isfinite(value)]:
            why = f"{nan[0]} is not finite"
        elif 2 * bad > state.step:
            why = f"{bad:,} of {state.step:,} steps had no finite loss and gradient"
        elif state.non_finite.in_row and not scores:
            why = "its last step, its only score, had no finite loss and gradient"
        if why is not None:
            raise DivergedError(f"the run ended, but {why}; {START_AGAIN}")
