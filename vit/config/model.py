"""The architecture of a Vision Transformer: the one list of its options. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, TypeVar

from vit.config import plugins
from vit.config.rules import Fraction, Positive, Registered, Whole

SAME: Mapping[str, str] = {"weights": "same"}
"""Marks an option in which weights to start from must agree with the model, and bring it along."""
Options = dict[str, Any]
"""Settings of a plug-in's own, `<group>.options.<name>`; empty where none is picked."""
Part = TypeVar("Part")
FITTED: Mapping[str, str] = {"weights": "fitted"}
"""Marks an option that such weights bring along and are fitted to, where another is set."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The options that users set as they are, `model.<option>`; see `ViTConfig`.

    A new one is a line here, one in `configs/model/_base.yaml`, and the module that reads it. The
    default is what models of before did: checkpoints that do not say it are read as if they did.
    """

    positions: Annotated[str, Registered("model/positions.py", "POSITIONS", "positions")] = field(
        default="learned", metadata=SAME
    )
    pool: Annotated[str, Registered("model/pooling.py", "POOLINGS", "pool")] = field(
        default="cls", metadata=FITTED
    )
    attention: Annotated[str, Registered("model/attention.py", "SCORES", "attention")] = field(
        default="scaled_dot", metadata=SAME
    )
    registers: Whole = field(default=0, metadata=FITTED)  # learned tokens (Darcet et al. 2024)
    norm: Annotated[str, Registered("model/layers.py", "NORMS", "norm")] = field(
        default="layernorm", metadata=SAME
    )
    mlp: Annotated[str, Registered("model/layers.py", "MLPS", "mlp")] = field(
        default="gelu", metadata=SAME
    )
    norm_eps: Positive = field(default=1e-6, metadata=SAME)  # added to what a norm divides by
    pre_norm: bool = field(default=False, metadata=SAME)  # a norm before the blocks, as in CLIP
    pooled_norm: bool = field(default=False, metadata=SAME)  # the last norm comes after the pooling
    layer_scale: Positive | None = field(default=None, metadata=SAME)  # initial; None: none
    qkv_bias: bool = field(default=True, metadata=SAME)
    qk_norm: bool = field(default=False, metadata=SAME)  # queries and keys, per head
    dropout: Fraction = 0.0  # after positions, attention projection and MLP layers
    drop_path: Fraction = 0.0  # stochastic depth of the last block; rises linearly from 0
    patch_dropout: Fraction = 0.0  # share of each image's patches that is dropped in training
    zero_branches: bool = False  # both branches of a block start as zero (Goyal et al. 2017)
    distillation_token: bool = False  # a token with a head of its own (DeiT, Touvron et al. 2021)
    options: Options = field(default_factory=dict, metadata=SAME)  # by kind: {"positions": {...}}


@dataclass(frozen=True, kw_only=True)
class ViTConfig(ModelOptions):
    """An architecture, every value known; `grid` and `head_dim` follow from it.

    Settings resolve to it (`resolve.vit_config`), a checkpoint keeps it as `plain()`. The defaults,
    ViT-S/16 on ImageNet, serve Python alone.

    Raises:
        ValueError: `dim` is not a multiple of `heads`, or `image_size` not of `patch_size`.

    Example:
        >>> config = ViTConfig(image_size=32, patch_size=4, num_classes=10, dim=192, heads=3)
        >>> config.grid
        (8, 8)
    """

    dim: int = field(default=384, metadata=SAME)
    """Width of the tokens; a multiple of `heads`."""
    depth: int = field(default=12, metadata=SAME)
    """Number of blocks."""
    heads: int = field(default=6, metadata=SAME)
    """Attention heads of a block."""
    image_size: tuple[int, int] = field(default=(224, 224), metadata=FITTED)
    """Height and width in pixels; one number, or a list, becomes a tuple."""
    patch_size: int = field(default=16, metadata=FITTED)
    """Side of a square patch in pixels."""
    num_classes: int = 1000
    """Number of logits."""
    channels: int = 3
    """Of the images."""
    mlp_dim: int = field(default=0, metadata=SAME)
    """Hidden width of the MLP; 0 becomes four times `dim`."""

    def __post_init__(self) -> None:
        size: int | tuple[int, int] = self.image_size
        height, width = (size, size) if isinstance(size, int) else size
        object.__setattr__(self, "image_size", (height, width))
        object.__setattr__(self, "mlp_dim", self.mlp_dim or 4 * self.dim)
        if self.dim % self.heads:
            raise ValueError(f"dim={self.dim} is not a multiple of heads={self.heads}")
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.dim // self.heads

    def part(self, kind: str, table: Mapping[str, Part]) -> Part:
        """What an option (`norm`, `mlp`, ...) names: an entry of `table`, or a plug-in."""
        return plugins.part(table, kind, getattr(self, kind), self.options.get(kind))

    def plain(self) -> dict[str, Any]:
        """Plain values, of which `ViTConfig(**values)` makes it again."""
        return {**asdict(self), "image_size": list(self.image_size)}


def option_defaults() -> dict[str, Any]:
    """The options of models of before: every default of `ModelOptions`."""
    return vars(ModelOptions()).copy()


ARCH_KEYS = tuple(f.name for f in fields(ViTConfig) if f.metadata == SAME)
"""In these a model and weights to start from must agree."""
WEIGHT_KEYS = tuple(f.name for f in fields(ViTConfig) if f.metadata)
"""What weights to start from say of their model; what is not in ARCH_KEYS is fitted."""
