"""The final settings of a run: of what was asked for, what weights bring, what the run resolved
when it started, machine and data. Pure: nothing is read, built or said.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from vit.config.checks import FROM_WEIGHTS
from vit.config.model import ViTConfig
from vit.config.resolve import Plan, fit_to_data, plan, resolve, resolve_memory, vit_config
from vit.config.resume import with_saved
from vit.config.schema import RunConfig
from vit.config.validate import to_config, to_plain
from vit.errors import ConfigError


class DataFacts(NamedTuple):
    """What of a data set decides settings: how many classes, training images and images of all
    splits it has, and the typical shorter side of its files in pixels; None: it is no files, but
    arrays of pixels, whose height and width are `shape`; and whether images have `several` labels.
    """

    classes: int
    train: int
    images: int
    side: int | None
    shape: tuple[int, int] = (16, 16)
    several: bool = False


class FinalConfig(NamedTuple):
    """Settings without any `auto`, the architecture and the durations that they say."""

    config: RunConfig
    model: ViTConfig
    plan: Plan


def final_config(
    settings: RunConfig, user_keys: Collection[str], weights: Mapping[str, Any] | None,
    saved: Mapping[str, Any] | None, data: DataFacts, *,
    precision: Literal["bf16", "fp16", "fp32"], gpu: bool,
) -> FinalConfig:  # fmt: skip
    """Resolve a run.

    Args:
        settings: as composed.
        user_keys: the keys and groups that the user gave: weights do not change these.
        weights: settings that `model.weights` brings, keys of `checks.FROM_WEIGHTS`; None: the
            run starts from none, or goes on.
        saved: settings (nested) of the run that goes on; None: it is new.
        data: of its images.
        precision: what the device multiplies matrices in by itself: bf16, fp16 or fp32.
        gpu: it is one.

    Raises:
        ConfigError: contradictions with what the weights bring, images that are too many to be
            held, or a warm-up longer than the run.
    """
    if saved is not None and settings.model.weights is not None:
        weights = {key: saved[key.split(".")[0]][key.split(".")[1]] for key in FROM_WEIGHTS}
    if weights is not None:
        settings = _with_weights(settings, user_keys, weights)
    if saved is not None:
        settings = to_config(with_saved(saved, to_plain(settings)))
    if data.several:
        settings = _for_several_labels(settings, user_keys)
    settings = to_config(
        to_plain(fit_to_data(settings, data.train, data.side, data.shape, gpu=gpu))
    )
    config = resolve(settings, precision=precision)
    config = resolve_memory(config, data.images, in_files=data.side is not None)
    return FinalConfig(config, vit_config(config, data.classes), plan(config, data.train))


def _for_several_labels(settings: RunConfig, user_keys: Collection[str]) -> RunConfig:
    """With the loss of images that have several labels each.

    Raises:
        ConfigError: settings that are of one label.
    """
    data, trainer = settings.data, settings.trainer
    refused = {
        "trainer.loss=cross_entropy, which is of one label; leave it out": (
            trainer.loss != "bce" and "trainer.loss" in user_keys
        ),
        "data.balance=sampler; try data.balance=loss": data.balance == "sampler",
        f"data.limit_per_class={data.limit_per_class}; leave it out": (
            data.limit_per_class is not None
        ),
        f"distill.teacher={settings.distill.teacher}; leave it out": (
            settings.distill.teacher is not None
        ),
    }
    if problems := [words for words, is_so in refused.items() if is_so]:
        raise ConfigError([f"images with several labels do not go with {x}" for x in problems])
    return replace(settings, trainer=replace(trainer, loss="bce"))


def _with_weights(
    settings: RunConfig, user_keys: Collection[str], weights: Mapping[str, Any]
) -> RunConfig:
    """With the shape, normalisation and recipe that weights bring, but for what was given."""
    plain = to_plain(settings)
    for key, value in weights.items():
        section, name = key.split(".")
        if not {key, "" if section == "data" else section} & set(user_keys):
            plain[section][name] = value
    if "model.heads" not in weights and not {"model", "model.heads"} & set(user_keys):
        raise ConfigError(
            f"model.weights={settings.model.weights} does not say how many heads its "
            f"{weights['model.dim']} features have; give model.heads=<how many>"
        )
    return to_config(plain)
