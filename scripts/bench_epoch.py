"""One epoch on CIFAR-10 as image files, from the start of the process to the saved checkpoint.

    python scripts/bench_epoch.py --cifar ~/cifar10-jpeg

Ours is `vit-train` itself; the peer is timm's model and loader in a plain bf16 loop. Both train
d192 L9 h3 mlp2 p4 on the same files with pad-crop and flip, evaluate the images of val/ once and
save. The folder has train/<class> and val/<class>.
"""

from __future__ import annotations

import argparse
import importlib
import math
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from contest import Measured

from vit.runtime.device import autocast, best_precision, select_device

CASE = "CIFAR-10, one epoch, d192 L9 p4"
BATCH = 128
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
SETTINGS = [
    "data=folder", "data.image_size=32", f"data.mean={list(MEAN)}", f"data.std={list(STD)}",
    "data.val_fraction=0", "model.name=bench", "model.patch_size=4", "model.dim=192",
    "model.depth=9", "model.heads=3", "model.mlp_ratio=2", "augment=light",
    "trainer.epochs=1", f"trainer.batch_size={BATCH}", "name=bench",
]  # fmt: skip


def main() -> int:
    """Measure and print, or be the peer; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--peer", type=Path, metavar="FILE", help="be the peer, and save there")
    args = parser.parse_args()
    if args.peer:
        timm_epoch(args.cifar, args.peer)
    else:
        for measured in measure(args.cifar, args.repetitions):
            print(measured, flush=True)
    return 0


def measure(cifar: Path, repetitions: int) -> list[Measured]:
    """Seconds of each, in turn."""
    found = [Measured(CASE, "ours", "s"), Measured(CASE, "timm", "s")]
    for _ in range(repetitions):
        for measured in found:
            with tempfile.TemporaryDirectory(prefix="bench-epoch-") as scratch:
                ours = ["-m", "vit.cli.train", f"data.root={cifar}", *SETTINGS]
                peer = [str(Path(__file__).resolve()), "--cifar", str(cifar), "--peer", "x.pt"]
                start = time.perf_counter()
                done = subprocess.run(
                    [sys.executable, *(ours if measured.system == "ours" else peer)],
                    cwd=scratch, capture_output=True, text=True, check=False,
                )  # fmt: skip
                took = time.perf_counter() - start
                if done.returncode:
                    raise SystemExit(f"{measured.system} failed:\n{done.stdout}{done.stderr}")
                assert list(Path(scratch).rglob("*.pt"))
                print(f"{measured.system} {took:.1f} s: {done.stdout.splitlines()[-4:]}")
                measured.values.append(took)
    return found


def timm_epoch(cifar: Path, file: Path) -> None:
    """What somebody writes with timm: its loader with two workers, autocast, AdamW, one epoch."""
    from torchvision.transforms import v2

    timm: Any = importlib.import_module("timm")
    device = select_device("auto")
    precision = best_precision(device)
    tail = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    loaders = []
    for split, head in (("train", [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]),
                        ("val", [])):  # fmt: skip
        images = timm.data.create_dataset("", root=str(cifar / split))
        loader = timm.data.create_loader(
            images, (3, 32, 32), BATCH if head else 500, is_training=bool(head), num_workers=2,
            use_prefetcher=False, device=device,
        )  # fmt: skip
        images.transform = v2.Compose([*head, *tail])
        loaders.append(loader)
    train, val = loaders
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=4, num_classes=10, embed_dim=192, depth=9, num_heads=3, mlp_ratio=2
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    steps = len(train)
    for step, (batch, labels) in enumerate(train):
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / (0.1 * steps))
            group["lr"] = 1e-3 * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, precision):
            logits = model(batch.to(device))
        loss = F.cross_entropy(logits.float(), labels.to(device), label_smoothing=0.1)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    correct = 0
    with torch.no_grad(), autocast(device, precision):
        for batch, labels in val:
            correct += int((model(batch.to(device)).argmax(1) == labels.to(device)).sum())
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    print(f"top-1 {100 * correct / len(val.dataset):.2f}")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
