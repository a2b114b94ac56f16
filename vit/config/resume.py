"""Resuming: which settings may change, and the migration of configs of earlier versions."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from vit.config.model import option_defaults
from vit.errors import ConfigError

MAY_CHANGE = frozenset(
    {
        "trainer.epochs", "trainer.steps", "trainer.minutes", "trainer.device", "trainer.compile",
        "trainer.checkpoint_activations", "trainer.shard", "trainer.histograms",
        "trainer.log_every", "trainer.save_every", "trainer.keep", "trainer.early_stop",
        "data.root", "data.images", "data.workers", "data.timeout", "data.on_bad_image",
        "data.bad_image_limit", "data.verify", "data.max_pixels", "data.cache_dir",
        "distill.teacher", "distill.weights", "tracker.name", "tracker.options", "outputs", "name",
        "resume",
    }
)  # fmt: skip
"""Where, how fast, how often and how long; everything else would make it another run."""

MIGRATIONS: dict[str, dict[str, Any]] = {
    "data": {
        "split_by": "position", "center_crop": 1.0, "aspect": "crop", "limit_per_class": None,
        "balance": "none", "cache": "none", "cache_size": 256, "cache_dir": None, "timeout": 120.0,
        "on_bad_image": "error", "bad_image_limit": 0.01, "verify": False,
        "max_pixels": 100_000_000, "options": {}, "group": None, "folds": None, "fold": None,
        "images": None, "image_column": None, "label_column": None, "label_separator": None,
        "split_column": None, "weight_column": None, "group_column": None,
    },
    "model": {**option_defaults(), "weights": None},
    "augment": {
        "crop": "padded", "crop_scale": [0.08, 1.0], "policy": "none", "operations": 2,
        "magnitude": 9, "color_jitter": 0.0, "repeats": 1, "options": {},
    },
    "optim": {"layer_decay": 1.0, "other_lr": 0.0, "momentum": 0.95, "options": {}},
    "schedule": {
        "patch_dropout_end": "100%", "mix_end": "100%", "half_patches_end": "0%",
        "options": {},
    },
    "trainer": {
        "loss": "cross_entropy", "histograms": False, "freeze": "none", "recipe": "none",
        "cache_features": False, "checkpoint_activations": False, "shard": "none",
        "minutes": None,
    },
    "distill": {
        "teacher": None, "weights": None, "kind": "soft", "share": 0.5, "temperature": 3.0,
    },
    "tracker": {"name": "none", "options": {}},
}  # fmt: skip
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
    if (minutes := merged.get("minutes")) is not None and merged.get("steps") is None:
        if minutes != saved.get("minutes"):
            raise ConfigError(
                f"trainer.minutes={minutes:g} is of a new run; this one has trainer.steps="
                f"{saved.get('steps')}: leave it out, or give trainer.steps=<in all>"
            )
        merged["steps"] = saved.get("steps")
    if merged.get("epochs") == "auto":
        lengths = {name: saved.get(name) for name in ("epochs", "steps")}
        merged |= lengths if merged["steps"] is None else {"epochs": None}
    return merged


def _was_resolved(key: str, value: Any) -> bool:
    return value == "auto" and key not in MAY_CHANGE


def migrate(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved config (nested) with the keys of MIGRATIONS that it lacks."""
    plain = {k: dict(v) if isinstance(v, Mapping) else v for k, v in saved.items()}
    for section, added in MIGRATIONS.items():
        if isinstance(entries := plain.setdefault(section, {}), dict):
            plain[section] = {**deepcopy(added), **entries}
    schedule = plain["schedule"]
    if isinstance(schedule, dict) and schedule.get("small_images") is None:  # which is gone
        for name in ("small_images", "small_images_end"):
            schedule.pop(name, None)
    data = plain["data"]
    if isinstance(data, dict) and data.get("name") == "digits":  # which once ignored a root
        data["root"] = None
    return plain


def migrate_spec(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture (of `ViTConfig.plain`) that a checkpoint of an earlier version says, with
    the options that it lacks.
    """
    spec = {**option_defaults(), **saved}
    if "mlp_ratio" in spec:  # as the first checkpoints had it
        spec["mlp_dim"] = int(spec["dim"] * spec.pop("mlp_ratio"))
    return spec
