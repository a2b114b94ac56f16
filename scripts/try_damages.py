"""Damage what a run wrote, in every way: each command answers in a line, or does what it did.

    python scripts/try_damages.py --count 300 --seed 0

A short run on the digits is copied for each try, and one of its files damaged: config.yaml,
summary.json, metrics.jsonl, images.json.gz, checkpoints and exports lose bytes, get others, become
folders, links to nowhere or text of another kind; checkpoints, sound as files, hold values of wrong
types or sizes. Then the commands that read it run. What ends with a traceback, outside the table of
exit codes, after more than 60 s, or with another result and not a word about it, is told, and the
script then exits with 1. (Exports have no checksums; and that a run's last checkpoint was deleted,
from the one before which it goes on, is no damage.)
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import hydra  # noqa: F401 (as others here: once for all that are forked)
import serve_onnx
import sklearn.datasets  # noqa: F401
import torch
import torch.utils.tensorboard
import torchvision.utils  # noqa: F401

import vit.evaluation.evaluate
import vit.export.export
import vit.training.trainer  # noqa: F401
from vit.artifacts.run_dir import RunDir
from vit.cli import eval as vit_eval
from vit.cli import export, predict, runs, train

TIMEOUT = 60
CODES = (0, 1, 2, 3, 4, 5)
RUN = [
    "data=digits", "name=run", "model.dim=16", "model.depth=2", "model.heads=2", "data.workers=0",
    "trainer.steps=20", "trainer.save_every=10", "trainer.precision=fp32", "outputs=.",
]  # fmt: skip
SMALL = ["data=digits", "trainer.steps=2", "trainer.precision=fp32", "outputs=.", "name=new"]
COMMANDS: dict[str, tuple[Callable[[], None], list[str]]] = {
    "serve": (
        lambda: sys.exit(serve_onnx.main()),
        ["run/export/model.onnx", "photo.png"],
    ),
    "start": (train.main, [*SMALL, "model.weights=run/export/model.safetensors"]),
    "eval": (vit_eval.main, ["checkpoint=run", "device=cpu", "report=false"]),
    "predict": (predict.main, ["checkpoint=run", "images=photo.png"]),
    "runs": (runs.main, [".", "--csv"]),
    "resume": (train.main, ["resume=run", "trainer.steps=24"]),  # the last: it changes the run
}
READERS = {
    "config.yaml": ("eval", "runs", "resume"),
    "summary.json": ("runs", "resume"),
    "metrics.jsonl": ("eval", "runs", "resume"),
    "images.json.gz": ("eval", "resume"),
    "model.onnx": ("serve",),
    "model.safetensors": ("start",),
}
"""Which commands read a file; a checkpoint: eval, predict and resume."""
FIRST = {
    "train": (train.main, RUN),
    "onnx": (export.main, ["checkpoint=run"]),
    "safetensors": (export.main, ["checkpoint=run", "format=safetensors"]),
}
WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 10**6, 10**30, 0.5, float("nan"), "x", "", [], [None], {}, {"x": 1}, {1: 2},
    b"x", torch.zeros(2), torch.zeros(0),
)  # fmt: skip
TEXTS = (
    b"", b"\0" * 64, b"\xff\xfe", b"[" * 9999, b"null", b"[1]", b"a: &a [*a]", b"<html>",
    b'{"val_top1": 1' + b"0" * 400 + b"}", b"seed: 1\n", b"x" * 100_000,
)  # fmt: skip


def places(values: Any, deep: int = 3) -> Iterator[tuple[Any, ...]]:
    """The way to every value of nested ones, as keys."""
    for key in list(values) if isinstance(values, dict) else ():
        yield (key,)
        if deep > 1:
            yield from ((key, *rest) for rest in places(values[key], deep - 1))


def spoil_checkpoint(path: Path, rng: random.Random) -> str:
    """Put a value of the wrong type or size somewhere, or take one away."""
    content = torch.load(path, weights_only=True)
    way = rng.choice([p for p in places(content) if p != ("format_version",)])
    place = content
    for key in way[:-1]:
        place = place[key]
    if rng.random() < 0.15:
        del place[way[-1]]
        said = "nothing"
    else:
        place[way[-1]] = rng.choice(WRONG)
        said = repr(place[way[-1]])[:30]
    torch.save(content, path)
    return f"{'.'.join(map(str, way))} = {said}"


def spoil_bytes(path: Path, rng: random.Random) -> str:
    """Lose, change or replace bytes, or the whole file."""
    data = bytearray(path.read_bytes())
    kind = rng.choice(("cut", "flip", "zeros", "text", "folder", "link", "gone", "twice", "locked"))
    place = rng.randrange(len(data))
    if kind == "cut":
        data = data[:place]
    elif kind == "flip":
        data[place] ^= 1 << rng.randrange(8)
    elif kind == "zeros":
        data[place : place + 64] = bytes(min(64, len(data) - place))
    elif kind == "text":
        data = bytearray(rng.choice(TEXTS))
    elif kind == "twice":
        data = data * 2
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("nowhere")
    elif kind != "gone":
        path.write_bytes(data)
    if kind == "locked":
        path.chmod(0)
    return f"{kind} at {place} of {len(data)}"


def damage(run: RunDir, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    """Damage one file of a run; says which and how, and which commands read it."""
    checkpoints = [run.best, *run.step_files()]
    exports = [run.path / "export" / name for name in ("model.onnx", "model.safetensors")]
    file = rng.choice(
        [run.config, run.summary, run.metrics, run.images, *exports, *checkpoints * 2]
    )
    is_inside = file in checkpoints and rng.random() < 0.75
    how = (spoil_checkpoint if is_inside else spoil_bytes)(file, rng)
    return f"{file.name}: {how}", READERS.get(file.name, ("eval", "predict", "resume"))


def _child(main: Callable[[], None], argv: list[str], folder: Path, said: Path) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{said}.{name}", os.O_CREAT | os.O_WRONLY), number)
    sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115 (of the whole process)
    os.chdir(folder)
    sys.argv = ["vit", *argv]
    try:
        main()
        code: object = 0
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


def ask(name: str, folder: Path) -> tuple[int | None, str, str, float]:
    """Exit code (None: it took too long), both outputs and seconds of one of COMMANDS."""
    main, argv = {**COMMANDS, **FIRST}[name]
    said = folder / name
    began = time.monotonic()
    process = multiprocessing.get_context("fork").Process(
        target=_child, args=(main, argv, folder, said)
    )
    process.start()
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
    process.join()
    texts = [Path(f"{said}.{end}").read_text(errors="replace") for end in ("out", "err")]
    seconds = time.monotonic() - began
    return (process.exitcode if seconds < TIMEOUT else None), texts[0], texts[1], seconds


def result(name: str, folder: Path, out: str) -> Any:
    """What a command came to, to be compared."""
    run = RunDir(folder / "run")
    if name == "eval":
        (metrics,) = run.path.rglob("metrics.json")  # without config.yaml beside the checkpoint
        return json.loads(metrics.read_text())["top1"]
    if name == "resume":
        return [run.read_summary().get(key) for key in ("state", "step", "test_loss")]
    return out if name == "predict" else None


def one_try(number: int, seed: int, first: Path, right: dict[str, Any]) -> tuple[str, list[str]]:
    """What was damaged, and what is wrong with the answers."""
    rng = random.Random(f"{seed}:{number}")
    folder = first.parent / f"try-{number}"
    shutil.copytree(first, folder)
    what, readers = damage(RunDir(folder / "run"), rng)
    is_gone = re.match(r"step-\d+\.pt: gone", what)
    wrong = []
    for name in readers:
        code, out, err, _ = ask(name, folder)
        lines = [line for line in err.splitlines() if line.strip()]
        if code not in CODES or "Traceback" in err:
            wrong.append(f"{name}: exit code {code}: {' / '.join(lines[-3:])}")
        elif code == 0 and not lines and not is_gone and result(name, folder, out) != right[name]:
            wrong.append(f"{name}: another result, and nothing was said")
        elif code and not lines:
            wrong.append(f"{name}: exit code {code}, and nothing was said")
    shutil.rmtree(folder)
    return what, wrong


def prepare(folder: Path) -> dict[str, Any]:
    """A run in `folder`, and what each command comes to on it."""
    from PIL import Image

    folder.mkdir()
    for name in FIRST:
        code, _, err, _ = ask(name, folder)
        assert code == 0, err
    Image.new("L", (8, 8), 99).save(folder / "photo.png")
    right: dict[str, Any] = {}
    for name in COMMANDS:
        copy = folder.parent / f"right-{name}"
        shutil.copytree(folder, copy)
        code, out, err, _ = ask(name, copy)
        assert code == 0, err
        right[name] = result(name, copy, out)
    return right


def main() -> int:
    """Run the campaign; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="at a time, of one thread each")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="try-damages-"))
    right = prepare(folder / "first")
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("fork")) as pool:
        one = partial(one_try, seed=args.seed, first=folder / "first", right=right)
        wrong = 0
        for number, (what, found) in enumerate(pool.map(one, range(args.count))):
            wrong += len(found)
            for fault in found:
                print(f"{number}, {what}\n  {fault}", flush=True)
    took = time.monotonic() - began
    print(f"{args.count} damages, {wrong} faults; {took:.0f} s")
    shutil.rmtree(folder)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
