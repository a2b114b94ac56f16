"""The Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929).

Legend: B batch, C channels, N patches, T tokens (prefix + patches), D width, K classes.
State-dict names are timm's, so weights travel both ways (see `weights.py`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vit.config.model import ViTConfig
from vit.model.attention import SelfAttention
from vit.model.layers import MLPS, DropPath, LayerScale, PatchDropout, PatchEmbed, norm_of
from vit.model.pooling import POOLINGS
from vit.model.positions import POSITIONS, grid_coordinates, rotary

SIZES = ("image_size", "patch_size", "num_classes", "dim", "depth", "heads", "mlp_dim")
"""Options that `VisionTransformer` takes by position, too: the order is promised."""
TOKENS = ("pos_embed", "cls_token", "dist_token", "reg_token")
"""Parameters that are added or prepended to tokens, not multiplied with them."""


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) (Dosovitskiy et al. 2021, eq. 2 and 3).

    Args:
        config: of the model.
        drop_path: probability of dropping each of the two branches.
        place: how many blocks come before it.
    """

    def __init__(self, config: ViTConfig, drop_path: float = 0.0, place: int = 0) -> None:
        super().__init__()

        def scale() -> nn.Module:
            initial = config.layer_scale
            return nn.Identity() if initial is None else LayerScale(config.dim, initial)

        self.norm1 = norm_of(config)
        self.attn = SelfAttention(config, place)
        self.ls1 = scale()
        self.norm2 = norm_of(config)
        self.mlp = config.part("mlp", MLPS)(config.dim, config.mlp_dim, config.dropout)
        self.ls2 = scale()
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Tensor, rope: Tensor | None = None, mask: Tensor | None = None,
        queries: int | None = None,
    ) -> Tensor:  # fmt: skip
        """(B, T, D) -> (B, T, D) or (B, queries, D); arguments as in `SelfAttention`."""
        mixed = self.attn(self.norm1(x), rope, mask, queries)
        x = (x if queries is None else x[:, :queries]) + self.drop_path(self.ls1(mixed))
        out: Tensor = x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
        return out


class VisionTransformer(nn.Module):
    """A pre-norm Vision Transformer classifier.

    Args:
        config: its architecture, or the first of SIZES; None: the defaults of `ViTConfig`.
        sizes: the other SIZES.
        options: of `ViTConfig`, in place of what `config` or the defaults say.

    Attributes:
        config: its architecture.
        prefix: number of tokens (class, distillation, registers) before the patches.
        queries: the logits depend on so many tokens, the first; None: on all.
        checkpoint_activations: compute each block again in the backward pass (Chen et al. 2016):
            the same gradient, less memory, a third more time. False at first.

    Raises:
        ValueError: sizes that do not fit (see `ViTConfig`), or a width that is not a multiple of
            what the positions need.

    Example:
        >>> model = VisionTransformer(
        ...     image_size=32, patch_size=4, num_classes=10, dim=192, depth=6, heads=3
        ... )
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    coordinates: Tensor
    pos_embed: Tensor | None

    def __init__(
        self, config: ViTConfig | int | tuple[int, int] | None = None, *sizes: int, **options: Any
    ) -> None:
        super().__init__()
        if isinstance(config, ViTConfig):
            c = replace(config, **options)
        else:
            given = () if config is None else (config, *sizes)
            named: dict[str, Any] = dict(zip(SIZES, given, strict=False))
            c = ViTConfig(**named, **options)
        self.config = c
        self.patch_embed = PatchEmbed(c.patch_size, c.channels, c.dim, bias=not c.pre_norm)
        self.patch_dropout = PatchDropout(c.patch_dropout)
        self.positions = c.part("positions", POSITIONS)(c.grid, c.dim, c.heads)
        self.register_buffer("coordinates", grid_coordinates(*c.grid), persistent=False)
        table = self.positions.table()
        if table is None or isinstance(table, nn.Parameter):
            self.register_parameter("pos_embed", table)
        else:
            self.register_buffer("pos_embed", table)
        self.dropout = nn.Dropout(c.dropout)

        pool = c.part("pool", POOLINGS)(c)
        counts = int(pool.needs_class_token), int(c.distillation_token), c.registers
        self.cls_token, self.dist_token, self.reg_token = (
            nn.Parameter(torch.randn(1, count, c.dim)) if count else None for count in counts
        )
        self.prefix = sum(counts)
        rates = [c.drop_path * i / max(c.depth - 1, 1) for i in range(c.depth)]
        self.norm_pre = norm_of(c) if c.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(c, rate, i) for i, rate in enumerate(rates))
        self.norm, self.fc_norm = norm_of(c), nn.Identity()
        if c.pooled_norm:
            self.norm, self.fc_norm = self.fc_norm, self.norm
        self.pool = pool
        self.head = nn.Linear(c.dim, c.num_classes)
        self.head_dist = nn.Linear(c.dim, c.num_classes) if c.distillation_token else None
        self.queries = None if pool.reads is None else pool.reads + int(c.distillation_token)
        self.checkpoint_activations = False
        self._init_weights()

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits of images: (B, C, height, width) -> (B, K).

        With a distillation token, in training: (B, 2, K), the class head's and the teacher's.

        Args:
            images: normalised pixels, of the model's size, or smaller: the top left part of one.
            mask: boolean (B, N), True for patches that exist; None: all do.

        Raises:
            ValueError: the images are larger than the model's, or not whole patches.
        """
        return self.forward_head(*self.encode(images, mask, self.queries))

    def forward_features(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalised tokens (B, T, D), as timm's; with `pooled_norm` they are not normalised yet.

        Arguments as in `forward`.
        """
        return self.encode(images, mask)[0]

    def forward_head(
        self, x: Tensor, mask: Tensor | None = None, *, pre_logits: bool = False
    ) -> Tensor:
        """What `forward` makes of tokens, as timm's.

        Args:
            x: normalised tokens (B, T, D), or the first of them that count.
            mask: of the tokens, as in `Pooling`; None: all exist.
            pre_logits: give what the head sees instead, (B, D).
        """
        pooled: Tensor = self.fc_norm(self.pool(x, self.prefix, mask))
        if pre_logits:
            return pooled
        logits: Tensor = self.head(pooled)
        if self.head_dist is None:
            return logits
        listening = self.head_dist(self.fc_norm(x[:, self.distillation_place]))
        both = torch.stack([logits, listening], dim=1)
        return both if self.training else both.mean(dim=1)

    def encode(
        self, images: Tensor, mask: Tensor | None = None, queries: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Normalised tokens (B, T, D) and the mask of all of them (B, T).

        Args:
            images, mask: as in `forward`.
            queries: so many tokens, the first, are wanted, so that the last block computes no
                others; None: all.
        """
        x, angles, mask = self.embed(images, mask)
        rope = None if angles is None else rotary(angles, self.prefix)
        for number, block in enumerate(self.blocks, start=1):
            wanted = queries if number == len(self.blocks) else None
            if self.checkpoint_activations and self.training:
                x = checkpoint(block, x, rope, mask, wanted, use_reentrant=False)
            else:
                x = block(x, rope, mask, wanted)
        return self.norm(x), mask

    def embed(
        self, images: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the first block gets; arguments as in `forward`.

        Returns:
            tokens (B, T, D), the angles that `Positions` gives for the patches, and the mask of all
            tokens (B, T).
        """
        coordinates = self._coordinates(images)
        patches, coordinates, mask = self.patch_dropout(self.patch_embed(images), coordinates, mask)
        patches, angles = self.positions(patches, coordinates, self.pos_embed)
        extra = (self.cls_token, self.dist_token, self.reg_token)
        prefix = [token.expand(images.shape[0], -1, -1) for token in extra if token is not None]
        tokens: Tensor = self.norm_pre(self.dropout(torch.cat([*prefix, patches], dim=1)))
        if mask is not None:
            mask = nn.functional.pad(mask, (self.prefix, 0), value=True)
        return tokens, angles, mask

    @property
    def distillation_place(self) -> int:
        """Of the distillation token among the tokens."""
        return int(self.cls_token is not None)

    def decays(self, name: str) -> bool:
        """Whether the parameter `name` takes weight decay: matrices do; vectors and tokens not."""
        return self.get_parameter(name).ndim > 1 and name not in TOKENS

    def is_hidden_matrix(self, name: str) -> bool:
        """Whether the parameter `name` is a matrix of a block."""
        return name.startswith("blocks.") and self.get_parameter(name).ndim == 2

    def matrices_in(self, name: str) -> int:
        """How many matrices, one below the other, the parameter `name` is: q, k and v are one."""
        return 3 if name.endswith(".attn.qkv.weight") else 1

    def is_head(self, name: str) -> bool:
        """Whether the parameter `name` turns features into logits."""
        return name.startswith(("head.", "head_dist."))

    def depth_of(self, name: str) -> int:
        """The depth a parameter belongs to: 0 embeddings, 1..depth blocks, depth + 1 the rest."""
        if name in TOKENS or name.startswith(("patch_embed.", "norm_pre.")):
            return 0
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return len(self.blocks) + 1

    def _coordinates(self, images: Tensor) -> Tensor:
        """(row, column) of the patches of images of this size in the model's grid: (N, 2)."""
        size = self.config.patch_size
        rows, columns = self.config.grid
        height, width = (side // size for side in images.shape[-2:])
        fits = 0 < height <= rows and 0 < width <= columns
        if not fits or images.shape[-2:] != (height * size, width * size):
            raise ValueError(
                f"images of {'x'.join(map(str, images.shape[-2:]))} px: the model takes whole "
                f"patches of {size} px, up to {rows * size}x{columns * size}"
            )
        return self.coordinates[:height, :width].flatten(0, 1)

    def _init_weights(self) -> None:
        """As big_vision does: Xavier uniform for each of q, k, v, projection and MLP, LeCun normal
        for the patch embedding, zero biases, a zero head (first loss: log K). The class token is
        standard normal, like patches and positions: at 0 the first norm would multiply its
        gradient by 1000, and that gradient alone would decide how the others are clipped.
        """
        for block in self.blocks:
            assert isinstance(block, Block)
            layers = [block.attn.proj, *block.mlp.children()]
            weights = [layer.weight for layer in layers if isinstance(layer, nn.Linear)]
            for matrix in (*block.attn.qkv.weight.chunk(3), *weights):
                nn.init.xavier_uniform_(matrix)
            if self.config.zero_branches:
                nn.init.zeros_(block.attn.proj.weight)
                nn.init.zeros_(block.mlp.get_parameter("fc2.weight"))
        for layer in self.pool.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
        patch = self.patch_embed.proj.weight
        nn.init.trunc_normal_(patch, std=patch[0].numel() ** -0.5)
        for name, parameter in self.named_parameters():
            if name.endswith(".bias") or name in ("head.weight", "head_dist.weight"):
                nn.init.zeros_(parameter)
