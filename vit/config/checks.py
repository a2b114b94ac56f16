"""Checks across settings of data and model: each names the keys it looks at and the remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

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


@check("model.dim", "model.positions")
def _sincos_needs_quarters(dim: int, positions: str) -> Complaint:
    parts = {"sincos1d": 2, "sincos2d": 4}.get(positions, 1)
    if dim % parts:
        yield (
            f"model.dim={dim} is not divisible by {parts}, as model.positions={positions} needs; "
            f"try {nearest_multiples(dim, parts)}"
        )


@check("model.dim", "model.heads", "model.positions")
def _rope_needs_quarters(dim: int, heads: int, positions: str) -> Complaint:
    if "rope2d" in positions and dim % heads == 0 and dim // heads % 4:
        yield (
            f"model.dim={dim} / model.heads={heads} is not divisible by 4, as "
            f"model.positions={positions} needs; try model.dim={nearest_multiples(dim, 4 * heads)}"
        )


@check("model.attention", "model.dim", "model.heads", "model.positions")
def _differential_halves_heads(attention: str, dim: int, heads: int, positions: str) -> Complaint:
    if attention == "differential" and "rope2d" in positions:
        yield f"model.attention=differential has no model.positions={positions}; try learned"
    elif attention == "differential" and dim % heads == 0 and dim // heads % 2:
        yield (
            f"model.dim={dim} / model.heads={heads} is odd, and model.attention=differential "
            f"halves it; try model.dim={nearest_multiples(dim, 2 * heads)}"
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


@check("data.aspect", "data.name")
def _native_comes_from_files(aspect: str, name: str) -> Complaint:
    if aspect != "crop" and name not in OF_FILES:
        yield (
            f"data.aspect={aspect}: images of data={name} are all of one shape; "
            f"try data.aspect=crop"
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


for _key in ("images", *(f"{of}_column" for of in ("image", "label", "split", "weight", "group"))):
    check("data.name", f"data.{_key}")(partial(_tables_alone_have, f"data.{_key}"))


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
        yield (
            f"data.fold={fold} is none of data.folds={folds}; try one from 0 to {folds - 1}, or "
            f"all: -m data.fold={','.join(map(str, range(folds)))}"
        )


@check("data.name", "data.root")
def _files_alone_have_a_root(name: str, root: str | None) -> Complaint:
    if name == "table" and not root:
        yield "data=table needs data.root=<a CSV, TSV or JSONL file with a row per image>"
    elif name in OF_FILES and not root:
        yield f"data={name} needs data.root=<folder with one sub-folder per class>"
    elif name == "digits" and root is not None:
        yield f"data.root={root} is not read by data={name}; try data=folder data.root={root}"
