"""summary.json: a run in one small dictionary."""

from __future__ import annotations

from typing import Any

from vit.artifacts.console import versions
from vit.engine.parts import Parts
from vit.engine.state import parameter_count


def summary(parts: Parts, state: str, scores: dict[str, float]) -> dict[str, Any]:
    """What became of a run.

    Args:
        parts: of the run.
        state: `running`, `finished`, `failed`, `interrupted` or `pruned`.
        scores: `val_*` and `test_*`, top-1 and top-5 in percent, loss in nats; of a run that has
            not ended the best validation so far stands in.
    """
    trained = parts.state
    best = trained.best
    speed = trained.images / trained.seconds if trained.seconds else 0.0
    return {
        "state": state,
        "val_top1": scores.get("val_top1", best.top1 if best is not None else None),
        "test_top1": scores.get("test_top1"),
        **{key: value for key, value in scores.items() if not key.endswith("top1")},
        "best_epoch": best.epoch if best is not None else None,
        "step": trained.step,
        "epoch": float(parts.plan.epoch_at(trained.step)),
        "params": parameter_count(trained.model),
        "images_per_second": round(speed, 1),
        "seconds": round(trained.seconds, 3),
        "versions": versions(),
    }
