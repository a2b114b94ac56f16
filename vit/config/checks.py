"""Checks across settings: each names the keys it looks at and the remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from vit.config.model import WEIGHT_KEYS
from vit.config.schema import height_width

Complaint = Iterator[str]


@dataclass(frozen=True)
class Check:
    """`rule(*values of keys)` yields complaints with their remedies: nothing, where all is well.

    Among the keys may be `world_size`: the number of processes, or None where it is not known.
    With `waits` a value of FITTED_TO_DATA that is `auto` puts the check off until it is known.
    """

    keys: tuple[str, ...]
    rule: Callable[..., Complaint]
    waits: bool = True


CHECKS: list[Check] = []
OF_FILES = ("folder", "imagenet", "table")
"""Data sets whose images are files, of any size."""
SETTING_OF = {
    **{key: f"model.{key}" for key in WEIGHT_KEYS},
    "mlp_dim": "model.mlp_ratio", "image_size": "data.image_size",
}  # fmt: skip
"""The setting by which the user decides an option of `ViTConfig` that weights may bring."""
FROM_WEIGHTS = (*SETTING_OF.values(), "data.mean", "data.std")
"""Settings that `model.weights` may bring with it."""
FITTED_TO_DATA = (
    "data.image_size", "model.dim", "model.depth", "model.heads", "trainer.epochs",
)  # fmt: skip
"""Settings whose `auto` waits for the training images (`resolve.fit_to_data`)."""
PHOTO_SIZE = 128
"""From this side on, images are taken for photos."""


def check(*keys: str, waits: bool = True) -> Callable[[Callable[..., Complaint]], None]:
    """Add a rule to CHECKS, on the values of `keys`."""

    def register(rule: Callable[..., Complaint]) -> None:
        CHECKS.append(Check(keys, rule, waits))

    return register


def auto_patch_size(height: int, width: int) -> int:
    """About 64 patches for small images, 16 px from 128 px on; always a divisor of both sides.

    At least 2 px: a patch of one pixel says too little.
    """
    common = math.gcd(height, width)
    if min(height, width) >= PHOTO_SIZE:
        return next((p for p in (16, 14, 32, 8) if common % p == 0), 1)
    divisors = [p for p in range(2, min(height, width)) if common % p == 0] or [1]
    return min(divisors, key=lambda p: abs(math.log(math.sqrt(height * width) / p / 8)))


def nearest_multiples(value: int, step: int) -> str:
    """The multiples of `step` around `value`, as words."""
    below = value // step * step
    return f"{below} or {below + step}" if below else f"{step}"


@check("model.dim", "model.heads", waits=False)
def _heads_divide_dim(dim: int | str, heads: int | str) -> Complaint:
    few = range(2, 5) if heads == "auto" else [int(heads)]  # of these one is chosen
    if dim != "auto" and all(int(dim) % count for count in few):
        dim, heads = int(dim), few[-1]
        yield (
            f"model.dim={dim} is not divisible by model.heads={heads}; "
            f"try {nearest_multiples(dim, heads)}"
        )


@check("model.dim", "model.heads", "model.positions", "model.attention")
def _widths_divide(dim: int, heads: int, positions: str, attention: str) -> Complaint:
    rotates, differential = "rope2d" in positions, attention == "differential"
    if rotates and differential:
        yield f"model.attention=differential has no model.positions={positions}; try learned"
    quarters = {"sincos1d": 2, "sincos2d": 4}.get(positions, 1)
    needed = {f"model.positions={positions}": 4 * heads if rotates else math.lcm(quarters, heads)}
    if differential:
        needed["model.attention=differential"] = 2 * heads
    for setting, parts in needed.items():
        if dim % heads == 0 and dim % parts:
            yield (
                f"model.dim={dim} with model.heads={heads} is not divisible by {parts}, as "
                f"{setting} needs; try model.dim={nearest_multiples(dim, parts)}"
            )


@check("data.image_size", "model.patch_size")
def _patch_divides_image(size: int | list[int], patch: int | str) -> Complaint:
    height, width = height_width(size)
    common = math.gcd(height, width)
    if isinstance(patch, str):  # auto
        chosen = auto_patch_size(height, width)
        if any(side // chosen > max(32, side // 8) for side in (height, width)):
            near = [round(side / 16) * 16 or 16 for side in (height, width)]
            better = near[0] if height == width else f"[{near[0]},{near[1]}]"
            yield (
                f"data.image_size={size} has no good patch size for model.patch_size=auto; "
                f"try data.image_size={better}"
            )
    elif common % patch:
        divisors = [p for p in range(1, common + 1) if common % p == 0]
        close = sorted(divisors, key=lambda p: abs(p - patch))[:2]
        yield (
            f"model.patch_size={patch} does not divide data.image_size={size}; "
            f"try {' or '.join(map(str, sorted(close)))}"
        )


@check("data.val_fraction", "data.test_fraction")
def _something_to_train_on(val: float, test: float) -> Complaint:
    if val + test >= 1:
        yield (
            f"data.val_fraction={val:g} and data.test_fraction={test:g} leave nothing to train on; "
            f"try 0.1 each"
        )


@check("data.mean", "data.std")
def _one_value_per_channel(mean: list[float], std: list[float]) -> Complaint:
    if len(mean) != len(std) or len(mean) not in (1, 3):
        yield (
            f"data.mean={mean} and data.std={std} need one value per channel each: "
            f"1 (gray) or 3 (red, green, blue)"
        )


@check("data.name", "data.memory")
def _streams_come_from_files(name: str, memory: str) -> Complaint:
    if memory == "stream" and name not in OF_FILES:
        yield f"data.memory=stream: data={name} is held whole; try data.memory=auto"


def _tables_alone_have(key: str, name: str, given: str | None) -> Complaint:
    if name != "table" and given is not None:
        yield f"{key}={given}: data={name} has no table of labels; try data=table"


for _key in (
    "images",
    "label_separator",
    *(f"{of}_column" for of in ("image", "label", "split", "weight", "group")),
):
    check("data.name", f"data.{_key}")(partial(_tables_alone_have, f"data.{_key}"))


@check("data.label_column", "data.label_separator")
def _several_labels_stand_in_one_way(
    column: str | list[str] | None, separator: str | None
) -> Complaint:
    if isinstance(column, list) and separator is not None:
        yield (
            f"data.label_column={column} and data.label_separator={separator}: give one of them, "
            f"columns of 0 and 1, or one column of several labels"
        )


@check("data.name", "data.group", "data.group_column")
def _groups_come_from_paths_or_a_column(
    name: str, pattern: str | None, column: str | None
) -> Complaint:
    if pattern is not None and name not in OF_FILES:
        yield f"data.group={pattern}: data={name} has no paths; try data.group=null"
    elif pattern is not None and column is not None:
        yield f"data.group={pattern} and data.group_column={column}: give one of them"


@check("data.folds", "data.fold")
def _a_fold_is_one_of_the_folds(folds: int | None, fold: int | None) -> Complaint:
    if folds is None and fold is not None:
        yield f"data.fold={fold} needs data.folds=<how many>, e.g. data.folds=5"
    elif folds is not None and (fold is None or fold >= folds):
        each = ",".join(map(str, range(folds))) if folds <= 10 else f"'range({folds})'"
        yield (
            f"data.fold={fold} is none of data.folds={folds}; try one from 0 to {folds - 1}, or "
            f"all: -m data.fold={each}"
        )


@check("data.name", "data.root")
def _files_alone_have_a_root(name: str, root: str | None) -> Complaint:
    if name == "table" and not root:
        yield "data=table needs data.root=<a CSV, TSV or JSONL file with a row per image>"
    elif name in OF_FILES and not root:
        yield f"data={name} needs data.root=<folder with one sub-folder per class>"
    elif name == "digits" and root is not None:
        yield f"data.root={root} is not read by data={name}; try data=folder data.root={root}"


@check("data.aspect", "data.name", "augment.crop", "distill.teacher")
def _native_keeps_images_whole(aspect: str, name: str, crop: str, teacher: str | None) -> Complaint:
    if aspect != "crop" and name not in OF_FILES:
        yield (
            f"data.aspect={aspect}: images of data={name} are all of one shape; "
            f"try data.aspect=crop"
        )
    for setting, is_given, without in (
        (f"augment.crop={crop}", crop not in ("auto", "none"), "augment.crop=none"),
        (f"distill.teacher={teacher}", teacher is not None, "distill.teacher=null"),
    ):
        if aspect != "crop" and is_given:
            yield (
                f"{setting} does not go with data.aspect={aspect}, which keeps images whole; "
                f"try {without} or data.aspect=crop"
            )


@check("trainer.batch_size", "trainer.accumulate", "augment.mixup", "augment.cutmix", "world_size")
def _batch_splits(
    batch: int, accumulate: int | str, mixup: float, cutmix: float, world_size: int | None
) -> Complaint:
    accumulate, processes = 1 if accumulate == "auto" else int(accumulate), world_size or 1
    if batch % (parts := accumulate * processes):
        yield (
            f"trainer.batch_size={batch} is not divisible by trainer.accumulate={accumulate} x "
            f"{processes} processes; try {nearest_multiples(batch, parts)}"
        )
    elif (mixup or cutmix) and batch % (pairs := 2 * processes):
        yield (
            f"trainer.batch_size={batch} leaves an image without a partner for augment.mixup or "
            f"augment.cutmix; try {nearest_multiples(batch, pairs)}"
        )


@check(
    "trainer.shard", "trainer.compile", "trainer.precision", "trainer.accumulate",
    "trainer.freeze", "optim.name", "world_size",
)  # fmt: skip
def _sharding_was_tried(shard: str, compiles: bool, *others: Any) -> Complaint:
    precision, accumulate, freeze, optim, world_size = others
    if shard != "none" and world_size == 1:
        yield (
            "trainer.shard=fsdp needs several processes; start them with "
            "`torchrun --nproc-per-node 2 -m vit.cli.train ...`"
        )
    for setting, is_given, tried in (
        ("trainer.compile=true", compiles, "trainer.compile=false"),
        ("trainer.precision=fp16", precision == "fp16", "trainer.precision=fp32 or bf16"),
        ("trainer.accumulate=auto", accumulate == "auto", "a number"),
        (f"trainer.freeze={freeze}", freeze != "none", "trainer.freeze=none"),
        (f"optim={optim}", optim != "adamw", "optim=adamw"),
    ):
        if shard != "none" and is_given:
            yield f"trainer.shard={shard} was not tried with {setting}; choose {tried}"


@check("trainer.freeze", "trainer.recipe", "model.weights")
def _weights_are_given(freeze: str, recipe: str, weights: str | None) -> Complaint:
    for key, value in (("trainer.freeze", freeze), ("trainer.recipe", recipe)):
        if value != "none" and weights is None:
            yield (
                f"{key}={value} needs trained weights; give model.weights=<run folder or file>, "
                f"or {key}=none"
            )


@check("trainer.epochs", "trainer.steps", "trainer.minutes")
def _one_length(epochs: float | None, steps: int | None, minutes: float | None) -> Complaint:
    if epochs is None and steps is None and minutes is None:
        yield "trainer.epochs=null and trainer.steps=null: give one, e.g. trainer.epochs=10"
    for other, value in (("steps", steps), ("minutes", minutes)):
        if epochs is not None and value is not None:
            yield (
                f"trainer.epochs={epochs:g} and trainer.{other}={value:g} contradict each other; "
                f"give only one of them"
            )


@check("optim.name", "optim.lr")
def _muon_scales_its_rate(optim: str, lr: float | str) -> Complaint:
    if optim == "muon" and lr == 0:
        yield "optim.lr=0 with optim=muon leaves optim.other_lr without a scale; try optim.lr=0.02"


@check("model.distillation_token", "distill.teacher")
def _token_needs_teacher(token: bool, teacher: str | None) -> Complaint:
    if token and not teacher:
        yield (
            "model.distillation_token=true has nobody to listen to; "
            "try distill.teacher=<run folder> or model.distillation_token=false"
        )


@check("distill.teacher", "distill.weights")
def _timm_teacher_needs_weights(teacher: str | None, weights: str | None) -> Complaint:
    of_timm = teacher is not None and teacher.startswith("timm/")
    if of_timm and weights is None:
        yield f"distill.teacher={teacher} needs distill.weights=<.safetensors or .pth file>"
    elif weights is not None and not of_timm:
        yield (
            f"distill.weights={weights} is of a timm teacher only; "
            f"try distill.teacher=timm/<model> with it, or distill.weights=null"
        )


@check("trainer.freeze", "model.depth")
def _frozen_blocks_exist(freeze: str, depth: int) -> Complaint:
    blocks = freeze.removeprefix("blocks:")
    if blocks != freeze and int(blocks) > depth:
        yield f"trainer.freeze={freeze}: the model has {depth} blocks; try blocks:{depth // 2}"


@check(
    "trainer.cache_features", "trainer.freeze", "augment.crop", "augment.policy",
    "augment.color_jitter", "augment.erasing", "augment.mixup", "augment.cutmix",
    "augment.flip", "augment.repeats", "distill.teacher",
)  # fmt: skip
def _cached_features_do_not_change(
    caches: bool, freeze: str, crop: str, policy: str, *changes: Any
) -> Complaint:
    jitter, erasing, mixup, cutmix, flip, repeats, teacher = changes
    changed = jitter or erasing or mixup or cutmix or flip or repeats > 1 or teacher
    if caches and freeze != "all-but-head":
        yield (
            f"trainer.cache_features=true needs a model that is frozen up to its head, but "
            f"trainer.freeze={freeze}; try trainer.freeze=all-but-head"
        )
    elif caches and (crop != "none" or policy != "none" or changed):
        yield (
            "trainer.cache_features=true sees every image once, as it is; try augment=none, with "
            "distill.teacher=null"
        )


@check("trainer.early_stop", "data.val_fraction")
def _early_stop_needs_validation(early_stop: int | None, fraction: float) -> Complaint:
    if early_stop is not None and fraction <= 0:
        yield (
            f"trainer.early_stop={early_stop} needs validation images, but data.val_fraction=0; "
            f"try data.val_fraction=0.1 or trainer.early_stop=null"
        )


@check("augment.crop_scale")
def _scale_is_a_range(scale: list[float]) -> Complaint:
    if scale[0] > scale[1]:
        yield f"augment.crop_scale={scale} is upside down; try augment.crop_scale={scale[::-1]}"


@check("resume", "name")
def _auto_needs_name(resume: str | None, name: str | None) -> Complaint:
    if resume == "auto" and not name:
        yield "resume=auto needs name=<run name>, else every start would be a new run"
