"""Contradictions between settings: each rule names the keys it looks at and the remedy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vit.config.durations import parse_duration
from vit.config.schema import height_width


@dataclass(frozen=True)
class Check:
    """`rule(*values of keys, world_size)` returns the complaint with its remedy, or None."""

    keys: tuple[str, ...]
    rule: Callable[..., str | None]


CHECKS: list[Check] = []
OF_FILES = ("folder", "imagenet")
"""Data sets whose images are files, of any size."""
PHOTO_SIZE = 128
"""From this side on, images are taken for photos."""


def _check(*keys: str) -> Callable[[Callable[..., str | None]], Callable[..., str | None]]:
    def register(rule: Callable[..., str | None]) -> Callable[..., str | None]:
        CHECKS.append(Check(keys, rule))
        return rule

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


@_check("model.dim", "model.heads")
def _heads_divide_dim(dim: int, heads: int, _: int | None) -> str | None:
    if dim % heads == 0:
        return None
    return (
        f"model.dim={dim} is not divisible by model.heads={heads}; "
        f"try {nearest_multiples(dim, heads)}"
    )


@_check("model.dim", "model.positions")
def _sincos_needs_quarters(dim: int, positions: str, _: int | None) -> str | None:
    parts = {"sincos1d": 2, "sincos2d": 4}.get(positions, 1)
    if dim % parts == 0:
        return None
    return (
        f"model.dim={dim} is not divisible by {parts}, as model.positions={positions} needs; "
        f"try {nearest_multiples(dim, parts)}"
    )


@_check("model.dim", "model.heads", "model.positions")
def _rope_needs_quarters(dim: int, heads: int, positions: str, _: int | None) -> str | None:
    if positions != "rope2d" or dim % heads or dim // heads % 4 == 0:
        return None
    return (
        f"model.dim={dim} / model.heads={heads} is not divisible by 4, as model.positions=rope2d "
        f"needs; try model.dim={nearest_multiples(dim, 4 * heads)}"
    )


@_check("data.image_size", "model.patch_size")
def _patch_divides_image(size: int | list[int], patch: int | str, _: int | None) -> str | None:
    height, width = height_width(size)
    if patch == "auto":
        patch = auto_patch_size(height, width)
        if all(side // patch <= max(32, side // 8) for side in (height, width)):
            return None
        near = [round(side / 16) * 16 or 16 for side in (height, width)]
        better = near[0] if height == width else f"[{near[0]},{near[1]}]"
        return (
            f"data.image_size={size} has no good patch size for model.patch_size=auto; "
            f"try data.image_size={better}"
        )
    assert isinstance(patch, int)
    common = math.gcd(height, width)
    if common % patch == 0:
        return None
    divisors = [p for p in range(1, common + 1) if common % p == 0]
    close = sorted(divisors, key=lambda p: abs(p - patch))[:2]
    return (
        f"model.patch_size={patch} does not divide data.image_size={size}; "
        f"try {' or '.join(map(str, sorted(close)))}"
    )


@_check("data.aspect", "data.name")
def _native_comes_from_files(aspect: str, name: str, _: int | None) -> str | None:
    if aspect == "crop" or name in ("folder", "imagenet"):
        return None
    return f"data.aspect={aspect}: images of data={name} are all of one shape; try data.aspect=crop"


@_check("data.aspect", "augment.crop")
def _native_is_not_cropped(aspect: str, crop: str, _: int | None) -> str | None:
    if aspect == "crop" or crop in ("auto", "none"):
        return None
    return f"augment.crop={crop} cuts what data.aspect={aspect} keeps whole; try augment.crop=none"


@_check("data.aspect", "schedule.small_images")
def _native_stays_large(aspect: str, small: int | list[int] | None, _: int | None) -> str | None:
    if aspect == "crop" or small is None:
        return None
    return (
        f"schedule.small_images={small} does not go with data.aspect={aspect}; "
        f"try schedule.small_images=null"
    )


@_check("data.aspect", "distill.teacher")
def _teachers_see_no_padding(aspect: str, teacher: str | None, _: int | None) -> str | None:
    if aspect == "crop" or teacher is None:
        return None
    return (
        f"distill.teacher={teacher} knows no padding, which data.aspect={aspect} has; "
        f"try distill.teacher=null or data.aspect=crop"
    )


@_check("schedule.small_images", "data.image_size", "model.patch_size")
def _small_images_are_smaller(
    small: int | list[int] | None, size: int | list[int], patch: int | str, _: int | None
) -> str | None:
    if small is None:
        return None
    whole = height_width(size)
    step = auto_patch_size(*whole) if isinstance(patch, str) else patch
    if any(s > side or s % step for s, side in zip(height_width(small), whole, strict=True)):
        near = max(step, round(max(whole) * 0.75 / step) * step)
        return (
            f"schedule.small_images={small} is no multiple of the patch of {step} px up to "
            f"data.image_size={size}; try schedule.small_images={near}"
        )
    return None


@_check("trainer.epochs", "trainer.steps")
def _one_length(epochs: float | None, steps: int | None, _: int | None) -> str | None:
    if (epochs is None) != (steps is None):
        return None
    if epochs is None:
        return "trainer.epochs=null and trainer.steps=null: give one, e.g. trainer.epochs=10"
    return (
        f"trainer.epochs={epochs:g} and trainer.steps={steps} contradict each other; "
        f"give only one of them"
    )


@_check("trainer.batch_size", "trainer.accumulate")
def _batch_splits(batch: int, accumulate: int, world_size: int | None) -> str | None:
    parts = accumulate * (world_size or 1)
    if batch % parts == 0:
        return None
    return (
        f"trainer.batch_size={batch} is not divisible by trainer.accumulate={accumulate} x "
        f"{world_size or 1} processes; try {nearest_multiples(batch, parts)}"
    )


@_check("trainer.batch_size", "augment.mixup", "augment.cutmix")
def _mixing_pairs(batch: int, mixup: float, cutmix: float, world_size: int | None) -> str | None:
    processes = world_size or 1
    pairs = 2 * processes
    if not (mixup or cutmix) or batch % processes or batch % pairs == 0:
        return None
    return (
        f"trainer.batch_size={batch} leaves an image without a partner for augment.mixup or "
        f"augment.cutmix; try {nearest_multiples(batch, pairs)}"
    )


@_check("trainer.shard", "trainer.compile")
def _sharding_needs_processes(shard: str, compiles: bool, world_size: int | None) -> str | None:
    if shard == "none":
        return None
    if world_size == 1:
        return (
            "trainer.shard=fsdp needs several processes; start them with "
            "`torchrun --nproc-per-node 2 -m vit.cli.train ...`"
        )
    if compiles:
        return "trainer.shard=fsdp does not go with trainer.compile=true; choose one"
    return None


@_check("trainer.shard", "optim.name")
def _sharding_needs_adamw(shard: str, optim: str, _: int | None) -> str | None:
    if shard == "none" or optim == "adamw":
        return None
    return f"trainer.shard={shard} was not tried with optim={optim}; choose optim=adamw"


@_check("optim.name", "optim.lr")
def _muon_scales_its_rate(optim: str, lr: float | str, _: int | None) -> str | None:
    if optim != "muon" or lr != 0:
        return None
    return "optim.lr=0 with optim=muon leaves optim.other_lr without a scale; try optim.lr=0.02"


@_check("model.distillation_token", "distill.teacher")
def _token_needs_teacher(token: bool, teacher: str | None, _: int | None) -> str | None:
    if not token or teacher:
        return None
    return (
        "model.distillation_token=true has nobody to listen to; "
        "try distill.teacher=<run folder> or model.distillation_token=false"
    )


@_check("distill.teacher", "distill.weights")
def _timm_teacher_needs_weights(
    teacher: str | None, weights: str | None, _: int | None
) -> str | None:
    of_timm = teacher is not None and teacher.startswith("timm/")
    if of_timm == (weights is not None):
        return None
    if of_timm:
        return f"distill.teacher={teacher} needs distill.weights=<.safetensors or .pth file>"
    return (
        f"distill.weights={weights} is of a timm teacher only; "
        f"try distill.teacher=timm/<model> with it, or distill.weights=null"
    )


@_check("trainer.freeze", "model.weights", "model.depth")
def _frozen_weights_were_trained(
    freeze: str, weights: str | None, depth: int, _: int | None
) -> str | None:
    if freeze == "none":
        return None
    if weights is None:
        return (
            f"trainer.freeze={freeze} would keep random weights; "
            f"give model.weights=<run folder or file>, or trainer.freeze=none"
        )
    blocks = freeze.removeprefix("blocks:")
    if blocks != freeze and int(blocks) > depth:
        return f"trainer.freeze={freeze}: the model has {depth} blocks; try blocks:{depth // 2}"
    return None


@_check("trainer.freeze", "trainer.shard")
def _sharding_trains_all(freeze: str, shard: str, _: int | None) -> str | None:
    if freeze == "none" or shard == "none":
        return None
    return f"trainer.shard={shard} was not tried with trainer.freeze={freeze}; choose one"


@_check(
    "trainer.cache_features", "trainer.freeze", "augment.crop", "augment.policy",
    "augment.color_jitter", "augment.erasing", "augment.mixup", "augment.cutmix",
    "augment.flip", "augment.repeats", "schedule.small_images", "distill.teacher",
)  # fmt: skip
def _cached_features_do_not_change(
    caches: bool, freeze: str, crop: str, policy: str, *changes: Any
) -> str | None:
    if not caches:
        return None
    if freeze != "all-but-head":
        return (
            f"trainer.cache_features=true needs a model that is frozen up to its head, but "
            f"trainer.freeze={freeze}; try trainer.freeze=all-but-head"
        )
    jitter, erasing, mixup, cutmix, flip, repeats, small, teacher, _ = changes
    changed = jitter or erasing or mixup or cutmix or flip or repeats > 1 or small or teacher
    if crop != "none" or policy != "none" or changed:
        return (
            "trainer.cache_features=true sees every image once, as it is; try augment=none, with "
            "schedule.small_images=null and distill.teacher=null"
        )
    return None


@_check("trainer.early_stop", "data.val_fraction")
def _early_stop_needs_validation(
    early_stop: int | None, fraction: float, _: int | None
) -> str | None:
    if early_stop is None or fraction > 0:
        return None
    return (
        f"trainer.early_stop={early_stop} needs validation images, but data.val_fraction=0; "
        f"try data.val_fraction=0.1 or trainer.early_stop=null"
    )


@_check("data.val_fraction", "data.test_fraction")
def _something_to_train_on(val: float, test: float, _: int | None) -> str | None:
    if val + test < 1:
        return None
    return (
        f"data.val_fraction={val:g} and data.test_fraction={test:g} leave nothing to train on; "
        f"try 0.1 each"
    )


@_check("data.mean", "data.std")
def _one_value_per_channel(mean: list[float], std: list[float], _: int | None) -> str | None:
    if len(mean) == len(std) and len(mean) in (1, 3):
        return None
    return (
        f"data.mean={mean} and data.std={std} need one value per channel each: "
        f"1 (gray) or 3 (red, green, blue)"
    )


@_check("data.name", "data.memory")
def _streams_come_from_files(name: str, memory: str, _: int | None) -> str | None:
    if memory != "stream" or name in OF_FILES:
        return None
    return f"data.memory=stream: data={name} is held whole; try data.memory=auto"


@_check("augment.crop_scale")
def _scale_is_a_range(scale: list[float], _: int | None) -> str | None:
    if scale[0] <= scale[1]:
        return None
    return f"augment.crop_scale={scale} is upside down; try augment.crop_scale={scale[::-1]}"


@_check("data.name", "data.root")
def _folder_needs_root(name: str, root: str | None, _: int | None) -> str | None:
    if name not in OF_FILES or root:
        return None
    return f"data={name} needs data.root=<folder with one sub-folder per class>"


@_check("schedule.warmup", "trainer.steps")
def _warmup_fits(warmup: int | str, steps: int | None, _: int | None) -> str | None:
    length, unit = parse_duration(warmup)
    if steps is None or unit or length <= steps:
        return None
    return f"schedule.warmup={warmup} is longer than trainer.steps={steps}; try schedule.warmup=5%"


@_check("resume", "name")
def _auto_needs_name(resume: str | None, name: str | None, _: int | None) -> str | None:
    if resume != "auto" or name:
        return None
    return "resume=auto needs name=<run name>, else every start would be a new run"
