"""Small models with random weights, and images for them."""

import torch

from vit.model.vit import VisionTransformer

SMALL = {"image_size": 16, "patch_size": 4, "num_classes": 5, "dim": 32, "depth": 3, "heads": 4}


def small(**changes):
    """A model with random weights everywhere, also where they start at zero."""
    torch.manual_seed(0)
    model = VisionTransformer(**{**SMALL, **changes}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def images(*size, batch=2):
    height, width = size or (16, 16)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, height, width, generator=generator)
