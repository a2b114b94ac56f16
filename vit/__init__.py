"""vit: train, kill, resume and evaluate Vision Transformers.

From Python:

    import vit

    run = vit.train(["data=folder", "data.root=~/flowers", "trainer.epochs=5"])
    run = vit.load_run("outputs/flowers")
    run.predict("photos"), run.embed(images), run.attention("rose.jpg"), run.evaluate("split=val")
    model = vit.VisionTransformer(image_size=32, patch_size=4, num_classes=10, dim=192, heads=3)

The names below are the public API. They are imported when they are first used, because they need
torch, and `vit-train --help` does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vit import errors as errors

if TYPE_CHECKING:
    from vit.api import Prediction, Run, load_run, train
    from vit.config.model import ViTConfig
    from vit.config.plugins import use_plugins
    from vit.model.attention import Attention
    from vit.model.pooling import AttentionPool
    from vit.model.vit import VisionTransformer

__all__ = [
    "Attention", "AttentionPool", "Prediction", "Run", "ViTConfig", "VisionTransformer", "load_run",
    "train", "use_plugins",
]  # fmt: skip
_HOMES = {
    "Attention": "vit.model.attention", "AttentionPool": "vit.model.pooling",
    "Prediction": "vit.api", "Run": "vit.api", "ViTConfig": "vit.config.model",
    "VisionTransformer": "vit.model.vit", "load_run": "vit.api", "train": "vit.api",
    "use_plugins": "vit.config.plugins",
}  # fmt: skip


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vit' has no attribute {name!r}")
