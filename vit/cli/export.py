"""`vit-export`: a trained model for other programs, checked against its checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit.artifacts.run_dir import results_of
from vit.cli import front
from vit.cli.overrides import Overrides
from vit.config.commands import ExportConfig
from vit.config.schema import height_width
from vit.config.validate import checked
from vit.errors import ConfigError
from vit.export.formats import CHECKS, format_of
from vit.runtime import console
from vit.runtime.files import prepare_file
from vit.runtime.signals import import_torch

if TYPE_CHECKING:
    from vit.export.export import Exported
    from vit.inference.load import Trained


def main() -> None:
    """Entry point of `vit-export`."""
    sys.exit(front.run("export", export))


def export(plain: dict[str, Any], overrides: Overrides) -> None:
    """Write a checkpoint in another format, run what was written, and say how they compare."""
    config = checked(ExportConfig, plain, CHECKS)
    format_of(config.format).check_packages()
    import_torch()  # here: an error in the settings is answered without it
    from vit.export import export as exporting

    job = exporting.open_trained(config)
    samples, what = exporting.find_images(config, job)
    output = output_path(config, job.trained)
    prepare(output, format_of(config.format).suffix)
    exported = exporting.export(config, job, samples, what, output)
    record = job.trained.calibration
    told = "" if record is None else f"  probabilities {record.told()}; it says so\n"
    script = Path(__file__).parents[2] / "scripts" / "serve_onnx.py"
    where = str(script) if script.is_file() else "<the clone>/scripts/serve_onnx.py"
    served = f"\n  serve it: python {where} {output} --port 8000"
    console.say(
        f"{config.format}, {config.precision}, compared on {len(samples):,} images of {what}:\n"
        f"{table(exported)}\n{told}  {output}{served if config.format == 'onnx' else ''}"
    )


def output_path(config: ExportConfig, trained: Trained) -> Path:
    """Where the export goes: as asked, else into the run folder, else beside the file."""
    if config.output is not None:
        return Path(config.output)
    kind, size = format_of(config.format), tuple(trained.preprocessing["image_size"])
    parts = ["model" if kind.suffix else config.format]
    if size != height_width(trained.config["data"]["image_size"]):
        parts.append(f"{size[0]}x{size[1]}")
    if config.merge:
        parts.append(f"merge{config.merge}")
    if config.precision != "fp32":
        parts.append(config.precision)
    return results_of(trained.path) / "export" / ("-".join(parts) + kind.suffix)


def prepare(output: Path, suffix: str) -> None:
    """Make sure, before long work, that the file or folder can be written.

    Raises:
        ConfigError: it cannot.
    """
    if not suffix and output.exists() and not output.is_dir():
        raise ConfigError(f"output={output} is a file; choose a folder")
    prepare_file("output", output if suffix else output.with_name(f"{output.name}.json"))


def table(exported: Exported) -> str:
    """The figures of the checkpoint and of its export, side by side."""
    import torch

    from vit.runtime.device import describe

    parity = exported.parity
    count = len(parity.labels)
    threads = torch.get_num_threads()
    one = parity.thresholds is None
    right_name, same = ("top-1", "same label") if one else ("every label right", "same labels")
    others = exported.others.values()
    all_of = [parity, *others]
    rows = [
        ("", "checkpoint", "export", *exported.others),
        (right_name, *(f"{100 * right / count:.2f} %" for right in parity.right),
         *(f"{100 * own.right[1] / count:.2f} %" for own in others)),
        (same, "", *(f"{100 * (1 - own.changed / count):.2f} %" for own in all_of)),
        ("largest difference of a logit", "", *(f"{own.difference:.2g}" for own in all_of)),
        ("size", *(f"{size / 1e6:,.2f} MB" for size in exported.sizes)),
        *(
            (f"ms per image, {images} at once", *(f"{time:.3g}" for time in times))
            for images, times in exported.times.items()
        ),
    ]  # fmt: skip
    lines = ["  " + f"{name:<31}" + "".join(f"{cell:>12}" for cell in row) for name, *row in rows]
    cpu = describe(torch.device("cpu"))
    return "\n".join([*lines, f"  on {threads} thread{'s' * (threads > 1)} of {cpu}"])


if __name__ == "__main__":
    main()
