"""The Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929).

Legend: B batch, C channels, N patches, T tokens (prefix + patches), D width, H heads.
State-dict names are timm's, so weights travel both ways (see `weights.py`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.model.block import Block
from vit.model.norms import NORMS
from vit.model.pooling import POOLINGS
from vit.model.positions import POSITIONS, grid_coordinates

TOKENS = ("pos_embed", "cls_token", "reg_token")
"""Parameters that are added or prepended to tokens, not multiplied with them."""


class PatchEmbed(nn.Module):
    """Cuts images into patches and projects each linearly, as one matrix product.

    The weight has a convolution's shape (D, C, P, P), as in timm.
    """

    def __init__(self, patch_size: int, channels: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, height, width) -> (B, N, D) in raster order."""
        size = self.patch_size
        batch, channels, height, width = images.shape
        patches = images.view(batch, channels, height // size, size, width // size, size)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # B N C*P*P
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class VisionTransformer(nn.Module):
    """A pre-norm Vision Transformer classifier.

    Args:
        image_size: height and width in pixels, or one number for both; multiples of `patch_size`.
        patch_size: side of a square patch in pixels.
        num_classes: number of logits.
        dim: width D of the tokens; a multiple of `heads`.
        depth: number of blocks.
        heads: attention heads H per block.
        mlp_ratio: hidden width of the MLP, as a multiple of `dim`.
        positions: a key of `positions.POSITIONS`.
        pool: a key of `pooling.POOLINGS`.
        dropout: after positions, attention projection and MLP layers.
        drop_path: stochastic depth rate of the last block; rises linearly from 0.
        channels: image channels C.
        registers: learned tokens beside the class token (Darcet et al. 2024); never pooled.
        norm: a key of `norms.NORMS`.
        mlp: a key of `mlp.MLPS`.
        layer_scale: initial factor of LayerScale; None: no LayerScale.
        qkv_bias: queries, keys and values have a bias.
        qk_norm: queries and keys are normalised per head.

    Raises:
        ValueError: `dim` is not a multiple of `heads` (of 2 or 4 for fixed positions), or
            `image_size` not of `patch_size`.

    Example:
        >>> model = VisionTransformer(32, 4, num_classes=10, dim=192, depth=6, heads=3)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    coordinates: Tensor
    pos_embed: Tensor | None

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        num_classes: int = 1000,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        positions: str = "learned",
        pool: str = "cls",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        channels: int = 3,
        registers: int = 0,
        norm: str = "layernorm",
        mlp: str = "gelu",
        layer_scale: float | None = None,
        qkv_bias: bool = True,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if dim % heads:
            raise ValueError(f"dim={dim} is not a multiple of heads={heads}")
        if height % patch_size or width % patch_size:
            raise ValueError(f"image_size={image_size} is not a multiple of {patch_size=}")
        self.spec: dict[str, Any] = {
            "image_size": [height, width], "patch_size": patch_size, "num_classes": num_classes,
            "dim": dim, "depth": depth, "heads": heads, "mlp_ratio": mlp_ratio,
            "positions": positions, "pool": pool, "dropout": dropout, "drop_path": drop_path,
            "channels": channels, "registers": registers, "norm": norm, "mlp": mlp,
            "layer_scale": layer_scale, "qkv_bias": qkv_bias, "qk_norm": qk_norm,
        }  # fmt: skip
        grid = (height // patch_size, width // patch_size)

        self.patch_embed = PatchEmbed(patch_size, channels, dim)
        self.positions = POSITIONS[positions](grid, dim)
        self.register_buffer("coordinates", grid_coordinates(*grid), persistent=False)
        table = self.positions.table()
        if table is None or isinstance(table, nn.Parameter):
            self.register_parameter("pos_embed", table)
        else:
            self.register_buffer("pos_embed", table)
        self.dropout = nn.Dropout(dropout)
        pooling = POOLINGS[pool]()
        has_class_token = pooling.needs_class_token
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim)) if has_class_token else None
        self.reg_token = nn.Parameter(torch.randn(1, registers, dim)) if registers else None
        self.prefix = int(has_class_token) + registers
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        hidden = int(dim * mlp_ratio)
        self.blocks = nn.ModuleList(
            Block(dim, heads, hidden, dropout, rate, norm, mlp, layer_scale, qkv_bias, qk_norm)
            for rate in rates
        )
        self.norm = NORMS[norm](dim)
        self.pool = pooling
        self.head = nn.Linear(dim, num_classes)
        self._initialise()

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits of images: (B, C, height, width) -> (B, num_classes).

        Args:
            images: normalised pixels.
            mask: (B, T) with True for tokens that exist; None: all do.
        """
        keys = None if mask is None else mask[:, None, None, :]
        x = self.embed(images)
        for block in self.blocks:
            x = block(x, keys)
        logits: Tensor = self.head(self.pool(self.norm(x), self.prefix, mask))
        return logits

    def embed(self, images: Tensor) -> Tensor:
        """Tokens before the first block: (B, C, height, width) -> (B, T, D)."""
        patches, _ = self.positions(self.patch_embed(images), self.coordinates, self.pos_embed)
        prefix = [
            token.expand(len(images), -1, -1)
            for token in (self.cls_token, self.reg_token)
            if token is not None
        ]
        tokens: Tensor = self.dropout(torch.cat([*prefix, patches], dim=1))
        return tokens

    @torch.no_grad()
    def attention_maps(self, images: Tensor) -> list[Tensor]:
        """The attention weights of every block, each (B, H, T, T)."""
        x = self.embed(images)
        maps = []
        for block in self.blocks:
            assert isinstance(block, Block)
            maps.append(block.attn.weights(block.norm1(x)))
            x = block(x)
        return maps

    def decays(self, name: str) -> bool:
        """Whether the parameter `name` takes weight decay: matrices do; vectors and tokens not."""
        return self.get_parameter(name).ndim > 1 and name not in TOKENS

    def depth_of(self, name: str) -> int:
        """The depth a parameter belongs to: 0 embeddings, 1..depth blocks, depth + 1 the rest."""
        if name in TOKENS or name.startswith("patch_embed."):
            return 0
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return len(self.blocks) + 1

    def _initialise(self) -> None:
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
        patch = self.patch_embed.proj.weight
        nn.init.trunc_normal_(patch, std=patch[0].numel() ** -0.5)
        nn.init.zeros_(self.head.weight)
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
