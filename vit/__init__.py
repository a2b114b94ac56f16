"""vit: train, kill, resume and evaluate Vision Transformers.

From Python:

    from vit import VisionTransformer, load_run

    model = VisionTransformer(image_size=32, patch_size=4, num_classes=10, dim=192, heads=3)
    run = load_run("outputs/flowers")  # model, classes and preprocessing of a trained run

The names below are the public API. They are imported when they are first used, because they need
torch, and `vit-train --help` does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit.config.model import ViTConfig
    from vit.inference.load import load_run
    from vit.model.attention import Attention
    from vit.model.pooling import AttentionPool
    from vit.model.vit import VisionTransformer

__all__ = ["Attention", "AttentionPool", "ViTConfig", "VisionTransformer", "load_run"]

_HOMES = {
    "Attention": "vit.model.attention",
    "AttentionPool": "vit.model.pooling",
    "ViTConfig": "vit.config.model",
    "VisionTransformer": "vit.model.vit",
    "load_run": "vit.inference.load",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vit' has no attribute {name!r}")
