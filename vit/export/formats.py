"""The formats of `vit-export`, and what cannot be asked of them; torch comes when one is used."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from vit.config.checks import Check, Complaint
from vit.config.plugins import part
from vit.errors import ConfigError


@dataclass(frozen=True)
class Format:
    """A format of exported models.

    Attributes:
        module: its functions `write`, from a `Trained` on the CPU, the patches that each block
            merges and a precision to the content of a file or of a folder's files (ConfigError
            where the format cannot hold the model), and `run`, from the path of what was written to
            an `Answer`, by those who would use it.
        suffix: how its file's name ends; empty: it is a folder.
        precisions: of weights, and of what is computed with them where the format computes.
        computes: it holds operations, not weights alone.
        packages: what it needs of the extra `onnx`.
    """

    module: str
    suffix: str
    precisions: tuple[str, ...]
    computes: bool
    packages: tuple[str, ...] = ()

    def check_packages(self) -> None:
        """Make sure that what it needs is installed.

        Raises:
            ConfigError: it is not.
        """
        missing = [name for name in self.packages if find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"this format needs {', '.join(missing)}; pip install 'vit-train[onnx]'"
            )


FORMATS: dict[str, Format] = {
    "onnx": Format(
        "vit.export.onnx", ".onnx", ("fp32", "fp16", "int8"), True,
        ("onnx", "onnxscript", "onnxruntime"),
    ),
    "torch": Format("vit.export.torch_export", ".pt2", ("fp32", "fp16"), True),
    "safetensors": Format("vit.export.safetensors", ".safetensors", ("fp32", "fp16"), False),
    "timm": Format("vit.export.timm_config", "", ("fp32", "fp16"), False),
}  # fmt: skip


def format_of(name: str) -> Format:
    """The format of that name: one of FORMATS, or a plug-in."""
    return part(FORMATS, "export", name)


def _precision_exists(format: str, precision: str) -> Complaint:
    kind = format_of(format)
    if precision not in kind.precisions:
        able = [name for name, other in FORMATS.items() if precision in other.precisions]
        yield (
            f"precision={precision} is not to be had with format={format}; take "
            f"precision={' or '.join(kind.precisions)}, or format={' or '.join(able)}"
        )


def _output_fits(format: str, output: str | None) -> Complaint:
    suffix = format_of(format).suffix
    if output is not None and not output.endswith(suffix):
        yield f"output={output} must end in {suffix}, as format={format} writes such a file"


def _merging_is_computed(format: str, merge: int) -> Complaint:
    if merge and not format_of(format).computes:
        able = [name for name, kind in FORMATS.items() if kind.computes]
        yield (
            f"merge={merge}: format={format} holds weights, which merging does not change; take "
            f"merge=0, or format={' or '.join(able)}"
        )


CHECKS = [
    Check(("format", "precision"), _precision_exists),
    Check(("format", "output"), _output_fits),
    Check(("format", "merge"), _merging_is_computed),
]
"""Contradictions between the settings of `vit-export`."""
