"""Try settings at random: every outcome is a run with finite scores, or an answer in one line.

    python scripts/try_settings.py --compose 1000 --train 100 --seed 0

Settings are drawn from the schema: legal, borderline, of the wrong type, with typos in their keys.
Composed ones go through the front door up to the plan of the run; trained ones are a few steps of
small models on the digits or a folder of drawn images. What ends otherwise than with 0 and finite
scores, with 2 and lines that name a key and a remedy, or with 4, is told with its command, and the
script then exits with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import multiprocessing
import os
import random
import re
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from PIL import Image

import vit.training.setup  # noqa: F401 (with torch, once for all that are forked)
from vit.artifacts.run_dir import RunDir
from vit.cli import front
from vit.cli.overrides import Overrides
from vit.cli.train import train
from vit.config.resolve import fit_to_data, plan, resolve
from vit.config.rules import (
    FROZEN,
    DurationRule,
    Length,
    Range,
    Registered,
    freezes,
    registry_names,
)
from vit.config.schema import RunConfig
from vit.config.validate import to_config, to_plain

WRONG = (
    "", "x", "-1", "0", "1.5", "1e400", "nan", "-inf", "null", "true", "auto", "[]", "[1,2]",
    "[null]", "{a: 1}", "'", "$x", "${seed}", "5%", "2ep", "1e-300", "9" * 20, "a b", "é",
)  # fmt: skip
DURATIONS = ("0", "1", "3", "500", "0ep", "0.01ep", "1ep", "2.5ep", "1e9ep", "0%", "0.1%", "100%")
SMALL: dict[str, tuple[str, ...]] = {
    "data.root": ("{photos}",), "data.image_size": ("8", "16", "[16,8]", "[8,12]"),
    "data.cache_size": ("8", "24"), "data.workers": ("0", "1", "auto"), "data.timeout": ("60",),
    "data.cache_dir": ("{folder}/cache",), "data.limit_per_class": ("1", "2", "5", "null"),
    "model.patch_size": ("auto", "1", "2", "4", "8"), "model.dim": ("1", "12", "16", "32", "48"),
    "model.depth": ("1", "2", "3"), "model.heads": ("1", "2", "4"),
    "model.mlp_ratio": ("0.1", "1", "2", "1e-12"), "model.registers": ("0", "1", "4"),
    "model.weights": ("null", "nowhere", "{photos}", "{first/run}"),
    "distill.teacher": ("null", "nowhere", "{first/run}"),
    "distill.weights": ("null", "nowhere"), "trainer.epochs": ("0.001", "0.1", "0.3"),
    "trainer.steps": ("1", "2", "9", "12"), "trainer.batch_size": ("1", "2", "6", "16", "64"),
    "trainer.eval_batch_size": ("7", "100", "500"), "trainer.accumulate": ("1", "2", "4"),
    "trainer.compile": ("false",), "trainer.device": ("auto", "cpu"), "resume": ("null", "auto"),
    "augment.repeats": ("1", "2", "3"), "name": ("run",), "outputs": ("{folder}",),
}  # fmt: skip
"""Of trained settings, what decides how long a run takes and what it may write."""
BASE = {
    "model.dim": "16", "model.depth": "1", "model.heads": "2", "data.workers": "0",
    "trainer.steps": "9", "trainer.batch_size": "16", "trainer.precision": "fp32", "name": "run",
}  # fmt: skip
REMEDY = re.compile(
    r"\b(must|try|give|choose|add|write|put|set|leave|start|see|needs?|restore|repair|e\.g\.|"
    r"did you mean|help)\b"
)
TIMEOUT = 120


def hints(schema: type = RunConfig, prefix: str = "") -> dict[str, Any]:
    """The type of every dotted key."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(schema, include_extras=True).items():
        is_group = isinstance(hint, type) and hasattr(hint, "__dataclass_fields__")
        found |= hints(hint, f"{prefix}{name}.") if is_group else {prefix + name: hint}
    return found


HINTS = hints()


def draw(hint: Any, rng: random.Random, rules: tuple[Any, ...] = ()) -> str:
    """A legal value of a type, often one at its border, as one would type it."""
    if get_origin(hint) is Annotated:
        base, *more = get_args(hint)
        return draw(base, rng, (*rules, *more))
    rule = next((r for r in rules if not isinstance(r, Length)), None)
    if isinstance(rule, DurationRule):
        return rng.choice(DURATIONS)
    if isinstance(rule, Registered):
        return rng.choice(registry_names(rule.file, rule.table))
    if rule is freezes:
        return rng.choice([*FROZEN, "blocks:0", "blocks:1", "blocks:99"])
    if get_origin(hint) is Literal:
        return rng.choice([str(choice) for choice in get_args(hint)])
    if get_origin(hint) is list:
        count = next((r.count for r in rules if isinstance(r, Length)), rng.choice((1, 3)))
        return f"[{','.join(draw(get_args(hint)[0], rng, rules) for _ in range(count))}]"
    if hint in (int, float):
        bounds = rule if isinstance(rule, Range) else Range(0, 2**63)
        low, high = bounds.low, min(bounds.high, 1e12)
        usual = low + rng.random() * min(high - low, rng.choice((1, 100)))
        value = rng.choice((low, high, usual, usual, usual))
        return str(round(value)) if hint is int else f"{value:.4g}"
    if hint in (bool, str, type(None)):
        return {bool: rng.choice(("true", "false")), str: "nowhere", type(None): "null"}[hint]
    if get_origin(hint) is dict:  # of plug-ins
        return rng.choice(("{}", "{a: 1}"))
    return draw(rng.choice(get_args(hint)), rng, rules)  # a union


def misspelt(key: str, rng: random.Random) -> str:
    """A key with a letter less, a letter twice, or in another group."""
    place = rng.randrange(len(key))
    group, _, name = key.rpartition(".")
    other = rng.choice(("optim", "trainer", "modle", "x"))
    return rng.choice((key[:place] + key[place + 1 :], key[:place] + key[place] + key[place:],
                       f"{other}.{name}", name or group))  # fmt: skip


def settings(rng: random.Random, *, small: bool) -> list[str]:
    """What somebody might type; `small` runs in seconds, if it runs."""
    data = rng.choice(("digits", "folder"))
    values = {**BASE, "data": data, "outputs": "{folder}"} if small else {"data": data}
    values |= {"data.root": "{photos}", "data.image_size": "8"} if data == "folder" else {}
    keys = [key for key in HINTS if key not in ("data.name", "name", "outputs")]
    for key in rng.sample(keys, rng.choice((1, 2, 3, 5, 8))):
        is_odd = rng.random() < (0.05 if small else 0.25)
        value = rng.choice(SMALL[key]) if small and key in SMALL else draw(HINTS[key], rng)
        if key == "trainer.epochs":
            values.pop("trainer.steps", None)
        values[misspelt(key, rng) if is_odd and rng.random() < 0.3 else key] = (
            rng.choice(WRONG) if is_odd and not (small and key in SMALL) else value
        )
    return [f"{key}={value}" for key, value in values.items()]


def faults(argv: list[str], code: int | None, err: str, folder: Path) -> list[str]:
    """What is wrong with how `vit-train <argv>` ended; `folder` is there if it was trained."""
    lines = [line for line in err.splitlines() if line.strip()]
    if "Traceback" in err or code not in (0, 2, 4):
        return [f"exit code {code}: {' / '.join(lines[-3:])}"]
    if code == 0:
        done = {"state": "finished"}
        said: dict[str, Any] = RunDir(folder / "run").read_summary() if folder.is_dir() else done
        scores = {key: value for key, value in said.items() if key.startswith(("val_", "test_"))}
        odd = [key for key, x in scores.items() if x is not None and not math.isfinite(x)]
        return [f"not finished: {said}"] if odd or said.get("state") != "finished" else []
    typed = [arg.partition("=")[0] for arg in argv]
    told = [line for line in lines if line.startswith("vit-train: ")]
    bad = [line for line in told if not any(key in line for key in (*HINTS, *typed))]
    bad += [line for line in told if not REMEDY.search(line)]
    bad += ["nothing was said"] * (not told)
    return [f"exit code {code} without key or remedy: {line}" for line in bad]


def answer(argv: list[str], job: Callable[..., object]) -> int:
    """The exit code of `vit-train <argv>`, in this process."""
    sys.argv = ["vit-train", *argv]
    return front.run("train", job)


def look(plain: dict[str, Any], overrides: Overrides) -> None:
    """As far as a run comes before its data is read, and its length."""
    settings = fit_to_data(to_config(plain, 1), 1000, 500, gpu=False)
    plan(resolve(to_config(to_plain(settings)), precision="fp32"), 1000)


def compose_one(argv: list[str], folder: Path) -> tuple[int | None, list[str]]:
    """Exit code and faults of settings that are not trained."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        code = answer(argv, look)
    return code, faults(argv, code, err.getvalue(), folder)


def _child(argv: list[str], folder: Path) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), number)
    sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115 (of the whole process)
    code = answer(argv, train)
    sys.stderr.flush()
    os._exit(code)


def train_one(argv: list[str], folder: Path) -> tuple[int | None, list[str]]:
    """Exit code and faults of a run, in a process of its own."""
    folder.mkdir(parents=True)
    process = multiprocessing.get_context("fork").Process(target=_child, args=(argv, folder))
    process.start()
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
        return None, [f"took more than {TIMEOUT} s"]
    err = (folder / "err").read_text(errors="replace")
    return process.exitcode, faults(argv, process.exitcode, err, folder)


def photos(folder: Path) -> None:
    """Three classes of drawn images, of several sizes."""
    rng = np.random.default_rng(0)
    for number in range(45):
        path = folder / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (8 + number % 5, 8 + number % 7, 3)
        Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(path)


def commands(kind: str, count: int, seed: int, folder: Path) -> list[list[str]]:
    """What is typed in each try; `folder` holds photos and a first run."""
    typed = []
    for number in range(count):
        drawn = "\n".join(settings(random.Random(f"{seed}:{kind}:{number}"), small=kind == "train"))
        for name in ("photos", "first/run"):
            drawn = drawn.replace(f"{{{name}}}", str(folder / name))
        typed.append(drawn.replace("{folder}", str(folder / f"{kind}-{number}")).split("\n"))
    return typed


def main() -> int:
    """Run the campaign; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compose", type=int, default=1000)
    parser.add_argument("--train", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="at a time, of one thread each")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="try-settings-"))
    photos(folder / "photos")
    first = [*(f"{key}={value}" for key, value in BASE.items()), f"outputs={folder / 'first'}"]
    wrong = train_one(first, folder / "first")[1] if args.train else []
    for kind, count, one in (
        ("compose", args.compose, compose_one),
        ("train", args.train, train_one),
    ):
        started = time.monotonic()
        typed = commands(kind, count, args.seed, folder)
        own = [folder / f"{kind}-{number}" for number in range(count)]
        with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("fork")) as pool:
            outcomes = list(pool.map(one, typed, own))
        for argv, (_, found) in zip(typed, outcomes, strict=True):
            wrong += [f"{fault}\n  vit-train {shlex.join(argv)}" for fault in found]
        ends = Counter(f"exit code {code}" for code, _ in outcomes)
        took = time.monotonic() - started
        print(f"{kind}: {count} settings, {dict(sorted(ends.items()))}; {took:.0f} s", flush=True)
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
