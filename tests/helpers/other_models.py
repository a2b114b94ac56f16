"""Small models of other libraries with random weights, and what is ours of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn

from vit.config.model import ViTConfig
from vit.model.vit import VisionTransformer
from vit.model.weights import LoadReport
from vit.training.pretrained import Pretrained
from vit.training.weight_files import load_pretrained

CLASSES = list("abcde")
TIMM: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {},
    "deit_tiny_patch16_224": {},
    "deit_small_distilled_patch16_224": {},
    "deit3_small_patch16_224": {},
    "vit_small_patch14_dinov2": {"img_size": 70},
    "vit_small_patch14_reg4_dinov2": {"img_size": 70},
    "vit_giant_patch14_dinov2": {"img_size": 70, "mlp_ratio": 5},
    "vit_small_patch16_dinov3": {"global_pool": "token"},
    "vit_small_patch16_dinov3_qkvb": {"global_pool": "avg"},
    "vit_small_plus_patch16_dinov3": {"global_pool": "token"},
    "vit_base_patch16_clip_224": {},
    "vit_base_patch16_clip_quickgelu_224": {},
    "vit_base_patch16_siglip_224": {},
    "vit_base_patch16_siglip_gap_224": {},
    "vit_so400m_patch14_siglip_224": {"img_size": 70},
    "vit_wee_patch16_reg1_gap_256": {},
    "vit_dlittle_patch16_reg1_gap_256": {},
    "vit_so150m_patch16_reg4_map_256": {},
    "vit_small_patch16_rope_224": {},
    "vit_small_patch16_rope_ape_224": {},
    "eva02_tiny_patch14_224": {"img_size": 70},
    "eva_large_patch14_196": {"img_size": 70},
}
"""Models of timm, with what differs from the sizes of `of_timm`."""
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
TEXT = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "vocab_size": 20, "projection_size": 32, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PIXELS = {"encoder_stride": 8, "num_labels": 5}
HUGGING_FACE: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(**SIZES, **PIXELS)
    ),
    "deit": lambda: transformers.DeiTForImageClassificationWithTeacher(
        transformers.DeiTConfig(**SIZES, **PIXELS)
    ),
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)),
    "dinov2 with registers": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**SIZES, use_swiglu_ffn=True)
    ),
    "dinov3": lambda: transformers.DINOv3ViTModel(
        transformers.DINOv3ViTConfig(**SIZES, num_register_tokens=3)
    ),
    "dinov3 gated": lambda: transformers.DINOv3ViTModel(
        transformers.DINOv3ViTConfig(**SIZES, num_register_tokens=3, use_gated_mlp=True,
                                     hidden_act="silu")
    ),
    "mae": lambda: transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(**SIZES, mask_ratio=0.0, decoder_num_hidden_layers=1,
                                  decoder_hidden_size=16, decoder_num_attention_heads=2,
                                  decoder_intermediate_size=16)
    ),
    "siglip": lambda: transformers.SiglipModel(
        transformers.SiglipConfig(text_config=TEXT, vision_config=SIZES)
    ),
    "clip": lambda: transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(**SIZES, projection_dim=16)
    ),
}  # fmt: skip
"""Makers of models of transformers."""


def shaken(model: nn.Module) -> nn.Module:
    """The model with random numbers in every weight, biases, norms and tokens too."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model.eval()


def of_timm(name: str, **changes: Any) -> nn.Module:
    sizes = {"embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 5, "img_size": 64}
    return shaken(timm.create_model(name, **{**sizes, **changes}))


def of_torchvision() -> nn.Module:
    return shaken(torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=5))


def of_hugging_face(kind: str) -> nn.Module:
    return shaken(HUGGING_FACE[kind]())


def noise(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def taken(place: Path, **known: Any) -> tuple[VisionTransformer, LoadReport, Pretrained]:
    """Our model of the weights there; `known` is what the user gives."""
    found = load_pretrained(str(place))
    spec = {**found.architecture, "num_classes": 5, **known}
    model = VisionTransformer(ViTConfig(**spec)).eval()
    return model, found.into(model, CLASSES), found


def assert_same(ours: VisionTransformer, expected: Tensor, size: int, *, logits: bool) -> None:
    with torch.no_grad():
        tokens = ours.forward_features(noise(size))
        found = ours.forward_head(tokens, pre_logits=not logits)
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
