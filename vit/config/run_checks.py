"""Checks across settings of training; `checks` has those of data and model."""

from __future__ import annotations

from typing import Any

from vit.config.checks import CHECKS, Complaint, auto_patch_size, check, nearest_multiples
from vit.config.durations import parse_duration
from vit.config.schema import height_width

__all__ = ["CHECKS"]


@check("data.aspect", "augment.crop")
def _native_is_not_cropped(aspect: str, crop: str) -> Complaint:
    if aspect != "crop" and crop not in ("auto", "none"):
        yield (
            f"augment.crop={crop} cuts what data.aspect={aspect} keeps whole; try augment.crop=none"
        )


@check("data.aspect", "schedule.small_images")
def _native_stays_large(aspect: str, small: int | list[int] | None) -> Complaint:
    if aspect != "crop" and small is not None:
        yield (
            f"schedule.small_images={small} does not go with data.aspect={aspect}; "
            f"try schedule.small_images=null"
        )


@check("data.aspect", "distill.teacher")
def _teachers_see_no_padding(aspect: str, teacher: str | None) -> Complaint:
    if aspect != "crop" and teacher is not None:
        yield (
            f"distill.teacher={teacher} knows no padding, which data.aspect={aspect} has; "
            f"try distill.teacher=null or data.aspect=crop"
        )


@check("schedule.small_images", "data.image_size", "model.patch_size")
def _small_images_are_smaller(
    small: int | list[int] | None, size: int | list[int], patch: int | str
) -> Complaint:
    whole = height_width(size)
    step = auto_patch_size(*whole) if isinstance(patch, str) else patch
    if small is not None and any(
        s > side or s % step for s, side in zip(height_width(small), whole, strict=True)
    ):
        near = max(step, round(max(whole) * 0.75 / step) * step)
        yield (
            f"schedule.small_images={small} is no multiple of the patch of {step} px up to "
            f"data.image_size={size}; try schedule.small_images={near}"
        )


@check("trainer.epochs", "trainer.steps")
def _one_length(epochs: float | None, steps: int | None) -> Complaint:
    if epochs is None and steps is None:
        yield "trainer.epochs=null and trainer.steps=null: give one, e.g. trainer.epochs=10"
    elif epochs is not None and steps is not None:
        yield (
            f"trainer.epochs={epochs:g} and trainer.steps={steps} contradict each other; "
            f"give only one of them"
        )


@check("trainer.batch_size", "trainer.accumulate", "world_size")
def _batch_splits(batch: int, accumulate: int | str, world_size: int | None) -> Complaint:
    accumulate = 1 if accumulate == "auto" else int(accumulate)
    parts = accumulate * (world_size or 1)
    if batch % parts:
        yield (
            f"trainer.batch_size={batch} is not divisible by trainer.accumulate={accumulate} x "
            f"{world_size or 1} processes; try {nearest_multiples(batch, parts)}"
        )


@check("trainer.batch_size", "augment.mixup", "augment.cutmix", "world_size")
def _mixing_pairs(batch: int, mixup: float, cutmix: float, world_size: int | None) -> Complaint:
    processes = world_size or 1
    pairs = 2 * processes
    if (mixup or cutmix) and batch % processes == 0 and batch % pairs:
        yield (
            f"trainer.batch_size={batch} leaves an image without a partner for augment.mixup or "
            f"augment.cutmix; try {nearest_multiples(batch, pairs)}"
        )


@check("trainer.shard", "trainer.compile", "world_size")
def _sharding_needs_processes(shard: str, compiles: bool, world_size: int | None) -> Complaint:
    if shard != "none" and world_size == 1:
        yield (
            "trainer.shard=fsdp needs several processes; start them with "
            "`torchrun --nproc-per-node 2 -m vit.cli.train ...`"
        )
    elif shard != "none" and compiles:
        yield "trainer.shard=fsdp does not go with trainer.compile=true; choose one"


@check("trainer.shard", "trainer.precision")
def _sharding_scales_no_loss(shard: str, precision: str) -> Complaint:
    if shard != "none" and precision == "fp16":
        yield (
            f"trainer.shard={shard} was not tried with trainer.precision=fp16; choose fp32 or bf16"
        )


@check("trainer.shard", "trainer.accumulate")
def _sharding_tries_nothing(shard: str, accumulate: int | str) -> Complaint:
    if shard != "none" and accumulate == "auto":
        yield f"trainer.shard={shard} was not tried with trainer.accumulate=auto; give a number"


@check("trainer.shard", "optim.name")
def _sharding_needs_adamw(shard: str, optim: str) -> Complaint:
    if shard != "none" and optim != "adamw":
        yield f"trainer.shard={shard} was not tried with optim={optim}; choose optim=adamw"


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


@check("trainer.freeze", "model.weights")
def _frozen_weights_were_trained(freeze: str, weights: str | None) -> Complaint:
    if freeze != "none" and weights is None:
        yield (
            f"trainer.freeze={freeze} would keep random weights; "
            f"give model.weights=<run folder or file>, or trainer.freeze=none"
        )


@check("trainer.freeze", "model.depth")
def _frozen_blocks_exist(freeze: str, depth: int) -> Complaint:
    blocks = freeze.removeprefix("blocks:")
    if blocks != freeze and int(blocks) > depth:
        yield f"trainer.freeze={freeze}: the model has {depth} blocks; try blocks:{depth // 2}"


@check("trainer.recipe", "model.weights")
def _recipe_needs_weights(recipe: str, weights: str | None) -> Complaint:
    if recipe != "none" and weights is None:
        yield "trainer.recipe=weights without any; give model.weights=<run folder or file>"


@check("trainer.freeze", "trainer.shard")
def _sharding_trains_all(freeze: str, shard: str) -> Complaint:
    if freeze != "none" and shard != "none":
        yield f"trainer.shard={shard} was not tried with trainer.freeze={freeze}; choose one"


@check(
    "trainer.cache_features", "trainer.freeze", "augment.crop", "augment.policy",
    "augment.color_jitter", "augment.erasing", "augment.mixup", "augment.cutmix",
    "augment.flip", "augment.repeats", "schedule.small_images", "distill.teacher",
)  # fmt: skip
def _cached_features_do_not_change(
    caches: bool, freeze: str, crop: str, policy: str, *changes: Any
) -> Complaint:
    jitter, erasing, mixup, cutmix, flip, repeats, small, teacher = changes
    changed = jitter or erasing or mixup or cutmix or flip or repeats > 1 or small or teacher
    if caches and freeze != "all-but-head":
        yield (
            f"trainer.cache_features=true needs a model that is frozen up to its head, but "
            f"trainer.freeze={freeze}; try trainer.freeze=all-but-head"
        )
    elif caches and (crop != "none" or policy != "none" or changed):
        yield (
            "trainer.cache_features=true sees every image once, as it is; try augment=none, with "
            "schedule.small_images=null and distill.teacher=null"
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


@check("schedule.warmup", "trainer.steps")
def _warmup_fits(warmup: int | str, steps: int | None) -> Complaint:
    length, unit = parse_duration(warmup)
    if steps is not None and not unit and length > steps:
        yield (
            f"schedule.warmup={warmup} is longer than trainer.steps={steps}; try schedule.warmup=5%"
        )


@check("resume", "name")
def _auto_needs_name(resume: str | None, name: str | None) -> Complaint:
    if resume == "auto" and not name:
        yield "resume=auto needs name=<run name>, else every start would be a new run"
