"""`vit-runs`: what became of the runs in a folder, at once (no torch)."""

from __future__ import annotations

import argparse
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from vit.artifacts.runs import (
    APART,
    NO_SHARE,
    Run,
    by_images,
    called,
    effects,
    groups,
    read_runs,
)
from vit.artifacts.runs_page import runs_page
from vit.artifacts.runs_table import (
    aligned,
    effects_table,
    first_place,
    groups_table,
    runs_csv,
    runs_table,
)
from vit.cli.answers import errors_to_exit_code
from vit.cli.usage import ABOUT
from vit.errors import ConfigError, printable
from vit.runtime.files import prepare_file, write_atomic

_SETTINGS = "there are folder=, csv=true and html=<file> (--help says more)"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; {_SETTINGS}")


def main() -> None:
    """Entry point of `vit-runs`."""
    with errors_to_exit_code("runs") as outcome:
        compare()
    sys.exit(outcome[0])


def compare() -> None:
    """Print what the command line asks for; `csv=true` is `--csv`, as in the other commands."""
    parser = _Parser(prog="vit-runs", description=ABOUT["runs"])
    parser.add_argument("--version", action="version", version=f"vit-train {version('vit-train')}")
    parser.add_argument("folder", nargs="*", help="outputs/ (the default), sweeps or runs")
    parser.add_argument("--csv", action="store_true", help="print one CSV line per run instead")
    parser.add_argument("--html", metavar="FILE", help="also write a page with curves and plots")
    flags: list[str] = []
    for arg in sys.argv[1:]:
        key, _, value = arg.partition("=")
        if not re.match(r"\w+=", arg) or Path(arg).is_dir():
            flags.append(arg)
        elif key in ("folder", "html"):
            flags += ["--html"] * (key == "html") + [value]
        elif arg in ("csv=true", "csv=false"):
            flags += ["--csv"] * (value == "true")
        else:
            raise ConfigError(f"{arg} is no setting; {_SETTINGS}")
    args = parser.parse_args(flags)
    folders = list(map(Path, args.folder or ["outputs"]))
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder; give the folder of your runs")
    runs = read_runs(*folders)
    print(runs_csv(runs) if args.csv else overview(runs), end="" if args.csv else "\n")
    if args.html:
        write_page(Path(args.html), " ".join(map(str, folders)), runs)


def overview(runs: list[Run]) -> str:
    """All runs, by the images that they are scored on; where several were compared, also means over
    seeds and what mattered.
    """
    lists = by_images(runs)
    parts, notes = [], [APART] if len(lists) > 1 else []
    for title, alike in lists.items():
        parts += [f"{printable(title)}:"] if len(lists) > 1 else []
        parts.append(runs_table(alike))
        if len(found := groups(alike)) < len(alike):
            parts.append(aligned(*groups_table(found)))
        elif best := first_place(alike):
            parts.append("\n".join(best))
        if mattered := effects(alike):
            parts.append(aligned(*effects_table(mattered, called(alike))))
            notes += [NO_SHARE] if None in (effect.share for effect in mattered) else []
    return "\n\n".join([*parts, *dict.fromkeys(notes)]) or "no runs here"


def write_page(file: Path, title: str, runs: list[Run]) -> None:
    """Write the page of `runs_page`."""
    prepare_file("--html", file)
    write_atomic(file, runs_page(title, runs, file.parent).encode("utf-8", "replace"))


if __name__ == "__main__":
    main()
