"""Use an installed vit-train as its users do: every command, from an empty folder.

`make test-floors` runs it where every dependency has its lowest version, `make release` where a
wheel or an sdist was installed. It stops at the first command that fails, or that leaves out what
it is to write.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

SHORT = ["trainer.epochs=2", "trainer.save_every=1ep"]
USES: list[tuple[str, list[str], str]] = [
    ("train", ["trainer.epochs=9", "name=a", "model.dim=64"], "outputs/a/checkpoints/best.pt"),
    ("train", ["resume=outputs/a", "trainer.epochs=10"], "outputs/a/summary.json"),
    ("eval", ["checkpoint=outputs/a"], "outputs/a/eval/test/report/index.html"),
    ("predict", ["checkpoint=outputs/a", "images=image.png", "output=a.csv"], "a.csv"),
    ("embed", ["outputs/a", "image.png", "output=e.npy"], "e.npy"),
    ("explain", ["checkpoint=outputs/a", "images=image.png"], "outputs/a/explain"),
    ("export", ["checkpoint=outputs/a", "format=safetensors"], "outputs/a/export"),
    ("export", ["checkpoint=outputs/a", "format=timm"], "outputs/a/export/timm"),
    ("export", ["checkpoint=outputs/a", "format=torch"], "outputs/a/export/model.pt2"),
    ("data", ["data=digits", "output=data.html"], "data.html"),
    ("runs", ["outputs"], "outputs"),
]
"""Command, arguments, and what is there afterwards.

The first learns enough (nine of ten digits are right) that 8 bits change none of its answers: of a
model that guesses, they change some by chance, and vit-export refuses the file.
"""
EXTRAS: dict[str, list[tuple[str, list[str], str]]] = {
    "onnx": [
        ("export", ["checkpoint=outputs/a"], "outputs/a/export/model.onnx"),
        ("export", ["checkpoint=outputs/a", "precision=int8"], "outputs/a/export/model-int8.onnx"),
    ],
    "parquet": [
        ("train", ["data=table", "data.root=images.parquet", *SHORT, "name=t"],
         "outputs/t/checkpoints/best.pt"),
    ],
    "sweep": [
        ("train", ["-m", *SHORT, "optim=adamw,muon,lion,lamb", "name=s", "hydra/launcher=joblib",
                   "hydra.launcher.n_jobs=2"], "outputs/s/index.html"),
        ("train", ["-m", "sweep=asha_lr_wd", "search.trials=2", *SHORT, "name=q"],
         "outputs/q/index.html"),
    ],
}  # fmt: skip


def main() -> None:
    """Run all commands, of the extras that are named, too."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extras", nargs="*", default=[], choices=EXTRAS)
    extras = parser.parse_args().extras
    uses = [*USES, *(use for extra in extras for use in EXTRAS[extra])]
    names = ("vit-train", "torch", "torchvision", "timm", "hydra-core", "numpy", "pillow")
    print(" ".join(f"{name} {version(name)}" for name in names))
    with tempfile.TemporaryDirectory() as folder:
        from PIL import Image

        Image.new("L", (8, 8), 200).save(Path(folder, "image.png"))
        if "parquet" in extras:
            write_parquet(Path(folder))
        for command, args, left in uses:
            line = f"vit-{command} {' '.join(args)}"
            program = Path(sys.executable).with_name(f"vit-{command}")
            done = subprocess.run([program, *args], cwd=folder, capture_output=True, text=True)
            if done.returncode or not Path(folder, left).exists():
                sys.exit(f"{done.stdout}{done.stderr}{line}: exit {done.returncode}, wants {left}")
            print(f"ok  {line}", flush=True)


def write_parquet(folder: Path) -> None:
    """`images.parquet`: the image of the folder forty times, in two classes."""
    from pyarrow import parquet, table

    image = Path(folder, "image.png").read_bytes()
    rows = {"image": [{"bytes": image, "path": f"{i}.png"} for i in range(40)]}
    parquet.write_table(table({**rows, "label": [0, 1] * 20}), folder / "images.parquet")


if __name__ == "__main__":
    main()
