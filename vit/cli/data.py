"""`vit-data`: a data set as a training would see it, without training."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from vit.artifacts.runs_table import aligned
from vit.cli import front
from vit.cli.answers import errors_to_exit_code
from vit.cli.usage import ABOUT
from vit.config.schema import RunConfig
from vit.config.validate import to_config
from vit.data.sources.table_file import ENDINGS
from vit.errors import ConfigError, printable
from vit.runtime import console
from vit.runtime.files import prepare_file, write_atomic
from vit.runtime.signals import import_torch

if TYPE_CHECKING:
    from vit.data.survey import Survey

_ROWS = 40
"""Classes that the text names; of more, the largest and the smallest."""
_LONGEST, _BAR = 30, 20
_ALSO = (
    "a folder of classes or a table, settings of vit-train (data.val_fraction=0.2), output=<page>"
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; there are {_ALSO}")


def main() -> None:
    """Entry point of `vit-data`."""
    with errors_to_exit_code("data") as outcome:
        look()
    sys.exit(outcome[0])


def look() -> None:
    """Print what there is in the data set that the command line names, and write it as a page.

    Raises:
        DataError: it cannot be trained on, for what vit-train would say.
    """
    parser = _Parser(prog="vit-data", description=ABOUT["data"])
    parser.add_argument("--version", action="version", version=f"vit-train {version('vit-train')}")
    parser.add_argument("given", nargs="*", help=_ALSO)
    settings: list[str] = []
    roots: list[str] = []
    output: Path | None = None
    for word in parser.parse_args().given:
        if re.match(r"output=.", word):
            output = Path(word.removeprefix("output=")).expanduser()
        elif re.match(r"[+\w.]+=", word) and not Path(word).exists():
            settings.append(word)
        else:
            roots.append(word)
    if len(roots) > 1 or not (roots or settings):
        raise ConfigError(f"vit-data takes {_ALSO}")
    for root in roots:
        if not any(setting.startswith("data=") for setting in settings):
            settings.insert(0, f"data={'table' if _is_table(root) else 'folder'}")
        settings.append(f"data.root={root}")
    if output is not None:
        prepare_file("output", output)
    plain, _ = front.composed("train", settings)
    show(to_config(plain, complete=False), output)


def _is_table(root: str) -> bool:
    shards = (file for below in (".", "data") for file in Path(root, below).glob("*.parquet"))
    return root.lower().endswith(ENDINGS) or any(shards)


def show(config: RunConfig, output: Path | None) -> None:
    """As `look`, of settings."""
    import_torch()
    from vit.data.reading.reader import refuse_damage
    from vit.data.sources.registry import cut_data_set, list_data_set
    from vit.data.survey import Survey
    from vit.data.survey_page import findings, how_split, survey_page
    from vit.training.header import doubts

    listed = list_data_set(config.data)
    data = cut_data_set(listed, config.data)
    config = replace(config, data=replace(config.data, **data.settings))
    survey = Survey.of(data, config.data)
    found = findings(survey, how_split(listed, data, config.data), doubts(config, data))
    console.say("\n".join(text(survey, found)))
    place = str(config.data.root or config.data.name)
    if output is not None:
        page = survey_page(place, survey, found, config.data.max_pixels)
        write_atomic(output, page.encode("utf-8", "replace"))
        console.say(f"page     {output}")
    own = {split: [seen for seen in survey.images if seen.split == split] for split in data.splits}
    damaged = (
        (data.splits[split], {i: seen.damage for i, seen in enumerate(images) if seen.damage})
        for split, images in own.items()
    )
    allowed = config.data.bad_image_limit if config.data.on_bad_image == "skip" else None
    refuse_damage(damaged, allowed)


def text(survey: Survey, found: dict[str, list[str]]) -> list[str]:
    """Lines of less than 100 columns."""
    from vit.data.survey_page import counts

    rows = [*counts(survey).items()]
    most = max(row[-1] for _, row in rows)
    if len(rows) > _ROWS:
        rows.sort(key=lambda item: -item[1][-1])
    cells = [
        [_cut(name), *(f"{count:,}" for count in row), "#" * -(-_BAR * row[-1] // most)]
        for name, row in rows
    ]
    if len(rows) > _ROWS:
        between = f"({len(rows) - _ROWS:,} {survey.task.classes} between)"
        cells[_ROWS // 2 : -_ROWS // 2] = [[between, *[""] * (len(cells[0]) - 1)]]
    head = [survey.task.classes, *survey.data.splits, "all", ""]
    lines = [aligned(head, cells), ""]
    for heading, told in found.items():
        for first, line in zip([heading, *[""] * len(told)], told, strict=False):
            whole = f"{first:<8} {printable(line)}"
            lines.append(
                textwrap.fill(whole, 99, subsequent_indent=" " * 9, break_on_hyphens=False)
            )
    return lines


def _cut(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


if __name__ == "__main__":
    main()
