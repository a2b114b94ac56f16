"""Make tables of labels of every kind, sound and broken: what is listed of them must be right.

    python scripts/try_tables.py --count 10000 --broken 200 --rows 1000000 --seed 0

Each sound table (CSV with one of four separators, or JSON lines; one or several labels; groups by a
column or by the path; splits of its own or cut; folds) is listed as a training would list it, and
compared with what it says: every image is in one split with its labels, no group is in two, every
image (and group) is tested in one fold of all. Each broken one must be refused with the number of
its broken line. At last a table of `--rows` rows is listed, and its time and memory are told. Exits
with 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vit.cli.front import composed
from vit.config.validate import to_config
from vit.data.sources.registry import load_data_set
from vit.data.types import DataSet
from vit.errors import DataError

IMAGES = 60
SETTINGS = to_config(composed("train", ["data=table", "data.root=none"])[0]).data
SPLITS = ("train", "val", "test")
LABELS = ["cat", "dog", "Käfer", "two words", "0", "1", 'quo"te', "x,y"]


@dataclass
class Made:
    """A table that was made.

    Attributes:
        text, ending: of its file.
        labels: of each image that it names.
        groups: of each, where it has some.
        changes: settings to read it with.
        lines: of each image the number of its line.
    """

    text: str
    ending: str
    labels: dict[str, set[str]]
    groups: dict[str, str] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)


def images(folder: Path) -> list[str]:
    """Empty files that tables name; what is in them is not looked at here."""
    names = [f"p{i % 7}/{i:03}.jpg" for i in range(IMAGES)]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    return names


def made(rng: random.Random, names: list[str]) -> Made:
    """A sound table of some of the images."""
    chosen = rng.sample(names, rng.randint(8, len(names)))
    several = rng.random() < 0.4
    known = rng.sample(LABELS, rng.randint(2, 5))
    labels = {name: {known[i % len(known)]} for i, name in enumerate(chosen)}
    if several:
        labels = {name: own | set(rng.sample(known, rng.randint(0, 2))) for name, own in
                  labels.items()}  # fmt: skip
        for name in chosen[len(known) :: 5]:
            labels[name] = set()
    head, rows = ["image"], [[name] for name in chosen]
    found = Made("", rng.choice([".csv", ".tsv", ".jsonl"]), labels)
    how = rng.choice(["separator", "columns"]) if several else "one"
    if how == "columns":
        found.changes["label_column"] = known
        head += known
        for row, name in zip(rows, chosen, strict=True):
            row += [rng.choice(["1", "yes", "True"]) if x in labels[name] else "0" for x in known]
    else:
        head.append("label")
        for row, name in zip(rows, chosen, strict=True):
            row.append("#".join(sorted(labels[name])))
        found.changes["label_separator"] = "#" if several else None
    if rng.random() < 0.5:
        head.append("who")
        people = [f"person {i}" for i in range(rng.randint(4, 12))]
        found.groups = {name: people[i % len(people)] for i, name in enumerate(chosen)}
        for row, name in zip(rows, chosen, strict=True):
            row.append(found.groups[name])
        found.changes["group_column"] = "who"
    elif rng.random() < 0.3:
        found.groups = {name: name.partition("/")[0] for name in chosen}
        found.changes["group"] = r"^(p\d)/"
    if rng.random() < 0.5 and len(set(found.groups.values()) or range(9)) >= 3:
        folds = rng.randint(2, 3)
        found.changes |= {"folds": folds, "fold": rng.randrange(folds)}
    elif not several and rng.random() < 0.4:
        head.append("split")
        for i, row in enumerate(rows):  # the first of all classes are trained on
            row.append("train" if i < 2 * len(known) or found.groups else rng.choice(SPLITS))
    rng.shuffle(rows)
    found.text = written(found.ending, head, rows, rng)
    found.lines = {row[0]: i for i, row in enumerate(rows, 1 + (found.ending != ".jsonl"))}
    return found


def written(ending: str, head: list[str], rows: list[list[str]], rng: random.Random) -> str:
    """The text of a table."""
    if ending == ".jsonl":
        return "\n".join(json.dumps(dict(zip(head, row, strict=True))) for row in rows)
    file = io.StringIO()
    separator = "\t" if ending == ".tsv" else rng.choice(",;|")
    csv.writer(file, delimiter=separator, lineterminator="\n").writerows([head, *rows])
    return file.getvalue()


def listed(folder: Path, table: Made, **changes: Any) -> DataSet:
    """The data set, as a training lists it."""
    path = folder / f"labels{table.ending}"
    path.write_text(table.text)
    return load_data_set(replace(SETTINGS, root=str(path), **{**table.changes, **changes}))


def wrong(folder: Path, table: Made) -> list[str]:
    """What is wrong with what is listed of a sound table."""
    problems = []
    data = listed(folder, table)
    seen: Counter[str] = Counter()
    where: dict[str, set[str]] = {}
    for split, samples in data.splits.items():
        for name, label in zip(samples.names, samples.labels, strict=True):
            seen[name] += 1
            numbers = [int(label)] if samples.labels.ndim == 1 else label.nonzero()[0].tolist()
            if {data.classes[k] for k in numbers} != table.labels[name]:
                problems.append(f"{name} has other labels")
            where.setdefault(table.groups.get(name, name), set()).add(split)
    problems += [f"{name} is listed {n} times" for name, n in seen.items() if n != 1]
    problems += [f"{name} is lost" for name in table.labels.keys() - seen.keys()]
    problems += [f"group {group} is in {found}" for group, found in where.items() if len(found) > 1]
    if folds := table.changes.get("folds"):
        tested: Counter[str] = Counter()
        groups: dict[str, set[int]] = {}
        for fold in range(folds):
            test = listed(folder, table, fold=fold).splits["test"]
            tested.update(test.names)
            for name in test.names:
                groups.setdefault(table.groups.get(name, name), set()).add(fold)
        problems += [f"{x} is tested {tested[x]} times" for x in table.labels if tested[x] != 1]
        problems += [f"group {g} is tested in {found}" for g, found in groups.items()
                     if len(found) > 1]  # fmt: skip
    return problems


BREAKS = ("missing", "empty image", "twice", "ragged", "no label", "not 0 or 1", "no group")


def broken(rng: random.Random, names: list[str]) -> tuple[Made, str, int]:
    """A table with one broken line, what is wrong with it, and its number."""
    while True:
        table, how = made(rng, names), rng.choice(BREAKS)
        lines = table.text.splitlines()
        number = rng.choice(sorted(table.lines.values()))
        name = next(name for name, line in table.lines.items() if line == number)
        line = lines[number - 1]
        others = [other for other in table.lines if other != name]
        if how == "missing":
            line = line.replace(name, "gone.jpg")
        elif how == "empty image":
            line = line.replace(name, "")
            if not line.strip(",;|\t"):  # a blank line
                continue
        elif how == "twice":
            lines.append(line)
            number = len(lines)
        elif how == "ragged" and table.ending != ".jsonl":
            line += "\tmore" if table.ending == ".tsv" else ",more|more;more"
        elif how == "no label" and table.changes.get("label_separator", "#") is None:
            label = next(iter(table.labels[name]))
            if table.ending == ".jsonl":
                line = json.dumps({**json.loads(line), "label": ""})
            elif '"' in line or line.count(label) != 1:
                continue
            else:
                line = line.replace(label, "")
        elif how == "not 0 or 1" and "label_column" in table.changes and table.ending == ".jsonl":
            line = json.dumps({**json.loads(line), table.changes["label_column"][0]: "maybe"})
        elif how == "no group" and "group_column" in table.changes:
            line = line.replace(table.groups[name], "")
        else:
            continue
        if how != "twice":
            lines[number - 1] = line
        if others:
            table.text = "\n".join(lines)
            return table, how, number


def not_refused(folder: Path, rng: random.Random, names: list[str]) -> list[str]:
    """What is wrong with the answer to a broken table."""
    table, how, number = broken(rng, names)
    try:
        listed(folder, table)
    except DataError as error:
        if re.search(rf"line {number}\b", str(error)):
            return []
        return [f"{how} in line {number}: {error}\n{table.text}"]
    return [f"{how} in line {number} is not refused\n{table.text}"]


def large(folder: Path, rows: int) -> str:
    """Time and memory of a table of so many rows."""
    for i in range(1000):
        (folder / f"d{i:03}").mkdir()
    lines = [f"d{i % 1000:03}/{i}.jpg,class {i % 1000},person {i % 50_000}" for i in range(rows)]
    for line in lines:
        (folder / line.partition(",")[0]).touch()
    path = folder / "large.csv"
    path.write_text("\n".join(["image,label,patient", *lines]))
    del lines
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    data = load_data_set(replace(SETTINGS, root=str(path), group_column="patient"))
    seconds = time.perf_counter() - start
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    count = sum(map(len, data.splits.values()))
    return f"{count:,} rows listed in {seconds:.1f} s with {more / 1e6:.2f} GB more memory"


def main() -> int:
    """Run the campaign; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--broken", type=int, default=200)
    parser.add_argument("--rows", type=int, default=0, help="of the large table; 0: none")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        names = images(folder)
        for number in range(args.count):
            table = made(rng, names)
            found = wrong(folder, table)
            problems += [f"table {number}: {problem}" for problem in found]
        for number in range(args.broken):
            problems += [f"broken {number}: {x}" for x in not_refused(folder, rng, names)]
        for problem in problems[:20]:
            print(problem)
        print(f"{args.count:,} tables and {args.broken} broken ones: {len(problems)} problems")
        if args.rows:
            print(large(folder, args.rows))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
