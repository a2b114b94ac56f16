"""One training step (forward, backward, update) of ours and of the peers, side by side.

    python scripts/bench_step.py --shapes d192

The same images, shape of model, batch, precision and optimiser for all, each in a process of its
own with its own defaults. The peers come with `pip install 'vit-train[bench]'`; one that is not
installed is left out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from contest import Measured, contest, serve
from torch import nn

from vit.config.schema import OptimConfig, TrainerConfig
from vit.config.yaml_files import config_dir, load_yaml
from vit.data.types import Batch
from vit.model.vit import VisionTransformer
from vit.optim.build import build_optimizer
from vit.runtime.device import autocast, best_precision, select_device, synchronize
from vit.runtime.dist import World
from vit.runtime.memory import retain_freed_memory
from vit.training.loss import Loss
from vit.training.state import TrainState, flops_per_image
from vit.training.step import train_step

Step = Callable[[], None]


@dataclass(frozen=True)
class Shape:
    """A model's shape and the batches it is timed with, on a CPU and on a GPU."""

    name: str
    image_size: int
    patch_size: int
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    batch: int
    gpu_batch: int
    classes: int = 1000

    def tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    def flops(self) -> int:
        """Of one image's forward pass through the whole model, 2 per multiply-add."""
        tokens = self.tokens()
        block = tokens * (4 * self.dim**2 + 2 * self.dim * self.mlp_dim) + 2 * tokens**2 * self.dim
        patches = (tokens - 1) * 3 * self.patch_size**2 * self.dim
        return 2 * (patches + self.depth * block + self.dim * self.classes)


SHAPES = [
    Shape("d192 L9 p4 32 px", 32, 4, 192, 9, 3, 384, 128, 2048, 10),
    Shape("S/16 224 px", 224, 16, 384, 12, 6, 1536, 16, 256),
    Shape("B/16 224 px", 224, 16, 768, 12, 12, 3072, 8, 256),
    Shape("d256 L8 p4 32 px", 32, 4, 256, 8, 4, 1024, 64, 2048, 10),
]
CPU_SHAPES = [shape.name for shape in SHAPES[:3]]


def main() -> int:
    """Measure and print, or play for one system; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="*", help="beginnings of names; all")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="per system and repetition")
    parser.add_argument("--play", nargs=4, metavar=("SYSTEM", "SHAPE", "PRECISION", "MODE"))
    args = parser.parse_args()
    if args.play:
        play(*args.play)
    else:
        for measured in measure(args.repetitions, args.seconds, args.shapes):
            print(measured, flush=True)
    return 0


def measure(repetitions: int, seconds: float, names: list[str] | None = None) -> list[Measured]:
    """All shapes, precisions and modes: images per second, and the share of the matrix rate."""
    device = select_device("auto")
    names = names or (["" for _ in SHAPES] if device.type == "cuda" else CPU_SHAPES)
    shapes = [shape for shape in SHAPES if any(map(shape.name.startswith, names))]
    precisions = [*dict.fromkeys([best_precision(device), "fp32"])]
    found: list[Measured] = []
    for shape in shapes:
        for precision in precisions:
            for mode in ("eager", "compiled"):
                found += measure_one(shape, precision, mode, device, repetitions, seconds)
    return found


def measure_one(
    shape: Shape, precision: str, mode: str, device: torch.device, repetitions: int, seconds: float
) -> list[Measured]:
    """All systems on one shape."""
    rates: list[float] = []
    found = contest(
        f"{shape.name}, {precision} {mode}",
        "images",
        {
            name: command(name, shape, precision, mode)
            for name in SYSTEMS
            if mode == "eager" or name in ("ours", "timm")
        },
        seconds,
        repetitions,
        between=lambda: rates.append(product_rate(shape, precision, device)),
    )
    rate = median(rates)
    for result in found:
        result.notes["share of the matrix rate"] = result.median * 3 * shape.flops() / rate
        if result.system == "ours":
            computed = 3 * flops_per_image(our_model(shape))
            result.notes["share of it by what is computed"] = result.median * computed / rate
            result.notes["TFLOP/s of the products alone"] = rate / 1e12
    return found


def command(system: str, shape: Shape, precision: str, mode: str) -> list[str]:
    """What python runs to play for `system`."""
    return [__file__, "--play", system, json.dumps(asdict(shape)), precision, mode]


def play(system: str, text: str, precision: str, mode: str) -> None:
    """One system on one shape, as `contest` asks."""
    device = select_device("auto")
    shape = Shape(**json.loads(text))
    batch = shape.batch if device.type == "cpu" else shape.gpu_batch
    torch.manual_seed(0)
    images = torch.randn(batch, 3, shape.image_size, shape.image_size, device=device)
    labels = torch.randint(shape.classes, (batch,), device=device)
    make = partial(SYSTEMS[system], shape, precision, mode == "compiled", device, images, labels)
    serve(make, batch, partial(synchronize, device))


def product_rate(shape: Shape, precision: str, device: torch.device) -> float:
    """Operations per second of the model's own matrix products, alone."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    batch = shape.batch if device.type == "cpu" else shape.gpu_batch
    rows = batch * shape.tokens()
    sides = [
        (shape.dim, 3 * shape.dim), (shape.dim, shape.dim), (shape.dim, shape.mlp_dim),
        (shape.mlp_dim, shape.dim),
    ]  # fmt: skip
    pairs = [
        (
            torch.randn(rows, a, device=device, dtype=dtype),
            torch.randn(a, b, device=device, dtype=dtype),
        )
        for a, b in sides
    ]

    def products() -> float:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(3):
            for left, right in pairs:
                left @ right
        synchronize(device)
        return time.perf_counter() - start

    products()
    return 3 * 2 * rows * sum(a * b for a, b in sides) / min(products() for _ in range(5))


def our_model(shape: Shape) -> VisionTransformer:
    """Our model at a shape."""
    return VisionTransformer(
        shape.image_size, shape.patch_size, shape.classes, shape.dim, shape.depth, shape.heads,
        shape.mlp_dim,
    )  # fmt: skip


def ours(
    shape: Shape, precision: str, compiled: bool, device: torch.device, images: torch.Tensor,
    labels: torch.Tensor, checkpointed: bool = False,
) -> Step:  # fmt: skip
    """Our own train step, with its counters, clipping and guard against bad gradients."""
    retain_freed_memory()
    trainer = load_yaml((config_dir() / "trainer/default.yaml").read_text(), "trainer")
    config = TrainerConfig(**{**trainer, "batch_size": shape.batch, "precision": precision})
    optim = load_yaml((config_dir() / "optim/_base.yaml").read_text(), "optim")
    model = our_model(shape).to(device)
    model.checkpoint_activations = checkpointed
    optimizer = build_optimizer(model, OptimConfig(**{**optim, "name": "adamw"}))
    state = TrainState(model, None, optimizer, device)
    if compiled:
        model.compile()
    targets = F.one_hot(labels, shape.classes).float()
    batch = Batch(images, labels, targets)

    def step() -> None:
        train_step(
            state, batch, 1e-4, seed=0, world=World(), config=config, loss=Loss(config),
            clip_norm=1.0, device=device,
        )  # fmt: skip

    return step


def plain_loop(
    model: nn.Module, precision: str, compiled: bool, device: torch.device, images: torch.Tensor,
    labels: torch.Tensor, *, logits_of: Callable[[Any], torch.Tensor] = lambda out: out,
) -> Step:  # fmt: skip
    """torch's own loop: autocast, cross-entropy, clipping, fused AdamW."""
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    call: Callable[..., Any] = torch.compile(model) if compiled else model

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, precision):
            logits = logits_of(call(images))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=0.1)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def timm_step(shape: Shape, *rest: Any) -> Step:
    """timm's VisionTransformer."""
    from timm.models import VisionTransformer as Timm

    model = Timm(
        img_size=shape.image_size, patch_size=shape.patch_size, num_classes=shape.classes,
        embed_dim=shape.dim, depth=shape.depth, num_heads=shape.heads,
        mlp_ratio=shape.mlp_dim / shape.dim,
    )  # fmt: skip
    return plain_loop(model, *rest)


def transformers_step(shape: Shape, *rest: Any) -> Step:
    """Hugging Face's ViTForImageClassification."""
    peer: Any = importlib.import_module("transformers")
    config = peer.ViTConfig(
        image_size=shape.image_size, patch_size=shape.patch_size, num_labels=shape.classes,
        hidden_size=shape.dim, num_hidden_layers=shape.depth, num_attention_heads=shape.heads,
        intermediate_size=shape.mlp_dim, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return plain_loop(
        peer.ViTForImageClassification(config), *rest, logits_of=lambda out: out.logits
    )


def vit_pytorch_step(shape: Shape, *rest: Any) -> Step:
    """lucidrains' vit-pytorch."""
    peer: Any = importlib.import_module("vit_pytorch")
    model = peer.ViT(
        image_size=shape.image_size, patch_size=shape.patch_size, num_classes=shape.classes,
        dim=shape.dim, depth=shape.depth, heads=shape.heads, mlp_dim=shape.mlp_dim,
        dim_head=shape.dim // shape.heads,
    )  # fmt: skip
    return plain_loop(model, *rest)


def torchvision_step(shape: Shape, *rest: Any) -> Step:
    """torchvision's VisionTransformer (vit_b_16 at its shape)."""
    from torchvision.models.vision_transformer import VisionTransformer as TorchVision

    model = TorchVision(
        shape.image_size, shape.patch_size, shape.depth, shape.heads, shape.dim, shape.mlp_dim,
        num_classes=shape.classes,
    )  # fmt: skip
    return plain_loop(model, *rest)


SYSTEMS: dict[str, Callable[..., Step]] = {
    "ours": ours,
    "timm": timm_step,
    "transformers": transformers_step,
    "vit-pytorch": vit_pytorch_step,
    "torchvision": torchvision_step,
}


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
