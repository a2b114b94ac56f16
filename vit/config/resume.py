"""Resuming: which settings may change, and the migration of configs of earlier versions."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import fields
from typing import Any

from vit.config.model import ModelOptions
from vit.errors import ConfigError

MAY_CHANGE = frozenset(
    {
        "trainer.epochs", "trainer.steps", "trainer.device", "trainer.compile",
        "trainer.checkpoint_activations", "trainer.shard", "trainer.histograms",
        "trainer.log_every", "trainer.save_every", "trainer.keep", "trainer.early_stop",
        "data.root", "data.images", "data.workers", "data.timeout", "data.on_bad_image",
        "data.bad_image_limit", "data.verify", "data.max_pixels", "data.cache_dir",
        "distill.teacher", "distill.weights", "tracker.name", "tracker.options", "outputs", "name",
        "resume",
    }
)  # fmt: skip
"""Where, how fast, how often and how long; everything else would make it another run."""

MIGRATIONS: dict[str, Any] = {
    "data.images": None,
    "data.image_column": None,
    "data.label_column": None,
    "data.split_column": None,
    "data.weight_column": None,
    "data.group_column": None,
    "data.group": None,
    "data.folds": None,
    "data.fold": None,
    "data.split_by": "position",
    "data.center_crop": 1.0,
    "data.aspect": "crop",
    "data.limit_per_class": None,
    "data.balance": "none",
    "data.cache": "none",
    "data.cache_size": 256,
    "data.cache_dir": None,
    "data.timeout": 120.0,
    "data.on_bad_image": "error",
    "data.bad_image_limit": 0.01,
    "data.verify": False,
    "data.max_pixels": 100_000_000,
    "augment.crop": "padded",
    "augment.crop_scale": [0.08, 1.0],
    "augment.policy": "none",
    "augment.operations": 2,
    "augment.magnitude": 9,
    "augment.color_jitter": 0.0,
    "augment.repeats": 1,
    "trainer.loss": "cross_entropy",
    "trainer.histograms": False,
    "model.registers": 0,
    "model.norm": "layernorm",
    "model.mlp": "gelu",
    "model.norm_eps": 1e-6,
    "model.pre_norm": False,
    "model.pooled_norm": False,
    "model.layer_scale": None,
    "model.qkv_bias": True,
    "model.qk_norm": False,
    "model.attention": "scaled_dot",
    "model.patch_dropout": 0.0,
    "model.zero_branches": False,
    "model.distillation_token": False,
    "model.weights": None,
    "trainer.freeze": "none",
    "trainer.recipe": "none",
    "trainer.cache_features": False,
    "distill.teacher": None,
    "distill.weights": None,
    "distill.kind": "soft",
    "distill.share": 0.5,
    "distill.temperature": 3.0,
    "trainer.checkpoint_activations": False,
    "trainer.shard": "none",
    "optim.layer_decay": 1.0,
    "optim.other_lr": 0.0,
    "optim.momentum": 0.95,
    "schedule.patch_dropout_end": "100%",
    "schedule.mix_end": "100%",
    "schedule.small_images": None,
    "schedule.small_images_end": "80%",
    "data.options": {},
    "model.options": {},
    "augment.options": {},
    "optim.options": {},
    "schedule.options": {},
    "tracker.name": "none",
    "tracker.options": {},
}
"""Keys that runs of earlier versions do not have, with what those versions did."""

UNINTERESTING = frozenset({"outputs", "name", "resume"})


def changes(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The differences between two flat configs, as lines `key: old -> new`.

    A wanted value of `auto` stands for whatever was resolved when the run started.

    Raises:
        ConfigError: a difference that is not in MAY_CHANGE.
    """
    differing = [
        key
        for key in sorted(saved.keys() | wanted.keys())
        if key not in UNINTERESTING
        and saved.get(key) != wanted.get(key)
        and not _was_resolved(key, wanted.get(key))
    ]
    refused = [
        f"{key}={wanted.get(key)} differs from the run's {key}={saved.get(key)}; leave it out, "
        f"or start a new run with it"
        for key in differing
        if key not in MAY_CHANGE and not key.startswith("tracker.options.")
    ]
    if refused:
        raise ConfigError(refused)
    return [f"{key}: {saved.get(key)} -> {wanted.get(key)}" for key in differing]


def with_saved(
    saved: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = ""
) -> dict[str, Any]:
    """`wanted` (nested) with every `auto` replaced by what `saved` (nested) resolved it to.

    Keys in MAY_CHANGE keep their `auto`, but for the length: that of the run, if none is given.
    """
    merged: dict[str, Any] = {}
    for name, value in wanted.items():
        key = prefix + name
        if isinstance(value, Mapping):
            merged[name] = with_saved(saved.get(name, {}), value, f"{key}.")
        else:
            merged[name] = saved.get(name, value) if _was_resolved(key, value) else value
    if merged.get("epochs") == "auto":
        lengths = {name: saved.get(name) for name in ("epochs", "steps")}
        merged |= lengths if merged["steps"] is None else {"epochs": None}
    return merged


def _was_resolved(key: str, value: Any) -> bool:
    return value == "auto" and key not in MAY_CHANGE


def migrate(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved config (nested) with the keys of MIGRATIONS that it lacks."""
    plain = {k: dict(v) if isinstance(v, Mapping) else v for k, v in saved.items()}
    for key, value in MIGRATIONS.items():
        section, _, name = key.partition(".")
        entries = plain.setdefault(section, {})
        if isinstance(entries, dict):
            entries.setdefault(name, copy(value))
    data = plain["data"]
    if isinstance(data, dict) and data.get("name") == "digits":  # which once ignored a root
        data["root"] = None
    return plain


def migrate_spec(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture (of `ViTConfig.plain`) that a checkpoint of an earlier version says, with
    the options that it lacks.
    """
    options = {option.name for option in fields(ModelOptions)}
    models = {key.removeprefix("model."): value for key, value in MIGRATIONS.items()}
    spec = {**{name: value for name, value in models.items() if name in options}, **saved}
    if "mlp_ratio" in spec:  # as the first checkpoints had it
        spec["mlp_dim"] = int(spec["dim"] * spec.pop("mlp_ratio"))
    return spec
