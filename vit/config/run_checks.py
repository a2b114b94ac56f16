"""Checks across settings of training; `checks` has those of data and model."""

from __future__ import annotations

from typing import Any

from vit.config.checks import CHECKS, auto_patch_size, check, nearest_multiples
from vit.config.durations import parse_duration
from vit.config.schema import height_width

__all__ = ["CHECKS"]


@check("data.aspect", "augment.crop")
def _native_is_not_cropped(aspect: str, crop: str) -> str | None:
    if aspect == "crop" or crop in ("auto", "none"):
        return None
    return f"augment.crop={crop} cuts what data.aspect={aspect} keeps whole; try augment.crop=none"


@check("data.aspect", "schedule.small_images")
def _native_stays_large(aspect: str, small: int | list[int] | None) -> str | None:
    if aspect == "crop" or small is None:
        return None
    return (
        f"schedule.small_images={small} does not go with data.aspect={aspect}; "
        f"try schedule.small_images=null"
    )


@check("data.aspect", "distill.teacher")
def _teachers_see_no_padding(aspect: str, teacher: str | None) -> str | None:
    if aspect == "crop" or teacher is None:
        return None
    return (
        f"distill.teacher={teacher} knows no padding, which data.aspect={aspect} has; "
        f"try distill.teacher=null or data.aspect=crop"
    )


@check("schedule.small_images", "data.image_size", "model.patch_size")
def _small_images_are_smaller(
    small: int | list[int] | None, size: int | list[int], patch: int | str
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


@check("trainer.epochs", "trainer.steps")
def _one_length(epochs: float | None, steps: int | None) -> str | None:
    if (epochs is None) != (steps is None):
        return None
    if epochs is None:
        return "trainer.epochs=null and trainer.steps=null: give one, e.g. trainer.epochs=10"
    return (
        f"trainer.epochs={epochs:g} and trainer.steps={steps} contradict each other; "
        f"give only one of them"
    )


@check("trainer.batch_size", "trainer.accumulate", "world_size")
def _batch_splits(batch: int, accumulate: int | str, world_size: int | None) -> str | None:
    accumulate = 1 if accumulate == "auto" else int(accumulate)
    parts = accumulate * (world_size or 1)
    if batch % parts == 0:
        return None
    return (
        f"trainer.batch_size={batch} is not divisible by trainer.accumulate={accumulate} x "
        f"{world_size or 1} processes; try {nearest_multiples(batch, parts)}"
    )


@check("trainer.batch_size", "augment.mixup", "augment.cutmix", "world_size")
def _mixing_pairs(batch: int, mixup: float, cutmix: float, world_size: int | None) -> str | None:
    processes = world_size or 1
    pairs = 2 * processes
    if not (mixup or cutmix) or batch % processes or batch % pairs == 0:
        return None
    return (
        f"trainer.batch_size={batch} leaves an image without a partner for augment.mixup or "
        f"augment.cutmix; try {nearest_multiples(batch, pairs)}"
    )


@check("trainer.shard", "trainer.compile", "world_size")
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


@check("trainer.shard", "trainer.precision")
def _sharding_scales_no_loss(shard: str, precision: str) -> str | None:
    if shard == "none" or precision != "fp16":
        return None
    return f"trainer.shard={shard} was not tried with trainer.precision=fp16; choose fp32 or bf16"


@check("trainer.shard", "trainer.accumulate")
def _sharding_tries_nothing(shard: str, accumulate: int | str) -> str | None:
    if shard == "none" or accumulate != "auto":
        return None
    return f"trainer.shard={shard} was not tried with trainer.accumulate=auto; give a number"


@check("trainer.shard", "optim.name")
def _sharding_needs_adamw(shard: str, optim: str) -> str | None:
    if shard == "none" or optim == "adamw":
        return None
    return f"trainer.shard={shard} was not tried with optim={optim}; choose optim=adamw"


@check("optim.name", "optim.lr")
def _muon_scales_its_rate(optim: str, lr: float | str) -> str | None:
    if optim != "muon" or lr != 0:
        return None
    return "optim.lr=0 with optim=muon leaves optim.other_lr without a scale; try optim.lr=0.02"


@check("model.distillation_token", "distill.teacher")
def _token_needs_teacher(token: bool, teacher: str | None) -> str | None:
    if not token or teacher:
        return None
    return (
        "model.distillation_token=true has nobody to listen to; "
        "try distill.teacher=<run folder> or model.distillation_token=false"
    )


@check("distill.teacher", "distill.weights")
def _timm_teacher_needs_weights(teacher: str | None, weights: str | None) -> str | None:
    of_timm = teacher is not None and teacher.startswith("timm/")
    if of_timm == (weights is not None):
        return None
    if of_timm:
        return f"distill.teacher={teacher} needs distill.weights=<.safetensors or .pth file>"
    return (
        f"distill.weights={weights} is of a timm teacher only; "
        f"try distill.teacher=timm/<model> with it, or distill.weights=null"
    )


@check("trainer.freeze", "model.weights")
def _frozen_weights_were_trained(freeze: str, weights: str | None) -> str | None:
    if freeze == "none" or weights is not None:
        return None
    return (
        f"trainer.freeze={freeze} would keep random weights; "
        f"give model.weights=<run folder or file>, or trainer.freeze=none"
    )


@check("trainer.freeze", "model.depth")
def _frozen_blocks_exist(freeze: str, depth: int) -> str | None:
    blocks = freeze.removeprefix("blocks:")
    if blocks != freeze and int(blocks) > depth:
        return f"trainer.freeze={freeze}: the model has {depth} blocks; try blocks:{depth // 2}"
    return None


@check("trainer.recipe", "model.weights")
def _recipe_needs_weights(recipe: str, weights: str | None) -> str | None:
    if recipe == "none" or weights is not None:
        return None
    return "trainer.recipe=weights without any; give model.weights=<run folder or file>"


@check("trainer.freeze", "trainer.shard")
def _sharding_trains_all(freeze: str, shard: str) -> str | None:
    if freeze == "none" or shard == "none":
        return None
    return f"trainer.shard={shard} was not tried with trainer.freeze={freeze}; choose one"


@check(
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
    jitter, erasing, mixup, cutmix, flip, repeats, small, teacher = changes
    changed = jitter or erasing or mixup or cutmix or flip or repeats > 1 or small or teacher
    if crop != "none" or policy != "none" or changed:
        return (
            "trainer.cache_features=true sees every image once, as it is; try augment=none, with "
            "schedule.small_images=null and distill.teacher=null"
        )
    return None


@check("trainer.early_stop", "data.val_fraction")
def _early_stop_needs_validation(early_stop: int | None, fraction: float) -> str | None:
    if early_stop is None or fraction > 0:
        return None
    return (
        f"trainer.early_stop={early_stop} needs validation images, but data.val_fraction=0; "
        f"try data.val_fraction=0.1 or trainer.early_stop=null"
    )


@check("augment.crop_scale")
def _scale_is_a_range(scale: list[float]) -> str | None:
    if scale[0] <= scale[1]:
        return None
    return f"augment.crop_scale={scale} is upside down; try augment.crop_scale={scale[::-1]}"


@check("schedule.warmup", "trainer.steps")
def _warmup_fits(warmup: int | str, steps: int | None) -> str | None:
    length, unit = parse_duration(warmup)
    if steps is None or unit or length <= steps:
        return None
    return f"schedule.warmup={warmup} is longer than trainer.steps={steps}; try schedule.warmup=5%"


@check("resume", "name")
def _auto_needs_name(resume: str | None, name: str | None) -> str | None:
    if resume != "auto" or name:
        return None
    return "resume=auto needs name=<run name>, else every start would be a new run"
