"""Explanations find the patch that decides: one is planted in noise, so the answer is known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vit.inference import explain
from vit.inference.explain import class_attention, relevance, rollout
from vit.model.pooling import POOLINGS
from vit.model.vit import VisionTransformer

pytestmark = pytest.mark.slow

ROWS, COLUMNS, PATCH = 5, 6, 4


def planted(count: int, seed: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise with one bright patch: images, whether it is red, green, blue or absent (3), where.

    Without images that have none, a colour could be told by the absence of the two others.
    """
    pixels = 0.5 * torch.randn(count, 3, ROWS * PATCH, COLUMNS * PATCH, generator=seed)
    labels = torch.randint(4, (count,), generator=seed)
    where = torch.randint(ROWS * COLUMNS, (count,), generator=seed)
    cells = pixels.view(count, 3, ROWS, PATCH, COLUMNS, PATCH)
    colour = 2 * torch.eye(4, 3)[labels]
    row, column = where // COLUMNS, where % COLUMNS
    cells[torch.arange(count), :, row, :, column] += colour[:, :, None, None]
    return pixels, labels, where


@pytest.fixture(scope="module", params=POOLINGS)
def finder(request) -> VisionTransformer:
    """A model that was trained on planted patches for some seconds."""
    seed, steps = torch.Generator().manual_seed(0), 200
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VisionTransformer(
            image_size=(ROWS * PATCH, COLUMNS * PATCH),
            patch_size=PATCH,
            num_classes=4,
            dim=32,
            depth=2,
            heads=2,
            pool=request.param,
        )
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        pixels, labels, _ = planted(64, seed)
        optimiser.zero_grad()
        F.cross_entropy(model(pixels), labels).backward()
        optimiser.step()
    return model.eval()


def fresh(model: VisionTransformer) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images with a patch that the model has not seen, and classifies well."""
    pixels, labels, where = planted(600, torch.Generator().manual_seed(1))
    right = model(pixels).argmax(dim=1) == labels
    assert right.float().mean() > 0.95
    return tuple(part[right & (labels < 3)] for part in (pixels, labels, where))


def found(values: torch.Tensor, where: torch.Tensor) -> float:
    """Percentage of maps (B, rows, columns) whose largest value is at the planted patch."""
    return 100 * (values.flatten(1).argmax(dim=1) == where).float().mean().item()


LEAST = {
    "cls": {"relevance": 95, "rollout": 95, "attention": 95},
    "mean": {"relevance": 95, "rollout": 95, "attention": 85},
    "attention": {"relevance": 95, "rollout": 70},
    "map": {"relevance": 95, "rollout": 70},
}
"""Percent. Measured 100, but for the attention of `mean` (96) and the rollout of `attention` (86;
74 to 100 on other seeds and tasks like this). The attention of `attention` is left out: averaged
over blocks and heads it finds 41. That of the last block alone, which is between mixtures of
patches, finds 99, 75 and 28.
"""


def test_the_patch_that_decides_is_the_largest(finder):
    pixels, labels, where = fresh(finder)
    assert len(where) > 300
    scores = {
        "relevance": found(relevance(finder, pixels, labels), where),
        "rollout": found(rollout(finder, pixels), where),
        "attention": found(class_attention(finder, pixels).mean(dim=(1, 2)), where),
    }
    least = LEAST[finder.config.pool]
    assert all(scores[name] >= percent for name, percent in least.items()), scores


@pytest.mark.parametrize("finder", ["cls"], indirect=True)
def test_by_the_true_gradient_of_the_norms_the_patch_would_be_missed(finder, monkeypatch):
    """Why there is `detached_norm`: the class token is full of the patch, more changes nothing."""
    pixels, labels, where = fresh(finder)
    monkeypatch.setattr(explain, "detached_norm", lambda norm, x: norm.forward(x))
    assert found(relevance(finder, pixels, labels), where) < 60


@pytest.mark.parametrize("finder", ["cls", "mean"], indirect=True)
def test_what_speaks_against_a_class_is_not_relevant(finder):
    """A red patch, asked for the class green."""
    pixels, labels, where = fresh(finder)
    assert found(relevance(finder, pixels, (labels + 1) % 3), where) < 10
