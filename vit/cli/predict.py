"""`vit-predict`: labels for images, from the path of a trained model alone."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from vit.artifacts.predictions import Labelled, as_csv, write_labels
from vit.cli import front
from vit.cli.overrides import Overrides
from vit.config.checks import Check, Complaint
from vit.config.commands import PredictConfig
from vit.config.validate import checked
from vit.data.sources.listing import list_images
from vit.errors import DataError, printable
from vit.runtime import console
from vit.runtime.console import damaged
from vit.runtime.files import prepare_file
from vit.runtime.signals import import_torch

ON_SHEET = 200
"""Images that a sheet shows at most."""


def _limits_are_fitted(set: str | None, unknown: str | None, calibration: str) -> Complaint:
    for key, value in (("set", set), ("unknown", unknown)):
        if calibration == "none" and value is not None:
            yield f"{key}={value} is by what was fitted on validation; leave calibration=none out"


CHECKS = [Check(("set", "unknown", "calibration"), _limits_are_fitted)]
"""Contradictions between the settings of `vit-predict`."""


def main() -> None:
    """Entry point of `vit-predict`."""
    sys.exit(front.run("predict", predict))


def predict(plain: dict[str, Any], overrides: Overrides) -> None:
    """Label the images that the user names; the damaged ones are named and left out."""
    config = checked(PredictConfig, plain, CHECKS)
    paths = list_images(config.images, console.warn)
    import_torch()  # here: an error in the settings or the paths is answered without it
    from vit.inference.calibration import Limits
    from vit.inference.load import load_trained
    from vit.inference.predict import classify, open_images
    from vit.runtime.device import select_device

    trained = load_trained(
        Path(config.checkpoint), select_device(config.device), console.warn,
        calibrated=config.calibration != "none",
    )  # fmt: skip
    limits = Limits.of(trained.calibration, config.set, config.unknown, trained.path)
    for key, file in (("output", config.output), ("sheet", config.sheet)):
        if file is not None:
            prepare_file(key, Path(file))
    top = min(config.top, len(trained.classes))
    loader = open_images(trained, paths, config.data.workers, config.batch_size)
    images = classify(trained, loader, top, limits)
    on_sheet: list[Labelled] = []
    sizes: list[int] = []
    # A bar would stand between the labels.
    quiet = {"disable": True} if config.output is None and sys.stdout.isatty() else {}
    first = next(images, None)
    if first is not None:
        bar = console.progress(chain([first], images), desc="predicting", total=len(paths), **quiet)
        with bar:
            deliver(config.output, noting(bar, on_sheet, sizes), top)
    complaints = damaged(loader.corrupt.named(), len(paths))
    if first is None:
        raise DataError([*complaints, "no image is left to be labelled"])
    for line in complaints:
        console.warn(line)
    record = trained.calibration
    told = limits_told(config, sizes)
    if record is not None and record.temperature is not None:
        told.append(f"probabilities {record.told()}")
    conclude(config, on_sheet, len(paths) - len(loader.corrupt.reasons), told)


def deliver(output: str | None, images: Iterable[Labelled], top: int) -> None:
    """Labels to a file, or as CSV to standard output as they come."""
    if output is not None:
        write_labels(Path(output), images, top)
        return
    shows = sys.stdout.isatty()  # which would act on escapes in names
    for line in as_csv(images, top):
        text = printable(line.decode(errors="surrogateescape").rstrip("\n"))
        sys.stdout.buffer.write(f"{text}\n".encode() if shows else line)
    sys.stdout.buffer.flush()


def noting(
    images: Iterable[Labelled], on_sheet: list[Labelled], sizes: list[int]
) -> Iterator[Labelled]:
    """The images, of which the first are noted for the sheet, and of all the size of their set, or
    0: they are unknown.
    """
    for image in images:
        if len(on_sheet) < ON_SHEET:
            on_sheet.append(image)
        if image.set is not None or image.unknown is not None:
            sizes.append(0 if image.unknown else len(image.set or image.labels))
        yield image


def limits_told(config: PredictConfig, sizes: list[int]) -> list[str]:
    """What sets and refusals come to."""
    known = [size for size in sizes if size]
    told = []
    if config.set is not None and known:
        told.append(f"sets for {config.set}: {sum(known) / len(known):.1f} labels on average")
    if config.unknown is not None:
        told.append(f"unknown, without a label: {len(sizes) - len(known):,} of {len(sizes):,}")
    return told


def conclude(config: PredictConfig, on_sheet: list[Labelled], count: int, told: list[str]) -> None:
    """Draw the sheet, and say what was written; standard output may be the labels' own."""
    from vit.inference.pictures import contact_sheet
    from vit.report.drawing import png
    from vit.runtime.files import write_atomic

    lines = [f"{count:,} image{'s' if count > 1 else ''} labelled"]
    if config.output is not None:
        lines.append(config.output)
    if config.sheet is not None:
        with console.OnlyWarned()("the sheet"):
            write_atomic(Path(config.sheet), png(contact_sheet(on_sheet)))
            some = f" (the first {len(on_sheet)} images)" if len(on_sheet) < count else ""
            lines.append(f"{config.sheet}{some}")
    lines += told
    if len(lines) > 1:
        print("\n  ".join(lines), file=sys.stderr if config.output is None else sys.stdout)


if __name__ == "__main__":
    main()
