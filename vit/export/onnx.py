"""ONNX files, as onnxruntime and others run them: written, described, quantised, run."""

from __future__ import annotations

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path

import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from vit.errors import ConfigError
from vit.export.source import PIXELS, Answer, metadata, traced
from vit.inference.load import Trained

_ERRORS_ONLY = 3
_LIMIT = 2_000_000_000


def write(trained: Trained, merge: int, precision: str) -> bytes:
    """An ONNX model, as onnxruntime and others run it."""
    size = sum(weight.nbytes for weight in trained.model.state_dict().values())
    if size > _LIMIT:
        raise ConfigError(
            f"format=onnx: an ONNX file holds 2 GB, the weights are {size / 1e9:.1f} GB; take "
            f"format=torch or safetensors"
        )
    program = torch.onnx.export(
        traced(trained, merge, precision), dynamo=True, verbose=False,
        input_names=["images"], output_names=["logits"],
    )  # fmt: skip
    assert program is not None
    model = without_notes(program.model_proto)
    model = quantised(model) if precision == "int8" else model
    about = metadata(trained, merge, precision, PIXELS)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in about.items()})
    content: bytes = model.SerializeToString()
    return content


def run(path: Path) -> Answer:
    """With onnxruntime, by as many threads as torch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = _ERRORS_ONLY
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    return lambda images: session.run(None, {name: images})[0]


def others(path: Path) -> dict[str, Answer]:
    """Other programs that run the file as it is, where they are installed: OpenVINO, on the CPU."""
    if find_spec("openvino") is None:
        return {}
    import openvino

    core = openvino.Core()
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(path, "CPU", threads)
    return {"openvino": lambda images: compiled([images])[0]}


def without_notes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without what the exporter noted of each node's place in the source.

    Nor with the shapes of values, some of which are those from before it was optimised.
    """
    del model.graph.value_info[:], model.graph.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"  # which the exporter numbers
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    return model


def quantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with 8-bit weights, one scale per output, in its products with tokens.

    What they are multiplied with becomes 8 bits when it is computed, with one scale for a batch.
    The weights use 7 of their bits: processors without VNNI add pairs of products in 16 bits.
    """
    add_pre_process_metadata(model)  # else it is asked for, on standard error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quantize_dynamic(
            model, path, op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=True,
            weight_type=QuantType.QInt8,
        )  # fmt: skip
        return onnx.load(path)
