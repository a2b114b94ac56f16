"""From checked settings to the parts of a training run."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from vit.artifacts import checkpoint, console
from vit.artifacts.logger import Logger, RunLogger, SilentLogger
from vit.artifacts.run_dir import RunDir
from vit.cli.search import Watch
from vit.config.checks import FROM_WEIGHTS
from vit.config.compose import dump_yaml, flatten, to_config, to_plain
from vit.config.errors import ConfigError, DataError, NoCheckpointError
from vit.config.resolve import (
    Plan,
    plan,
    resolve,
    resolve_memory,
    vit_config,
    with_absolute_paths,
)
from vit.config.resume import changes, with_saved
from vit.config.schema import RunConfig
from vit.data.images import FileImages
from vit.data.loader import EvalLoader, TrainLoader
from vit.data.reader import Reader, verify
from vit.data.sources import load_data_set
from vit.data.types import DataSet
from vit.engine.header import announce, doubts
from vit.engine.images import images_of_new, images_of_resumed
from vit.engine.loss import Loss
from vit.engine.parts import Parts, schedule_lr
from vit.engine.pretrained import HeadAlone, Pretrained, describe, features
from vit.engine.state import TrainState
from vit.engine.teacher import load_teacher
from vit.engine.weight_files import load_pretrained
from vit.model.vit import VisionTransformer
from vit.optim.build import build_optimizer, freeze
from vit.optim.ema import Ema
from vit.runtime import device as runtime_device
from vit.runtime.dist import World, replicated, shard
from vit.runtime.seeding import reseed
from vit.runtime.signals import StopRequest

VERIFIED = 2000
"""Up to so many files are decoded before the first step, where that is not done to hold them."""


def build(
    config: RunConfig, given: frozenset[str], run: RunDir, stop: StopRequest, world: World,
    watch: Watch,
) -> Parts | None:  # fmt: skip
    """Everything that `Trainer` needs, restored from the run's newest checkpoint if it has one.

    `given` are the keys that the user gave: the others make room for what comes with
    `model.weights`.

    Returns:
        None when the run is finished and nothing longer is asked for; that was said.

    Raises:
        ConfigError, DataError: before anything was changed on disk.
        NoCheckpointError: `resume=<folder>` without an undamaged checkpoint.
    """
    config = with_absolute_paths(config)
    saved = _saved(config, run)
    device = runtime_device.select_device(
        config.trainer.device, world.local_rank if world.size > 1 else None
    )
    if config.trainer.deterministic:
        runtime_device.make_deterministic()
    pretrained = None
    if config.model.weights is not None and saved is None:
        pretrained = load_pretrained(config.model.weights)
    config = _resolved(_with_what_weights_bring(config, given, saved, pretrained), device, saved)
    data = load_data_set(config.data)
    in_files = isinstance(data.splits["train"].images, FileImages)
    config = resolve_memory(config, sum(map(len, data.splits.values())), in_files=in_files)
    images = None
    if saved is not None:
        images = images_of_resumed(data, run, saved, config.data, leads=world.leads)
    teacher = load_teacher(config, data.classes, device)
    if images is None:
        known = [*(pretrained.trained_on if pretrained else ())]
        known += teacher.images if teacher else ()
        images = images_of_new(data, run, known, leads=world.leads)
    data = images.data
    length = plan(config, len(data.splits["train"]))
    environment = runtime_device.environment(device, world.size)
    if teacher is not None:
        environment["teacher"] = teacher.fingerprint()
    if saved is not None:
        _compare(config, saved, environment, len(data.splits["train"]))
        if run.read_summary().get("state") == "finished" and saved["step"] >= length.steps:
            console.say(f"{run.path} is finished; more with trainer.epochs=<more>")
            return None
    if world.leads:
        run.write_config(dump_yaml({**to_plain(config), "resume": None}))

    reseed(config.seed, "init")
    model = VisionTransformer(vit_config(config, len(data.classes)))
    start = None if pretrained is None else pretrained.into(model, data.classes)
    freeze(model, config.trainer.freeze)
    model = model.to(device)
    ema = None if length.ema_decay is None else Ema(model, length.ema_decay)
    if config.trainer.shard == "fsdp":
        for spread in (model, *([ema.model] if ema is not None else [])):
            shard(spread, spread.blocks, world, device)  # type: ignore[arg-type]
    optimizer = build_optimizer(model, config.optim)
    state = TrainState(model, ema, optimizer, device)
    if saved is not None:
        state.load_state_dict(saved["step"], saved["training"])
    model.checkpoint_activations = config.trainer.checkpoint_activations
    if config.trainer.compile:
        model.compile()
    trained: nn.Module = HeadAlone(model.head) if config.trainer.cache_features else model
    if config.trainer.shard == "none":
        state.forward = replicated(trained, world, device)
    train, val, test = _loaders(config, length, data, model, world)
    for split, loader in (("train", train), ("val", val), ("test", test)):
        if loader is not None:
            loader.bad.note(images.gone.get(split, {}))
    if saved is not None:
        train.bad.note(saved["training"].get("bad_images", {}))
    logger: Logger = SilentLogger()
    if world.leads:
        logged = saved["training"] if saved else {}
        logger = RunLogger(
            run, state.step, logged.get("metrics_bytes", 0), logged.get("metrics_digest")
        )
    parts = Parts(
        config, length, state, Loss(config.trainer, config.distill, teacher), train, val, test,
        data.classes, images.digest, run, logger, stop, device, world, watch, environment,
    )  # fmt: skip
    announce(parts, data, [] if start is None else describe(start, config))
    for problem in doubts(config, data) if saved is None else []:
        console.warn(problem)
    return parts


def _saved(config: RunConfig, run: RunDir) -> dict[str, Any] | None:
    """The run's newest checkpoint; None for a new run."""
    if config.resume is None or (config.resume == "auto" and not run.step_files()):
        return None
    path, content = checkpoint.newest(run, console.warn)
    if content.get("training") is None:
        raise NoCheckpointError(f"{path} can be evaluated, but not gone on from")
    return content


def _with_what_weights_bring(
    config: RunConfig, given: frozenset[str], saved: dict[str, Any] | None,
    pretrained: Pretrained | None,
) -> RunConfig:  # fmt: skip
    """With the shape and the normalisation of pretrained weights, but for what was given.

    A run that goes on has them in its settings.

    Raises:
        ConfigError: these are no weights of a Vision Transformer, or how many heads it has is
            known to nobody.
    """
    if pretrained is not None:
        brought = pretrained.settings(config)
    elif saved is not None and config.model.weights is not None:
        brought = {key: flatten(saved["config"])[key] for key in FROM_WEIGHTS}
    else:
        return config
    plain = to_plain(config)
    for key, value in brought.items():
        section, name = key.split(".")
        if key not in given and not (section == "model" and "model" in given):
            plain[section][name] = value
    if "model.heads" not in brought and not given & {"model", "model.heads"}:
        raise ConfigError(
            f"model.weights={config.model.weights} does not say how many heads its "
            f"{brought['model.dim']} features have; give model.heads=<how many>"
        )
    return to_config(plain)


def _resolved(config: RunConfig, device: torch.device, saved: dict[str, Any] | None) -> RunConfig:
    """No `auto` left: as the run resolved it when it started, else as this machine does."""
    if saved is not None:
        config = to_config(with_saved(saved["config"], to_plain(config)))
    return resolve(config, bf16=runtime_device.has_fast_bf16(device))


def _compare(
    config: RunConfig, saved: dict[str, Any], environment: dict[str, str | int], train_samples: int
) -> None:
    """Say what is different from the run so far; refuse what would make it another run."""
    before_config, step = with_absolute_paths(to_config(saved["config"])), saved["step"]
    for line in changes(flatten(to_plain(before_config)), flatten(to_plain(config))):
        console.say(f"changed: {line}")
    before_plan, now_plan = plan(before_config, train_samples), plan(config, train_samples)
    if now_plan.steps < before_plan.steps:
        raise ConfigError(
            f"trainer.epochs={config.trainer.epochs} (trainer.steps={config.trainer.steps}) is "
            f"shorter than the run's {before_plan.steps} steps; give as many or more"
        )
    before = schedule_lr(before_config, before_plan, step)
    after = schedule_lr(config, now_plan, step)
    if before != after:
        console.say(f"learning rate at step {step}: {before:g} -> {after:g}")
    for key, was in saved["training"]["environment"].items():
        if environment.get(key) != was:
            console.warn(f"not bit-exact: {key} {environment.get(key)}, before {was}")


def _loaders(
    config: RunConfig, length: Plan, data: DataSet, model: VisionTransformer, world: World
) -> tuple[TrainLoader, EvalLoader | None, EvalLoader | None]:
    device = model.head.weight.device
    reader = Reader.of(config.data, model.config.patch_size, device, world)
    data = reader.keeping(data, config.data, console.warn)
    few = sum(map(len, data.splits.values())) <= VERIFIED and not reader.held
    if config.data.verify is True or (config.data.verify == "auto" and few):
        _verify(data, reader)
    train = TrainLoader(
        data.splits["train"], len(data.classes), config.trainer.batch_size, config.augment,
        config.data.balance, config.seed, reader, world, length.mix_end,
    )  # fmt: skip
    val, test = (
        EvalLoader(data.splits[s], config.trainer.eval_batch_size, reader, world)
        if s in data.splits
        else None
        for s in ("val", "test")
    )
    if config.trainer.cache_features:
        images = EvalLoader(data.splits["train"], config.trainer.eval_batch_size, reader)
        train.see_once(images, partial(features, model, precision=config.trainer.precision))
    if reader.held:
        reader.pool.stop()
    return train, val, test


def _verify(data: DataSet, reader: Reader) -> None:
    """Decode every image of every split.

    Raises:
        DataError: of all splits, the damaged images that may not be.
    """
    problems = []
    for samples in data.splits.values():
        try:
            reader.bad(samples).note(verify(samples, reader))
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
