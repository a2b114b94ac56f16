"""`vit-explain`: where in an image a trained model looks, as pictures and as a page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit.artifacts.run_dir import results_of
from vit.cli import front
from vit.cli.argv import safe_name
from vit.cli.overrides import Overrides
from vit.config.commands import ExplainConfig
from vit.config.validate import checked
from vit.data.sources.listing import list_images
from vit.errors import ConfigError, DataError, nearest, printable, shortened
from vit.runtime import console
from vit.runtime.console import damaged
from vit.runtime.files import prepare_file, write_atomic
from vit.runtime.signals import import_torch

if TYPE_CHECKING:
    from vit.inference.load import Trained

IN_INDEX = 100
"""Images that the index shows at most."""
_AT_ONCE = 8


def main() -> None:
    """Entry point of `vit-explain`."""
    sys.exit(front.run("explain", explain))


def explain(plain: dict[str, Any], overrides: Overrides) -> None:
    """Draw what the model looked at in each image that the user names; damaged ones are named."""
    config = checked(ExplainConfig, plain)
    found = list_images(config.images, console.warn)
    paths = found[: config.limit]
    import_torch()  # here: an error in the settings or the paths is answered without it
    from vit.inference import pictures
    from vit.inference.load import load_trained
    from vit.inference.predict import open_images
    from vit.report.drawing import grid, png
    from vit.runtime.device import select_device

    trained = load_trained(
        Path(config.checkpoint), select_device(config.device), console.warn,
        calibrated=config.calibration != "none",
    )  # fmt: skip
    wanted = class_number(config.class_, trained.classes)
    folder = Path(config.output or results_of(trained.path) / "explain")
    prepare_file("output", folder / "index.png")
    loader = open_images(trained, paths, batch_size=_AT_ONCE)
    images = pictures.explain(trained, loader, config.methods, wanted)
    rows, labels = [], []
    number = 0
    with console.progress(images, desc="explaining", total=len(paths)) as bar:
        for number, explained in enumerate(bar, 1):
            name = f"{number:03}-{safe_name(printable(Path(explained.name).stem))}"
            write_atomic(folder / f"{name}.png", png(explained.figure()))
            if config.layers:
                write_atomic(folder / f"{name}-layers.png", png(explained.layers_figure()))
            if number <= IN_INDEX:
                rows.append(explained.small_tiles())
                labels.append(f"{Path(explained.name).name}\n{explained.caption}")
    complaints = damaged(loader.corrupt.named(), len(paths))
    if not rows:
        raise DataError([*complaints, "no image is left to be explained"])
    for line in complaints:
        console.warn(line)
    index = grid(rows, ["image", *explained.heats], labels, [("least", "most")] * len(rows))
    write_atomic(folder / "index.png", png(index))
    more = f" (of {len(found):,} found; more with limit={len(found)})" if paths != found else ""
    only = f", which shows the first {IN_INDEX}" if number > IN_INDEX else ""
    lines = [
        f"{number} image{'s' if number > 1 else ''} explained{more}",
        f"{folder / 'index.png'}{only}, and a file for each image",
    ]
    if config.explorer:
        lines.append(_explorer(trained, paths[: config.explorer], folder))
    console.say("\n  ".join(lines))


def _explorer(trained: Trained, paths: Sequence[str], folder: Path) -> str:
    """Write the page with every weight of some images, and say so."""
    from vit.inference.explain import MOST_TOKENS
    from vit.inference.explore import explore, formula, token_names
    from vit.inference.predict import open_images
    from vit.report.explorer import LIMIT, explorer_page

    model = trained.model
    tokens = model.prefix + model.coordinates[..., 0].numel()
    if tokens > MOST_TOKENS:
        return f"no page of every weight: {tokens:,} tokens are more than {MOST_TOKENS:,}"
    config = model.config
    facts = [
        f"{trained.path}, step {trained.step:,}",
        f"{config.depth} layers of {config.heads} heads, {config.attention} attention",
        f"{tokens - model.prefix} patches and {model.prefix} other tokens",
        f"{config.pool} pooling, {config.positions} positions",
    ]  # fmt: skip
    page, held = explorer_page(
        f"What {trained.name} looks at", facts, formula(model), token_names(model),
        explore(trained, open_images(trained, paths, batch_size=1)),
    )  # fmt: skip
    write_atomic(folder / "index.html", page.encode("utf-8", "backslashreplace"))
    some = ""
    if held < len(paths):
        some = f", of {held} of {len(paths)} images: a page takes {LIMIT / 1e6:.0f} MB"
    return f"every weight, for a browser: {folder / 'index.html'}{some}"


def class_number(name: str | None, classes: list[str], key: str = "class") -> int | None:
    """The number of the class called `name`, which the setting `key` names.

    Raises:
        ConfigError: there is none.
    """
    if name is None:
        return None
    if name in classes:
        return classes.index(name)
    close = nearest(name, classes)
    hint = f" (did you mean {printable(close)}?)" if close else ""
    raise ConfigError(f"{key}={name} is none of the model's: {shortened(classes)}{hint}")


if __name__ == "__main__":
    main()
