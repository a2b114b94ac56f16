"""The Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929).

Legend: B batch, C channels, N patches, T tokens (prefix + patches), D width, H heads.
State-dict names are timm's, so weights travel both ways (see `weights.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vit.model.block import Block
from vit.model.heads import DistillationHead, OneHead
from vit.model.norms import NORMS, steady
from vit.model.patches import PatchDropout, PatchEmbed
from vit.model.pooling import POOLINGS
from vit.model.positions import POSITIONS, grid_coordinates, rotary

TOKENS = ("pos_embed", "cls_token", "dist_token", "reg_token")
"""Parameters that are added or prepended to tokens, not multiplied with them."""


class VisionTransformer(nn.Module):
    """A pre-norm Vision Transformer classifier.

    Args:
        image_size: height and width in pixels, or one number for both; multiples of `patch_size`.
        patch_size: side of a square patch in pixels.
        num_classes: number of logits.
        dim: width D of the tokens; a multiple of `heads`.
        depth: number of blocks.
        heads: attention heads H per block.
        mlp_dim: hidden width of the MLP; None: `mlp_ratio` times `dim`.
        mlp_ratio: hidden width of the MLP as a multiple of `dim`, where `mlp_dim` is None.
        positions: a key of `positions.POSITIONS`.
        pool: a key of `pooling.POOLINGS`.
        dropout: after positions, attention projection and MLP layers.
        drop_path: stochastic depth rate of the last block; rises linearly from 0.
        channels: image channels C.
        registers: learned tokens beside the class token (Darcet et al. 2024); never pooled.
        distillation_token: one learned token more, with a head of its own for what a teacher says
            (DeiT, Touvron et al. 2021, section 4).
        norm: a key of `norms.NORMS`.
        mlp: a key of `mlp.MLPS`.
        layer_scale: initial factor of LayerScale; None: no LayerScale.
        qkv_bias: queries, keys and values have a bias.
        qk_norm: queries and keys are normalised per head.
        attention: how a query scores a key, a key of `scores.ATTENTIONS`.
        patch_dropout: share of each image's patches that is dropped in training.
        zero_branches: both branches of every block start as zero (Goyal et al. 2017, section 5.1).

    Attributes:
        spec: the arguments that make the architecture, as plain values: `VisionTransformer(**spec)`
            is the same one.
        prefix: number of tokens (class, distillation, registers) before the patches.
        stretches: an image that is smaller than the model's is a whole image, on which the
            positions spread; else it is the top left part of one. False at first.
        checkpoint_activations: compute each block again in the backward pass (Chen et al. 2016):
            the same gradient, less memory, a third more time. False at first.

    Raises:
        ValueError: `dim` is not a multiple of `heads` (of 2 or 4 for fixed positions, of 4 heads
            for rope2d), or `image_size` not of `patch_size`.

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
        mlp_dim: int | None = None,
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
        attention: str = "scaled_dot",
        patch_dropout: float = 0.0,
        zero_branches: bool = False,
        distillation_token: bool = False,
    ) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if dim % heads:
            raise ValueError(f"dim={dim} is not a multiple of heads={heads}")
        if height % patch_size or width % patch_size:
            raise ValueError(f"image_size={image_size} is not a multiple of {patch_size=}")
        hidden = int(dim * mlp_ratio) if mlp_dim is None else mlp_dim
        self.spec: dict[str, Any] = {
            "image_size": [height, width], "patch_size": patch_size, "num_classes": num_classes,
            "dim": dim, "depth": depth, "heads": heads, "mlp_dim": hidden,
            "positions": positions, "pool": pool, "dropout": dropout, "drop_path": drop_path,
            "channels": channels, "registers": registers, "norm": norm, "mlp": mlp,
            "layer_scale": layer_scale, "qkv_bias": qkv_bias, "qk_norm": qk_norm,
            "attention": attention, "patch_dropout": patch_dropout,
            "distillation_token": distillation_token,
        }  # fmt: skip
        grid = (height // patch_size, width // patch_size)

        self.patch_embed = PatchEmbed(patch_size, channels, dim)
        self.patch_dropout = PatchDropout(patch_dropout)
        self.positions = POSITIONS[positions](grid, dim, heads)
        self.register_buffer("coordinates", grid_coordinates(*grid), persistent=False)
        table = self.positions.table()
        if table is None or isinstance(table, nn.Parameter):
            self.register_parameter("pos_embed", table)
        else:
            self.register_buffer("pos_embed", table)
        self.dropout = nn.Dropout(dropout)
        pooling = POOLINGS[pool](dim, heads)
        has_class_token = pooling.needs_class_token
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim)) if has_class_token else None
        self.dist_token = nn.Parameter(torch.randn(1, 1, dim)) if distillation_token else None
        self.reg_token = nn.Parameter(torch.randn(1, registers, dim)) if registers else None
        self.prefix = int(has_class_token) + int(distillation_token) + registers
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(
                dim, heads, hidden, dropout, rate, norm, mlp, layer_scale, qkv_bias, qk_norm,
                attention,
            )
            for rate in rates
        )  # fmt: skip
        self.norm = NORMS[norm](dim)
        self.pool = pooling
        self.stretches = False
        self.checkpoint_activations = False
        self.head = nn.Linear(dim, num_classes)
        place = int(has_class_token)
        self.head_dist = (
            DistillationHead(dim, num_classes, place) if distillation_token else OneHead()
        )
        self.reads = None if pooling.reads is None else max(pooling.reads, self.head_dist.reads)
        self._initialise(zero_branches)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits of images: (B, C, height, width) -> (B, num_classes).

        With a distillation token, in training: (B, 2, num_classes), the class's and the teacher's.

        Args:
            images: normalised pixels, of the model's size or smaller: see `stretches`.
            mask: boolean (B, N), True for patches that exist; None: all do.

        Raises:
            ValueError: the images are larger than the model's, or not whole patches.
        """
        x, mask = self.encode(images, mask)
        logits: Tensor = self.head_dist(self.head(self.pool(x, self.prefix, mask)), x)
        return logits

    def features(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the head sees of images, (B, D); arguments as in `forward`."""
        x, mask = self.encode(images, mask)
        pooled: Tensor = self.pool(x, self.prefix, mask)
        return pooled

    def encode(self, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Normalised tokens (B, T, D), or those that are read, and the mask of all (B, T);
        arguments as in `forward`.
        """
        x, turns, mask = self.embed(images, mask)
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            only = self.reads if i == last else None
            if self.checkpoint_activations and self.training:
                x = checkpoint(block, x, turns, mask, only, use_reentrant=False)
            else:
                x = block(x, turns, mask, only)
        return self.norm(x), mask

    def embed(
        self, images: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the first block gets; arguments as in `forward`.

        Returns:
            tokens (B, T, D), what `attention.rotate` turns queries and keys by, and the mask of
            all tokens (B, T).
        """
        tokens, angles, mask = self.place(images, mask)
        return tokens, None if angles is None else rotary(angles, self.prefix), mask

    def place(
        self, images: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """`embed`, with the angles of the patches that `positions.Positions` gives."""
        coordinates = self._coordinates(images)
        patches, coordinates, mask = self.patch_dropout(self.patch_embed(images), coordinates, mask)
        patches, angles = self.positions(patches, coordinates, self.pos_embed)
        prefix = [
            token.expand(images.shape[0], -1, -1)
            for token in (self.cls_token, self.dist_token, self.reg_token)
            if token is not None
        ]
        tokens: Tensor = self.dropout(torch.cat([*prefix, patches], dim=1))
        if mask is not None:
            mask = nn.functional.pad(mask, (self.prefix, 0), value=True)
        return tokens, angles, mask

    @torch.no_grad()
    def attention_maps(self, images: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """The attention weights of every block, each (B, H, T, T); arguments as in `forward`."""
        x, turns, mask = self.embed(images, mask)
        maps = []
        for block in self.blocks:
            assert isinstance(block, Block)
            maps.append(block.attn.weights(block.norm1(x), turns, mask))
            x = block(x, turns, mask)
        return maps

    def with_weights(
        self, images: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """`forward`, computed from attention weights by which it can be differentiated.

        Arguments as in `forward`. The gradient takes the norms as `norms.steady` does.

        Returns:
            logits as `forward` gives them, to rounding; the attention weights of every block, each
            (B, H, T, T); how much the pooling takes of each token (B, T).
        """
        x, turns, mask = self.embed(images, mask)
        maps = []
        for block in self.blocks:
            assert isinstance(block, Block)
            x, weights = block.with_weights(x, turns, mask)
            maps.append(weights)
        x = steady(self.norm, x)
        logits: Tensor = self.head_dist(self.head(self.pool(x, self.prefix, mask)), x)
        return logits, maps, self.pool.reading(x, self.prefix, mask)

    def decays(self, name: str) -> bool:
        """Whether the parameter `name` takes weight decay: matrices do; vectors and tokens not."""
        return self.get_parameter(name).ndim > 1 and name not in TOKENS

    def is_hidden_matrix(self, name: str) -> bool:
        """Whether the parameter `name` is a matrix of a block."""
        return name.startswith("blocks.") and self.get_parameter(name).ndim == 2

    def is_head(self, name: str) -> bool:
        """Whether the parameter `name` turns features into logits."""
        return name.startswith(("head.", "head_dist."))

    def depth_of(self, name: str) -> int:
        """The depth a parameter belongs to: 0 embeddings, 1..depth blocks, depth + 1 the rest."""
        if name in TOKENS or name.startswith("patch_embed."):
            return 0
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return len(self.blocks) + 1

    def _coordinates(self, images: Tensor) -> Tensor:
        """(row, column) of the patches of images of this size in the model's grid: (N, 2)."""
        size = self.patch_embed.patch_size
        height, width = (side // size for side in images.shape[-2:])
        rows, columns, _ = self.coordinates.shape
        fits = 0 < height <= rows and 0 < width <= columns
        if not fits or images.shape[-2:] != (height * size, width * size):
            raise ValueError(
                f"images of {'x'.join(map(str, images.shape[-2:]))} px: the model takes whole "
                f"patches of {size} px, up to {rows * size}x{columns * size}"
            )
        coordinates = self.coordinates[:height, :width].flatten(0, 1)
        if self.stretches and (height, width) != (rows, columns):
            y, x = (coordinates + 0.5).unbind(-1)
            return torch.stack([y * rows / height, x * columns / width], dim=-1) - 0.5
        return coordinates

    def _initialise(self, zero_branches: bool) -> None:
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
            if zero_branches:
                nn.init.zeros_(block.attn.proj.weight)
                nn.init.zeros_(block.mlp.get_parameter("fc2.weight"))
        for layer in self.pool.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
        patch = self.patch_embed.proj.weight
        nn.init.trunc_normal_(patch, std=patch[0].numel() ** -0.5)
        for head in (self.head, self.head_dist):
            if isinstance(head, nn.Linear):
                nn.init.zeros_(head.weight)
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
