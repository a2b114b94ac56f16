"""Every attention weight of a few images, for the explorer of `vit-explain`.

Legend: B batch, L blocks, H heads, T tokens (prefix + patches), V features kept of a value.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vit.data.loader import EvalLoader
from vit.inference.explain import heat_of_each, pictures_of_each, relevance, rollout
from vit.inference.load import Trained
from vit.inference.predict import answers
from vit.model.attention import Dot, masked
from vit.model.vit import Block, VisionTransformer
from vit.report.explorer import VALUES, Explored


@dataclass(frozen=True)
class Recorded:
    """The attention of one block.

    Attributes:
        weights: (B, H, T, T): how much each token (row) takes of each (column).
        log_sums: of the exponentials of each row's scores, (B, H, T): the score of a pair is the
            logarithm of its weight plus it; None where weights are no softmax.
        values: the first features of what is mixed, (B, H, T, V).
        mixed: `weights` times values, (B, H, T, V).
    """

    weights: Tensor
    log_sums: Tensor | None
    values: Tensor
    mixed: Tensor


@torch.no_grad()
def recorded_attention(
    model: VisionTransformer, images: Tensor, mask: Tensor | None = None
) -> tuple[list[Recorded], Tensor, Tensor | None]:
    """The attention of every block; how much the pooling takes of each token, (B, T); and which
    tokens exist, bool (B, T), None: all. Arguments as in `vit.inference.explain`.
    """
    found = []

    def record(score: Dot, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        q, k, v, mask = inputs
        weights = score.weights(q, k, mask)
        sums = None
        if type(score).weights is Dot.weights:  # a softmax of its logits
            sums = masked(score.logits(q, k), mask).logsumexp(dim=-1)
        found.append(Recorded(weights, sums, v[..., :VALUES], (weights @ v)[..., :VALUES]))

    with contextlib.ExitStack() as hooks:
        for block in model.blocks:
            if isinstance(block, Block):
                hooks.enter_context(block.attn.score.register_forward_hook(record))
        x, there = model.encode(images, mask)
    return found, model.pool.reading(x, model.prefix, there), there


def explore(trained: Trained, loader: EvalLoader) -> Iterator[Explored]:
    """What the explorer shows of each image of `loader` that is not damaged, in order.

    Raises:
        DataError: a worker failed.
        DivergedError: an answer is not finite.
    """
    model = trained.model
    for images, mask, index, logits in answers(trained, loader):
        best = logits.argmax(dim=-1)
        chances = trained.probabilities(logits).amax(dim=-1).tolist()
        blocks, reading, there = recorded_attention(model, images, mask)
        heats = {
            "rollout": heat_of_each(rollout(model, images, mask), mask),
            "relevance": heat_of_each(relevance(model, images, best, mask), mask),
        }
        pictures = pictures_of_each(loader.normalise.undo(images), mask)
        weights, values, mixed = (
            torch.stack([getattr(block, name) for block in blocks], dim=1).cpu()
            for name in ("weights", "values", "mixed")
        )  # B L H T ...
        sums = [block.log_sums for block in blocks if block.log_sums is not None]
        log_sums = torch.stack(sums, dim=1).cpu() if sums else None
        for i, place in enumerate(index):
            tokens = torch.arange(weights.shape[-1])
            if there is not None:
                tokens = tokens[there[i].cpu()]
            yield Explored(
                name=loader.names[place],
                picture=pictures[i],
                answer=trained.classes[int(best[i])],
                probability=chances[i],
                grid=heats["rollout"][i].shape,
                weights=weights[i][:, :, tokens][..., tokens].numpy(),
                log_sums=None if log_sums is None else log_sums[i][:, :, tokens].numpy(),
                values=values[i][:, :, tokens].numpy(),
                mixed=mixed[i][:, :, tokens].numpy(),
                reading=reading[i].cpu()[tokens].numpy(),
                heats={name: maps[i] for name, maps in heats.items()},
            )


def token_names(model: VisionTransformer) -> list[str]:
    """What the tokens before the patches are, in their order."""
    named = ((model.cls_token, "class token"), (model.dist_token, "distillation token"))
    found = [name for token, name in named if token is not None]
    return [*found, *(f"register {i + 1}" for i in range(model.config.registers))]


def formula(model: VisionTransformer) -> str:
    """How the weights are computed, as people write it; where a plug-in does not say, its name."""
    kinds = [type(block.attn.score) for block in model.blocks if isinstance(block, Block)]
    return str(vars(kinds[0]).get("formula", model.config.attention)) if kinds else ""
