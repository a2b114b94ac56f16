"""The formats of `vit-export`: how each is written, and how what was written runs again.

Legend: B batch, C channels, K classes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vit.artifacts.checkpoint import FORMAT_VERSION, IN_SAFETENSORS
from vit.artifacts.run_dir import RunDir
from vit.config.errors import ConfigError
from vit.engine.restore import Trained
from vit.model.hub import hub_config
from vit.model.merging import merged
from vit.model.served import Served
from vit.model.vit import VisionTransformer

Content = bytes | dict[str, bytes]
"""Of a file, or of the files of a folder by their names."""
Answer = Callable[[np.ndarray], np.ndarray]
"""uint8 (B, height, width, C) -> logits float32 (B, K), on the CPU."""

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.float32}
_ONNX_LIMIT = 2_000_000_000
_METADATA = "metadata.json"
_PIXELS = "uint8 (batch, height, width, channels); scaled and normalised inside"
_NORMALISED = "float32 (batch, channels, height, width); (pixel / 255 - mean) / std"


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        trained: the model, on the CPU.
        merge: patches that each block merges away.
    """

    trained: Trained
    merge: int = 0

    @property
    def model(self) -> nn.Module:
        """What computes the logits."""
        return merged(self.trained.model, self.merge)


@dataclass(frozen=True)
class Writer:
    """A format.

    Attributes:
        write: a model in a precision. Raises ConfigError where the format cannot hold it.
        run: what was written at a path as a function, by those who would use it.
    """

    write: Callable[[Source, str], Content]
    run: Callable[[Path], Answer]


def metadata(source: Source, precision: str, takes: str) -> dict[str, Any]:
    """What a file says about itself, as plain values; keys as in a checkpoint.

    Args:
        source: the model.
        precision: of the file.
        takes: what its input is, in words.
    """
    trained = source.trained
    run = RunDir.of(trained.path)
    return {
        "format_version": FORMAT_VERSION,
        "input": takes,
        "precision": precision,
        "merge": source.merge,
        "classes": trained.classes,
        "preprocessing": trained.preprocessing,
        "spec": trained.model.config.plain(),
        "origin": {
            "run": run.path.name if run else None,
            "checkpoint": trained.path.name,
            "step": trained.step,
            "images": trained.images,
            "vit-train": version("vit-train"),
        },
    }


def served(source: Source, precision: str = "fp32") -> Served:
    """The model with its preprocessing inside."""
    seen = source.trained.preprocessing
    return Served(source.model, seen["mean"], seen["std"], _DTYPES[precision])


def write_onnx(source: Source, precision: str) -> bytes:
    """An ONNX model, as onnxruntime and others run it."""
    from vit.artifacts.onnx import described, quantised, without_notes

    size = sum(weight.nbytes for weight in source.model.state_dict().values())
    if size > _ONNX_LIMIT:
        raise ConfigError(
            f"format=onnx: an ONNX file holds 2 GB, the weights are {size / 1e9:.1f} GB; take "
            f"format=torch or safetensors"
        )
    program = torch.onnx.export(
        traced(source, precision), dynamo=True, verbose=False,
        input_names=["images"], output_names=["logits"],
    )  # fmt: skip
    assert program is not None
    model = without_notes(program.model_proto)
    model = quantised(model) if precision == "int8" else model
    about = metadata(source, precision, _PIXELS)
    texts = {key: json.dumps(value) for key, value in about.items()}
    content: bytes = described(model, texts).SerializeToString()
    return content


def run_onnx(path: Path) -> Answer:
    """With onnxruntime."""
    from vit.artifacts.onnx import open_onnx

    return open_onnx(path, torch.get_num_threads())


def write_torch(source: Source, precision: str) -> bytes:
    """A program of torch.export, which needs torch alone."""
    about = {_METADATA: json.dumps(metadata(source, precision, _PIXELS))}
    file = io.BytesIO()
    torch.export.save(traced(source, precision), file, extra_files=about)
    return file.getvalue()


def run_torch(path: Path) -> Answer:
    """As torch loads it."""
    return _on_pixels(torch.export.load(path).module())


def traced(source: Source, precision: str) -> ExportedProgram:
    """The model as a graph of operations for any number of images, without traces of its source."""
    seen = source.trained.preprocessing
    pixels = torch.zeros(2, *seen["image_size"], seen["channels"], dtype=torch.uint8)
    program = torch.export.export(
        served(source, precision), (pixels,), dynamic_shapes=({0: Dim("batch")},)
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def write_safetensors(source: Source, precision: str) -> bytes:
    """Weights by their names, with the rest as JSON in the file's metadata."""
    about = json.dumps(metadata(source, precision, _NORMALISED))
    return _weights(source.trained.model.state_dict(), precision, {IN_SAFETENSORS: about})


def run_safetensors(path: Path) -> Answer:
    """In a model that is built from what the file says."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()[IN_SAFETENSORS])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model = VisionTransformer(**about["spec"])
    model.load_state_dict(weights)
    seen = about["preprocessing"]
    return _on_pixels(Served(model, seen["mean"], seen["std"]))


def write_timm(source: Source, precision: str) -> dict[str, bytes]:
    """A folder as Hugging Face's hub has it, of timm's model of the same shape."""
    trained = source.trained
    try:
        config = hub_config(trained.model.config, trained.preprocessing, trained.classes)
    except ValueError as error:
        raise ConfigError(f"format=timm: {error}; take format=onnx, torch or safetensors") from None
    weights = _weights(trained.model.state_dict(), precision, {"format": "pt"})
    return {
        "config.json": (json.dumps(config, indent=2) + "\n").encode(),
        "model.safetensors": weights,
    }


def run_timm(path: Path) -> Answer:
    """With timm, by its own account of the preprocessing."""
    import timm

    model = timm.create_model(f"local-dir:{path}", pretrained=True)
    seen: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return _on_pixels(Served(model, seen["mean"], seen["std"]))


WRITERS: dict[str, Writer] = {
    "onnx": Writer(write_onnx, run_onnx),
    "torch": Writer(write_torch, run_torch),
    "safetensors": Writer(write_safetensors, run_safetensors),
    "timm": Writer(write_timm, run_timm),
}


def _weights(state: Mapping[str, Tensor], precision: str, about: dict[str, str]) -> bytes:
    """A safetensors file; whole numbers stay what they are."""
    dtype = _DTYPES[precision]
    tensors = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in state.items()
    }
    content: bytes = safetensors.torch.save(tensors, about)
    return content


def _on_pixels(model: nn.Module) -> Answer:
    """A model of torch's as a function of arrays."""

    @torch.no_grad()
    def answer(images: np.ndarray) -> np.ndarray:
        logits: np.ndarray = model(torch.from_numpy(images)).numpy()
        return logits

    return answer


def as_function(source: Source) -> Answer:
    """The checkpoint's own model, in fp32, as a function of arrays."""
    return _on_pixels(served(source))
