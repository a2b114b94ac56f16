"""What is exported: a trained model, its preprocessing inside, and what its file says about it.

Legend: B batch, C channels, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from vit.artifacts.checkpoint import FORMAT_VERSION
from vit.artifacts.run_dir import RunDir
from vit.inference.load import Trained
from vit.model.merging import merged

Content = bytes | dict[str, bytes]
"""Of a file, or of the files of a folder by their names."""
Answer = Callable[[np.ndarray], np.ndarray]
"""uint8 (B, height, width, C) -> logits float32 (B, K), on the CPU."""

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.float32}
PIXELS = "uint8 (batch, height, width, channels); scaled and normalised inside"
NORMALISED = "float32 (batch, channels, height, width); (pixel / 255 - mean) / std"
"""What a file takes as its input."""


class WithPreprocessing(nn.Module):
    """Scales and normalises pixels, and runs a model on them.

    Args:
        model: images (B, C, height, width), normalised, to logits (B, K); it is copied.
        seen: its preprocessing, of which `mean` and `std` are one value per channel, of pixels in
            [0, 1].
        dtype: of the model's weights and of what it computes; normalising and logits are float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, seen: Mapping[str, Any], dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).to(dtype).eval()
        self.dtype = dtype
        self.register_buffer("mean", 255 * torch.tensor(seen["mean"]))
        self.register_buffer("std", 255 * torch.tensor(seen["std"]))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, height, width, C) -> float32 (B, K)."""
        normalised = (images.float() - self.mean) / self.std
        logits: Tensor = self.model(normalised.permute(0, 3, 1, 2).to(self.dtype)).float()
        return logits


def metadata(trained: Trained, merge: int, precision: str, takes: str) -> dict[str, Any]:
    """What a file whose input is `takes` says of itself: plain values, keys as in a checkpoint."""
    run = RunDir.of(trained.path)
    return {
        "format_version": FORMAT_VERSION,
        "input": takes,
        "precision": precision,
        "merge": merge,
        "classes": trained.classes,
        **({} if trained.thresholds is None else {"thresholds": trained.thresholds}),
        **({} if trained.calibration is None else {"calibration": asdict(trained.calibration)}),
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


def traced(trained: Trained, merge: int, precision: str) -> ExportedProgram:
    """The model as a graph of operations for any number of images, without traces of its source."""
    seen = trained.preprocessing
    pixels = torch.zeros(2, *seen["image_size"], seen["channels"], dtype=torch.uint8)
    model = WithPreprocessing(merged(trained.model, merge), seen, _DTYPES[precision])
    program = torch.export.export(model, (pixels,), dynamic_shapes=({0: Dim("batch")},))
    for graph in program.graph_module.modules():  # merging has graphs within the graph
        for node in graph.graph.nodes if isinstance(graph, GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def weights_file(state: Mapping[str, Tensor], precision: str, about: dict[str, str]) -> bytes:
    """A safetensors file; whole numbers stay what they are."""
    dtype = _DTYPES[precision]
    tensors = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in state.items()
    }
    return safetensors.torch.save(tensors, about)


def on_pixels(model: nn.Module) -> Answer:
    """A model of torch's as a function of arrays."""

    @torch.no_grad()
    def answer(images: np.ndarray) -> np.ndarray:
        logits: np.ndarray = model(torch.from_numpy(images)).numpy()
        return logits

    return answer
