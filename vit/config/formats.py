"""What `vit-export` can write, and what cannot be asked of it. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from vit.config.checks import Check
from vit.config.errors import ConfigError


@dataclass(frozen=True)
class Kind:
    """A format of exported models.

    Attributes:
        suffix: how its file's name ends; empty: it is a folder.
        precisions: of weights, and of what is computed with them where the format computes.
        computes: it holds operations, not weights alone.
        packages: what it needs of the extra `onnx`.
    """

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


KINDS: dict[str, Kind] = {
    "onnx": Kind(".onnx", ("fp32", "fp16", "int8"), True, ("onnx", "onnxscript", "onnxruntime")),
    "torch": Kind(".pt2", ("fp32", "fp16"), True),
    "safetensors": Kind(".safetensors", ("fp32", "fp16"), False),
    "timm": Kind("", ("fp32", "fp16"), False),
}
"""The formats by name; `engine.formats.WRITERS` writes them."""


def _precision_exists(format: str, precision: str, _: int | None) -> str | None:
    kind = KINDS[format]
    if precision in kind.precisions:
        return None
    able = [name for name, other in KINDS.items() if precision in other.precisions]
    return (
        f"precision={precision} is not to be had with format={format}; take "
        f"precision={' or '.join(kind.precisions)}, or format={' or '.join(able)}"
    )


def _output_fits(format: str, output: str | None, _: int | None) -> str | None:
    suffix = KINDS[format].suffix
    if output is None or output.endswith(suffix):
        return None
    return f"output={output} must end in {suffix}, as format={format} writes such a file"


def _merging_is_computed(format: str, merge: int, _: int | None) -> str | None:
    if not merge or KINDS[format].computes:
        return None
    able = [name for name, kind in KINDS.items() if kind.computes]
    return (
        f"merge={merge}: format={format} holds weights, which merging does not change; take "
        f"merge=0, or format={' or '.join(able)}"
    )


EXPORT_CHECKS = [
    Check(("format", "precision"), _precision_exists),
    Check(("format", "output"), _output_fits),
    Check(("format", "merge"), _merging_is_computed),
]
"""Contradictions between the settings of `vit-export`."""
