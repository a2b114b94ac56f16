"""A model as the configuration from which timm and Hugging Face's transformers build it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vit.config.model import ViTConfig
from vit.model.weights import timm_kwargs

_ARCHITECTURE = "vit_base_patch16_224"
"""timm's name of a plain model, all of whose arguments are given."""
_SAID_ANEW = ("num_classes", "norm_layer", "mlp_layer", "act_layer")


def hub_config(
    config: ViTConfig, preprocessing: Mapping[str, Any], classes: Sequence[str]
) -> dict[str, Any]:
    """The content of config.json, of plain values, for our state dict as it is.

    Args:
        config: the model's architecture.
        preprocessing: of its images.
        classes: names of its logits.

    Raises:
        ValueError: timm has no such model, or none that JSON can name.
    """
    if config.mlp != "gelu":
        raise ValueError(f"timm's configurations have no word for mlp={config.mlp}")
    arguments = timm_kwargs(config)
    named = {key: value for key, value in arguments.items() if key not in _SAID_ANEW}
    named = {key: value for key, value in named.items() if value is not None}
    if config.norm != "layernorm":
        named["norm_layer"] = config.norm
    return {
        "architecture": _ARCHITECTURE,
        "num_classes": config.num_classes,
        "num_features": config.dim,
        "global_pool": arguments["global_pool"],
        "label_names": list(classes),
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
