"""Setting up a run: from checked settings to its components, new or resumed."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from vit.artifacts import checkpoint
from vit.artifacts.logger import Logger
from vit.artifacts.run_dir import RunDir
from vit.artifacts.trackers import TRACKERS
from vit.config import plugins
from vit.config.checks import PHOTO_SIZE
from vit.config.final import DataFacts, FinalConfig, final_config
from vit.config.plugins import part
from vit.config.resolve import Plan, plan, with_absolute_paths
from vit.config.resume import changes
from vit.config.schema import RunConfig
from vit.config.validate import flatten, to_config, to_plain
from vit.config.yaml_files import dump_yaml
from vit.data.loader import EvalLoader, TrainLoader
from vit.data.reading.decode import sizes_of
from vit.data.reading.reader import Reader, refuse_damage, verify
from vit.data.sampler import positive_weights
from vit.data.sources.registry import load_data_set
from vit.data.task import SEVERAL_LABELS
from vit.data.types import DataSet, FileImages
from vit.errors import ConfigError, DiskFullError, NoCheckpointError, shortened
from vit.inference.predict import features
from vit.model.vit import VisionTransformer
from vit.optim.build import build_optimizer, freeze
from vit.optim.ema import Ema
from vit.optim.lora import add_lora
from vit.optim.schedule import lr_at
from vit.runtime import console
from vit.runtime import device as runtime_device
from vit.runtime.dist import World, shard, wrap_ddp
from vit.runtime.seeding import reseed
from vit.runtime.signals import StopRequest
from vit.training.components import Components, ShouldPrune
from vit.training.distill import load_teacher
from vit.training.header import announce, chosen, doubts, slow_size
from vit.training.host_memory import within_memory
from vit.training.loss import Loss
from vit.training.pace import measure, steps_within
from vit.training.pretrained import Pretrained, describe
from vit.training.run_images import images_of_new, images_of_resumed
from vit.training.state import TrainState
from vit.training.step import parts_that_fit
from vit.training.weight_files import load_pretrained

VERIFIED = 2000
"""Up to so many files are decoded before the first step, where that is not done to hold them."""


def set_up(
    settings: RunConfig, user_keys: frozenset[str], run: RunDir, stop: StopRequest, world: World,
    should_prune: ShouldPrune, began: float,
) -> Components | None:  # fmt: skip
    """Everything that `Trainer` needs, restored from the run's newest checkpoint if it has one.

    Args:
        settings: as composed.
        user_keys: keys that the user gave: the others make room for what weights bring.
        run, stop, world, should_prune: as in `Components`.
        began: when the run did, on the clock of `time.monotonic`.

    Returns:
        None when the run is finished and nothing longer is asked for; that was said.

    Raises:
        ConfigError, DataError: before the run's settings or checkpoints were touched.
        NoCheckpointError: `resume=<folder>` without an undamaged checkpoint.
    """
    settings = with_absolute_paths(settings)
    saved = _saved(settings, run)
    device = runtime_device.select_device(
        settings.trainer.device, world.local_rank if world.size > 1 else None, "trainer.device"
    )
    if settings.trainer.deterministic:
        runtime_device.make_deterministic()
    weights = None
    if settings.model.weights is not None and saved is None:
        weights = load_pretrained(settings.model.weights)
    data = load_data_set(settings.data)
    settings = replace(settings, data=replace(settings.data, **data.settings))
    images = None
    if saved is not None:
        images = images_of_resumed(data, run, saved, settings.data, is_main=world.is_main)
        data = images.data
    brought = None if weights is None else weights.settings(settings, user_keys)
    final = final_config(
        settings,
        user_keys,
        brought,
        None if saved is None else saved["config"],
        _facts(data),
        precision=runtime_device.best_precision(device),
        gpu=device.type == "cuda",
    )
    config = final.config
    runtime_device.allow_tf32(config.trainer.precision, device)
    teacher = load_teacher(config, data.classes, device)
    if images is None:
        known = [*(weights.trained_on if weights else ()), *(teacher.images if teacher else ())]
        images = images_of_new(data, run, known, is_main=world.is_main)
        data = images.data
    fingerprint: dict[str, Any] = {**runtime_device.fingerprint(device, world.size)}
    if found := plugins.sources(flatten(to_plain(config))):
        fingerprint["plugins"] = found
    if teacher is not None:
        fingerprint["teacher"] = teacher.fingerprint()
    if saved is not None:
        _compare(final, saved, fingerprint, len(data.splits["train"]))
        if run.read_summary().get("state") == "finished" and saved["step"] >= final.plan.steps:
            console.say(
                f"{run.path} is finished after {final.plan.steps:,} steps; more with "
                f"trainer.epochs=<in all> (or trainer.steps=<in all>)"
            )
            return None

    state, start = _state(final, data.classes, weights, saved, world, device)
    asked = config.trainer
    if saved is None and device.type == "cpu" and asked.shard == "none":
        config = replace(config, trainer=within_memory(state.model, asked, user_keys, world))
    elif asked.accumulate == "auto":
        fitting = parts_that_fit(state.model, asked, world, device)
        config = replace(config, trainer=replace(asked, accumulate=fitting))
    if config.trainer != asked:
        start.append(
            f"memory   suffices for trainer.accumulate={config.trainer.accumulate} "
            f"trainer.eval_batch_size={config.trainer.eval_batch_size}"
        )
    if world.is_main:
        _check_space(run, state, config.trainer.keep)
    train, val, test = _loaders(config, final.plan, data, state.model, world)
    _set_forward(state, config, train, world)
    for split, loader in (("train", train), ("val", val), ("test", test)):
        if loader is not None:
            loader.corrupt.note(images.gone.get(split, {}))
    if saved is not None:
        train.corrupt.note(saved["training"].get("bad_images", {}))
    positive = None
    if train.task is SEVERAL_LABELS:
        labels, balanced = data.splits["train"].labels, config.data.balance == "loss"
        weights_of_labels = positive_weights(labels) if balanced else np.ones(labels.shape[1])
        positive = torch.from_numpy(weights_of_labels).float().to(device)
        state.thresholds = [0.5] * labels.shape[1] if saved is None else saved["thresholds"]
    loss = Loss(config.trainer, config.distill, teacher, positive)
    length = final.plan
    if config.trainer.steps is None and config.trainer.minutes is not None:
        trial, _ = _state(final, data.classes, weights, None, world, device)
        _set_forward(trial, config, train, world)
        pace = measure(trial, config, train, val, test, loss, run.path, world, began)
        del trial
        steps = steps_within(config, pace, len(train))
        config = replace(config, trainer=replace(config.trainer, steps=steps))
        length = plan(config, len(train))
        train.mix_end = length.mix_end
        start.append(f"minutes  {config.trainer.minutes:g} in all are trainer.steps={steps}")
    if world.is_main:
        run.write_config(dump_yaml({**to_plain(config), "resume": None}))
    parts = Components(
        config, length, state, loss, train, val, test,
        data.classes, images.digest, run, _logger(config, run, state, saved, world), stop, device,
        world, should_prune, runtime_device.matrix_rate(device, config.trainer.precision),
        fingerprint, user_keys,
    )  # fmt: skip
    announce(parts, data, [*chosen(settings, config, brought or ()), *start])
    problems = doubts(config, data) if saved is None else []
    if device.type == "cpu" and "data.image_size" in (brought or ()):
        problems += slow_size(state.model)
    for problem in problems:
        console.warn(problem)
    return parts


def _saved(config: RunConfig, run: RunDir) -> dict[str, Any] | None:
    """The run's newest checkpoint; None for a new run."""
    if config.resume is None or (config.resume == "auto" and not run.step_files()):
        return None
    path, content = checkpoint.newest(run, console.warn)
    if content.get("training") is None:
        raise NoCheckpointError(f"{path} can be evaluated, but not gone on from")
    try:
        to_config(content["config"])
    except ConfigError as error:
        told = shortened(error.problems, 2)
        raise NoCheckpointError(f"{path} holds settings that are none ({told})") from None
    return content


def _facts(data: DataSet) -> DataFacts:
    sides = sizes_of(data.splits["train"]).min(axis=1)
    images = data.splits["train"].images
    in_files = isinstance(images, FileImages)
    facts = DataFacts(
        classes=len(data.classes),
        train=len(data.splits["train"]),
        images=sum(map(len, data.splits.values())),
        side=int(np.median(sides)) if len(sides) else PHOTO_SIZE if in_files else None,
    )
    facts = facts._replace(several=data.splits["train"].labels.ndim == 2)
    return facts if isinstance(images, FileImages) else facts._replace(shape=images.shape[2:])


def _compare(
    final: FinalConfig, saved: dict[str, Any], fingerprint: dict[str, Any], train_samples: int
) -> None:
    """Say what is different from the run so far; refuse what would make it another run."""
    config = final.config
    before_config, step = with_absolute_paths(to_config(saved["config"])), saved["step"]
    changed = changes(flatten(to_plain(before_config)), flatten(to_plain(config)))
    before_plan = plan(before_config, train_samples)
    if final.plan.steps < before_plan.steps:
        raise ConfigError(
            f"trainer.epochs={config.trainer.epochs} (trainer.steps={config.trainer.steps}) is "
            f"shorter than the run's {before_plan.steps} steps; give as many or more"
        )
    for line in changed:
        console.say(f"changed: {line}")
    before = lr_at(before_config, before_plan, step)
    after = lr_at(config, final.plan, step)
    if before != after:
        console.say(f"learning rate at step {step}: {before:g} -> {after:g}")
    for key, was in saved["training"]["environment"].items():
        if fingerprint.get(key) != was:
            console.warn(f"not bit-exact: {key} {fingerprint.get(key)}, before {was}")


def _state(
    final: FinalConfig, classes: list[str], weights: Pretrained | None,
    saved: dict[str, Any] | None, world: World, device: torch.device,
) -> tuple[TrainState, list[str]]:  # fmt: skip
    """Model, average and optimiser, where the run goes on from; and what became of weights that it
    starts from, as lines to read.
    """
    config = final.config
    reseed(config.seed, "init")
    model = VisionTransformer(final.model)
    told = [] if weights is None else describe(weights, weights.into(model, classes), config)
    if config.trainer.freeze.startswith("lora:"):
        add_lora(model, int(config.trainer.freeze.removeprefix("lora:")))
    freeze(model, config.trainer.freeze)
    model = model.to(device)
    decay = final.plan.ema_decay
    ema = None if decay is None else Ema(model, decay)
    if config.trainer.shard == "fsdp":
        for spread in (model, *([ema.model] if ema is not None else [])):
            dtype = runtime_device.product_dtype(config.trainer.precision)
            shard(spread, spread.blocks, world, device, dtype)  # type: ignore[arg-type]
    optimizer = build_optimizer(model, config.optim)
    state = TrainState(model, ema, optimizer, device, config.trainer.precision, world)
    if saved is not None:
        try:
            state.load_state_dict(saved["step"], saved["training"])
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split()[:30])
            raise NoCheckpointError(
                f"the checkpoint of step {saved['step']} holds no state of this model ({reason}); "
                f"delete it to go on from the one before, or start a new run"
            ) from None
    model.checkpoint_activations = config.trainer.checkpoint_activations
    return state, told


def _set_forward(state: TrainState, config: RunConfig, train: TrainLoader, world: World) -> None:
    """How the model, or its head alone, is called in training."""
    if config.trainer.shard != "none":
        return
    trained: nn.Module = state.model if train.features is None else state.model.head
    if config.trainer.compile:  # the training step alone: others call the model as it is
        trained = torch.compile(trained, dynamic=False)  # type: ignore[assignment]
        # Which says that there is no GPU, where none is asked for.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    state.forward = wrap_ddp(trained, world, train.device)


def _check_space(run: RunDir, state: TrainState, keep: int) -> None:
    """Look, before any work, whether the disk holds what the run will write.

    Raises:
        DiskFullError: not one checkpoint.
    """
    models = 3 if state.ema is None else 4  # itself, two moments of an optimiser, the average
    size = models * sum(4 * weight.numel() for weight in state.model.parameters())
    free = shutil.disk_usage(run.path).free
    told = (
        f"a checkpoint of this model takes about {size / 2**20:,.0f} MB, and the disk of "
        f"{run.path} has {free / 2**20:,.0f} MB left; free some, or choose outputs=<folder>"
    )
    if free < size:
        raise DiskFullError(told)
    if free < (keep + 2) * size:  # the best one, and one that is being written
        console.warn(told)


def _logger(
    config: RunConfig, run: RunDir, state: TrainState, saved: dict[str, Any] | None, world: World
) -> Logger:
    if not world.is_main:
        return Logger(None)
    logged = saved["training"] if saved else {}
    tracker = part(TRACKERS, "tracker", config.tracker.name, config.tracker.options)
    return Logger(
        run, state.step, logged.get("metrics_bytes", 0), logged.get("metrics_digest"),
        tracker(run.path, to_plain(config)),
    )  # fmt: skip


def _loaders(
    config: RunConfig, length: Plan, data: DataSet, model: VisionTransformer, world: World
) -> tuple[TrainLoader, EvalLoader | None, EvalLoader | None]:
    device = model.head.weight.device
    reader = Reader.of(config.data, model.config.patch_size, device, world)
    splits = reader.with_cache(data.splits, config.data)
    few = sum(map(len, splits.values())) <= VERIFIED and not reader.held
    if config.data.verify is True or (config.data.verify == "auto" and few):
        damaged = ((samples, verify(samples, reader)) for samples in splits.values())
        refuse_damage(damaged, reader.bad_images)
    train = TrainLoader(
        splits["train"], len(data.classes), config.trainer.batch_size, config.augment,
        config.data.balance, config.seed, reader, world, length.mix_end,
    )  # fmt: skip
    val, test = (
        EvalLoader(splits[s], config.trainer.eval_batch_size, reader, world)
        if s in splits
        else None
        for s in ("val", "test")
    )
    if config.trainer.cache_features:
        images = EvalLoader(splits["train"], config.trainer.eval_batch_size, reader)
        train.see_once(images, partial(features, model, precision=config.trainer.precision))
    if reader.held:
        reader.pool.stop()
    return train, val, test
