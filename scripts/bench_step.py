"""One training step (forward, backward, update) of ours and of the peers, side by side.

    python scripts/bench_step.py --quick

The same images, shape of model, batch, precision and optimiser for all; the peers are interleaved,
so that a busy moment hits all alike. Prints a table and writes JSON with `--json FILE`. The peers
come with `pip install 'vit-train[bench]'`; one that is not installed is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vit.artifacts.console import versions
from vit.config.compose import config_dir, load_yaml
from vit.config.schema import OptimConfig, TrainerConfig
from vit.data.types import Batch
from vit.engine.state import TrainState, flops_per_image
from vit.engine.step import train_step
from vit.model.vit import VisionTransformer
from vit.optim.build import build_optimizer
from vit.runtime.device import autocast, describe, has_fast_bf16, select_device, synchronize
from vit.runtime.dist import World

Step = Callable[[], None]


@dataclass(frozen=True)
class Shape:
    """A model's shape and the batch it is timed with."""

    name: str
    image_size: int
    patch_size: int
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    batch: int
    classes: int = 1000

    def tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


SHAPES = [
    Shape("d192 L9 p4 32px", 32, 4, 192, 9, 3, 384, 128, 10),
    Shape("S/16 224px", 224, 16, 384, 12, 6, 1536, 16),
    Shape("B/16 224px", 224, 16, 768, 12, 12, 3072, 8),
]


@dataclass
class Result:
    """What was measured of one system at one shape."""

    shape: str
    precision: str
    compiled: bool
    system: str
    images_per_second: list[float] = field(default_factory=list)
    share_of_matrix_rate: float = 0.0

    @property
    def median(self) -> float:
        """Of the repetitions."""
        return statistics.median(self.images_per_second)


def main() -> int:
    """Run everything that was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the smallest shape, few repetitions")
    parser.add_argument("--compile", action="store_true", help="compiled models too")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="per system and repetition")
    parser.add_argument("--scale", type=int, default=1, help="factor of the batch (GPUs: 16)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = select_device("auto")
    shapes = SHAPES[:1] if args.quick else SHAPES
    precisions = ["fp32", "bf16"] if has_fast_bf16(device) else ["fp32"]
    results: list[Result] = []
    for shape in shapes:
        shape = Shape(**{**asdict(shape), "batch": shape.batch * args.scale})
        for precision in precisions[-1:] if args.quick else precisions:
            for compiled in (False, True) if args.compile else (False,):
                found = measure(
                    shape, precision, compiled, device,
                    2 if args.quick else args.repetitions, 1.0 if args.quick else args.seconds,
                )  # fmt: skip
                print(table(found), flush=True)
                results += found
    if args.json:
        content = {
            "device": describe(device), "threads": torch.get_num_threads(), **versions(),
            "results": [asdict(result) for result in results],
        }  # fmt: skip
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


def measure(
    shape: Shape, precision: str, compiled: bool, device: torch.device, repetitions: int,
    seconds: float,
) -> list[Result]:  # fmt: skip
    """All systems at one shape, interleaved."""
    torch.manual_seed(0)
    images = torch.randn(shape.batch, 3, shape.image_size, shape.image_size, device=device)
    labels = torch.randint(shape.classes, (shape.batch,), device=device)
    steps: dict[str, Step] = {}
    for name, make in SYSTEMS.items():
        try:
            steps[name] = make(shape, precision, compiled, device, images, labels)
        except ImportError:
            print(f"{name} is not installed; left out", file=sys.stderr)
    found = {name: Result(shape.name, precision, compiled, name) for name in steps}
    counts = {}
    for name, step in steps.items():
        step()  # compiles, allocates
        counts[name] = max(1, round(seconds / timed(step, 1, device)))
    for _ in range(repetitions):
        for name, step in steps.items():
            elapsed = timed(step, counts[name], device)
            found[name].images_per_second.append(counts[name] * shape.batch / elapsed)
    rate = product_rate(shape, precision, device)
    flops = 3 * flops_per_image(our_model(shape))
    for result in found.values():
        result.share_of_matrix_rate = result.median * flops / rate
    return list(found.values())


def timed(step: Step, count: int, device: torch.device) -> float:
    """Seconds for `count` steps."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    synchronize(device)
    return time.perf_counter() - start


def product_rate(shape: Shape, precision: str, device: torch.device) -> float:
    """Operations per second of the model's own matrix products, alone."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rows = shape.batch * shape.tokens()
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

    def products() -> None:
        for left, right in pairs:
            left @ right

    products()
    best = min(timed(products, 3, device) for _ in range(5))
    return 3 * 2 * rows * sum(a * b for a, b in sides) / best


def our_model(shape: Shape) -> VisionTransformer:
    """Our model at a shape."""
    return VisionTransformer(
        shape.image_size, shape.patch_size, shape.classes, shape.dim, shape.depth, shape.heads,
        shape.mlp_dim,
    )  # fmt: skip


def ours(
    shape: Shape, precision: str, compiled: bool, device: torch.device, images: torch.Tensor,
    labels: torch.Tensor,
) -> Step:  # fmt: skip
    """Our own train step, with its counters, clipping and guard against bad gradients."""
    trainer = load_yaml((config_dir() / "trainer/default.yaml").read_text(), "trainer")
    config = TrainerConfig(**{**trainer, "batch_size": shape.batch, "precision": precision})
    optim = OptimConfig(**load_yaml((config_dir() / "optim/adamw.yaml").read_text(), "optim"))
    model = our_model(shape).to(device)
    state = TrainState(model, None, build_optimizer(model, optim), device)
    if compiled:
        model.compile()
    targets = F.one_hot(labels, shape.classes).float()
    batch = Batch(images, labels, targets)

    def step() -> None:
        train_step(
            state, batch, 1e-4, seed=0, world=World(), config=config, clip_norm=1.0, device=device
        )

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


def table(results: list[Result]) -> str:
    """One line per system: median, spread, share of the matrix rate, against the best peer."""
    best = max((r.median for r in results if r.system != "ours"), default=float("nan"))
    lines = []
    for r in results:
        low, high = min(r.images_per_second), max(r.images_per_second)
        lines.append(
            f"{r.shape:<16} {r.precision} {'compiled' if r.compiled else 'eager':<8} "
            f"{r.system:<13} {r.median:9.1f} images/s ({low:.1f} to {high:.1f})  "
            f"{100 * r.share_of_matrix_rate:4.0f} % of products  {r.median / best:.2f} x best peer"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
