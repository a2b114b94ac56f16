"""A folder as Hugging Face's hub has it, from which timm and transformers build the model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vit.errors import ConfigError
from vit.export.source import Answer, WithPreprocessing, on_pixels, weights_file
from vit.inference.load import Trained
from vit.model.weights import timm_kwargs

_ARCHITECTURE = "vit_base_patch16_224"
"""timm's name of a plain model, all of whose arguments are given."""
_SAID_ANEW = ("num_classes", "norm_layer", "mlp_layer", "act_layer")


def write(trained: Trained, merge: int, precision: str) -> dict[str, bytes]:
    """A folder as Hugging Face's hub has it, of timm's model of the same shape."""
    try:
        config = hub_config(trained)
    except ValueError as error:
        raise ConfigError(f"format=timm: {error}; take format=onnx, torch or safetensors") from None
    weights = weights_file(trained.model.state_dict(), precision, {"format": "pt"})
    return {
        "config.json": (json.dumps(config, indent=2) + "\n").encode(),
        "model.safetensors": weights,
    }


def run(path: Path) -> Answer:
    """With timm, by its own account of the preprocessing."""
    import timm

    model = timm.create_model(f"local-dir:{path}", pretrained=True)
    seen: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return on_pixels(WithPreprocessing(model, seen))


def hub_config(trained: Trained) -> dict[str, Any]:
    """The content of config.json, of plain values, for our state dict as it is.

    Raises:
        ValueError: timm has no such model, or none that JSON can name.
    """
    config, preprocessing = trained.model.config, trained.preprocessing
    if config.mlp == "swiglu":
        raise ValueError("timm's configurations have no word for mlp=swiglu")
    if config.norm_eps != 1e-6:
        raise ValueError(f"timm's configurations have no word for norm_eps={config.norm_eps}")
    arguments = timm_kwargs(config)
    named = {k: v for k, v in arguments.items() if k not in _SAID_ANEW and v is not None}
    if config.mlp != "gelu":
        named["act_layer"] = config.mlp
    if config.norm != "layernorm":
        named["norm_layer"] = config.norm
    return {
        "architecture": _ARCHITECTURE,
        "num_classes": config.num_classes,
        "num_features": config.dim,
        "global_pool": arguments["global_pool"],
        "label_names": list(trained.classes),
        **({"problem_type": "multi_label_classification"} if trained.thresholds else {}),
        **({"calibration": asdict(trained.calibration)} if trained.calibration else {}),
        "model_args": named,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [config.channels, *config.image_size],
            "fixed_input_size": True,
            "interpolation": preprocessing["interpolation"],
            "crop_pct": preprocessing["center_crop"],
            "crop_mode": "center",
            "mean": preprocessing["mean"],
            "std": preprocessing["std"],
            "num_classes": config.num_classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
