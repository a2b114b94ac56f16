"""The training state: model, average, optimiser, counters; to a checkpoint and back."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from vit.config.saved import SavedBest, main_score
from vit.model.vit import VisionTransformer
from vit.optim.ema import Ema
from vit.runtime.dist import ALONE, World, full_tensor, shard_like, to_leader


@dataclass
class NonFiniteSteps:
    """Steps without a finite loss and gradient.

    Attributes:
        in_row: that many without a break until now.
        most_in_row: the most without a break since the last log line.
        total: in all.
        last: number of the last one; -1: there was none.
    """

    in_row: int
    most_in_row: int
    total: int
    last: int

    def count(self, step: int, *, is_bad: bool) -> None:
        """Count `step`, which is one of them or not."""
        self.in_row = self.in_row + 1 if is_bad else 0
        self.most_in_row = max(self.most_in_row, self.in_row)
        self.total += is_bad
        self.last = step if is_bad else self.last


class LossScale:
    """The factor of an fp16 loss, so that small gradients are not rounded to zero (Micikevicius et
    al. 2018): halved after a step that is not finite, doubled after GROWS_AFTER that are; on the
    device.

    Attributes:
        factor: float32, a power of two.
        good: int32, steps in a row that were finite.
    """

    GROWS_AFTER = 2000

    def __init__(self, device: torch.device) -> None:
        self.factor = torch.full((), 2.0**16, device=device)
        self.good = torch.zeros((), dtype=torch.int32, device=device)

    def undo(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide gradients, in place, that are of a loss times `factor`."""
        grads = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(grads, 1 / self.factor)

    def update(self, is_bad: Tensor) -> None:
        """Change the factor after a step that is not finite, or is."""
        torch._amp_update_scale_(self.factor, self.good, is_bad.float(), 2.0, 0.5, self.GROWS_AFTER)


class TrainState:
    """Model, average, optimiser, and the counters that a checkpoint carries.

    Attributes:
        forward: the model as it is called in training, or its head alone, which features are given
            to; it may average gradients over processes.
        step: optimiser steps done.
        unread: of each step since `metric_sums` was asked for, of our share of its batch, the sum
            of losses, correct images and the gradient norm, (3,) on the device, and the images.
        window_starts: `metric_sums` at the last log line and at the start of the epoch.
        non_finite: the steps that had no finite loss and gradient, of those that were read.
        loss_scale: of an fp16 run; None: the loss is as it is.
        best: best validation so far.
        thresholds: of several labels per image, as the last validation has them; None: of one.
        evaluated_at: step of the last complete evaluation.
        evals_since_best: evaluations since the best one.
        seconds, images: time trained and images seen in that time, without evaluation, saving and
            compilation.
    """

    def __init__(
        self, model: VisionTransformer, ema: Ema | None, optimizer: torch.optim.Optimizer,
        device: torch.device, precision: str = "fp32", world: World = ALONE,
    ) -> None:  # fmt: skip
        self.model = model
        self.forward: nn.Module = model
        self.ema = ema
        self.optimizer = optimizer
        self.step = 0
        self._world = world
        self._sums = torch.zeros(5, dtype=torch.float64)
        self.unread: list[tuple[Tensor, int]] = []
        self.window_starts = {"log": [0.0] * 5, "epoch": [0.0] * 5}
        self.non_finite = NonFiniteSteps(0, 0, 0, -1)
        self.loss_scale = LossScale(device) if precision == "fp16" else None
        self.best: SavedBest | None = None
        self.thresholds: list[float] | None = None
        self.evaluated_at = 0
        self.evals_since_best = 0
        self.seconds = 0.0
        self.images = 0

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """Of the model, in its order."""
        return list(self.model.parameters())

    def metric_sums(self) -> Tensor:
        """Since the run's start, over the steps that were taken: sum of losses, correct images,
        images, sum of gradient norms, steps; float64 (5,) on the host, which waits for the device.

        Steps that were not taken are counted in `non_finite`. Asked by all processes together, as
        is what is made of it.
        """
        if self.unread:
            rows, images = zip(*self.unread, strict=True)
            self.unread.clear()
            loss, correct, norm = torch.stack(rows).cpu().double().unbind(dim=1)
            own = torch.stack([loss, correct, torch.tensor(images)])
            whole: Tensor = sum(self._world.all_gather_object(own), start=torch.zeros(()))
            steps = torch.stack([*whole, norm, torch.ones_like(norm)], dim=1)
            is_taken = steps.isfinite().all(dim=1)
            for step, taken in enumerate(is_taken.tolist(), start=self.step - len(rows)):
                self.non_finite.count(step, is_bad=not taken)
            self._sums = sum(steps[is_taken], start=self._sums)
        return self._sums

    @property
    def eval_model(self) -> VisionTransformer:
        """The weights that are evaluated, selected and exported: the average where there is one."""
        averaged = self.ema.model if self.ema is not None else self.model
        assert isinstance(averaged, VisionTransformer)
        return averaged

    def window_means(self, window: str, *, reset: bool) -> dict[str, float]:
        """Means over the steps of a window (`log`, `epoch`): loss, right images (percent) and
        grad_norm.

        Of no finite step at all they are not a number. With `reset` the next window starts here.
        """
        now = self.metric_sums().tolist()
        before = self.window_starts[window]
        if reset:
            self.window_starts[window] = now
        loss, correct, images, norms, steps = (a - b for a, b in zip(now, before, strict=True))
        images, steps = images or math.nan, steps or math.nan
        return {"loss": loss / images, "right": 100 * correct / images, "grad_norm": norms / steps}

    def improves(self, scores: dict[str, float]) -> bool:
        """Whether a validation with these scores is the best so far: higher top-1 (mAP) wins, then
        lower loss; one that is not finite never is.
        """
        now, best = (scores[main_score(scores)], -scores["loss"]), self.best
        return math.isfinite(sum(now)) and (best is None or now > (best.score, -best.loss))

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors, all that resuming needs; asked by all processes together."""
        scale = {} if self.loss_scale is None else vars(self.loss_scale)
        return {
            "model": weights_of(self.model),
            "ema": weights_of(self.ema.model) if self.ema is not None else None,
            "optimizer": tree_map_only(Tensor, to_leader, self.optimizer.state_dict()),
            "odometer": self.metric_sums(),
            "marks": self.window_starts,
            "bad": torch.tensor(astuple(self.non_finite)),
            "best": asdict(self.best) if self.best is not None else None,
            "evaluated_at": self.evaluated_at,
            "stale": self.evals_since_best,
            "seconds": self.seconds,
            "images": self.images,
            **({"loss_scale": {key: t.cpu() for key, t in scale.items()}} if scale else {}),
        }

    def load_state_dict(self, step: int, saved: dict[str, Any]) -> None:
        """Go back to what `state_dict` said at `step`."""
        self.step = step
        set_weights(self.model, saved["model"])
        if self.ema is not None:
            set_weights(self.ema.model, saved["ema"])
        self._load_optimizer(saved["optimizer"])
        self._sums.copy_(saved["odometer"])
        self.unread.clear()
        self.window_starts = {name: list(values) for name, values in saved["marks"].items()}
        self.non_finite = NonFiniteSteps(*saved["bad"].tolist())
        self.best = SavedBest(**saved["best"]) if saved["best"] is not None else None
        self.evaluated_at = saved["evaluated_at"]
        self.evals_since_best = saved["stale"]
        self.seconds = saved["seconds"]
        self.images = saved["images"]
        if self.loss_scale is not None:
            for name, value in vars(self.loss_scale).items():
                value.copy_(saved["loss_scale"][name])

    def is_finite(self) -> bool:
        """Whether every weight, also of the average, is a finite number; asked by all processes
        together."""
        models = dict.fromkeys((self.model, self.eval_model))
        return all(bool(full_tensor(p.isfinite().all())) for m in models for p in m.parameters())

    def _load_optimizer(self, saved: dict[str, Any]) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        spread = {
            number: {
                key: shard_like(value, parameters[number])
                if isinstance(value, Tensor) and value.shape == parameters[number].shape
                else value
                for key, value in entries.items()
            }
            for number, entries in saved["state"].items()
        }
        self.optimizer.load_state_dict({**saved, "state": spread})


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model, whole in the memory of the leading process."""
    return {name: to_leader(tensor) for name, tensor in model.state_dict().items()}


def set_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load what `weights_of` gave, into a model of the same names."""
    now = model.state_dict()
    model.load_state_dict(
        {name: shard_like(w, now[name]) if name in now else w for name, w in weights.items()}
    )


def parameter_count(model: nn.Module) -> int:
    """Number of trainable weights."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def flops_per_image(
    model: VisionTransformer, patch_dropout: float = 0.0, size: tuple[int, int] | None = None
) -> int:
    """Operations of one forward pass per image, 2 per multiply-add, counted by torch.

    Args:
        model: only its architecture counts.
        patch_dropout: share of the patches that is left out.
        size: height and width of the image in pixels; None: the model's.
    """
    from torch.utils.flop_counter import FlopCounterMode

    height, width = size or model.config.image_size
    with torch.device("meta"):
        twin = VisionTransformer(model.config, patch_dropout=patch_dropout)
        twin.requires_grad_(False)
        images = torch.empty(1, model.config.channels, height, width)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        twin(images)
    return int(counter.get_total_flops())
