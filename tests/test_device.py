"""What is computed with is on the device, and none of it float64, which Apple's GPUs lack.

A device that computes nothing stands in: torch knows where fake tensors are, and raises in the line
where two devices meet.
"""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pictures import CPU, array_samples, augmentation, reader, settings_of
from stepping import trainer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vit.config.schema import DistillConfig, OptimConfig
from vit.data.augment.policies import POLICIES
from vit.data.loader import EvalLoader, TrainLoader
from vit.data.types import Batch
from vit.inference.explain import attention_distance, patch_filters, position_similarity
from vit.inference.pictures import METHODS
from vit.inference.predict import predict
from vit.model.attention import SCORES
from vit.model.layers import MLPS, NORMS
from vit.model.merging import merged
from vit.model.pooling import POOLINGS
from vit.model.positions import POSITIONS
from vit.model.vit import VisionTransformer
from vit.optim.build import OPTIMIZERS, build_optimizer
from vit.optim.ema import Ema
from vit.runtime.dist import World
from vit.training.distill import Teacher
from vit.training.loss import DISTILLATIONS, LOSSES, Loss
from vit.training.state import TrainState
from vit.training.step import train_step

META = torch.device("meta")
TABLES = {"positions": POSITIONS, "pool": POOLINGS, "attention": SCORES, "norm": NORMS, "mlp": MLPS}
MORE = {
    "registers": 2, "qk_norm": True, "layer_scale": 0.1, "drop_path": 0.1, "dropout": 0.1,
    "patch_dropout": 0.5, "pre_norm": True, "pooled_norm": True, "distillation_token": True,
}  # fmt: skip
COUNT = max(map(len, TABLES.values()))


class Fake(FakeTensorMode):
    """The copy of a model is in the mode of the model."""

    def __deepcopy__(self, memo):
        return self


class NoFloat64(TorchDispatchMode):
    """Operations that give float64 or complex128 raise."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        wide = (torch.float64, torch.complex128)
        assert not any(getattr(leaf, "dtype", None) in wide for leaf in tree_leaves(made)), func
        return made


def entry(table, number):
    return list(table)[number % len(table)]


def model(device, **changes):
    with device:
        return VisionTransformer(16, 4, 3, dim=16, depth=2, heads=2, **changes)


def state_of(built, device, optimizer="lion"):
    settings = settings_of("optim", optimizer) | {"lr": 1e-3, "other_lr": 1e-3}
    built_for = build_optimizer(built, OptimConfig(**settings))
    return TrainState(built, Ema(built, 0.9), built_for, device)


def step(state, batches, device, number=0):
    config = trainer(batch_size=4, accumulate=2, loss=entry(LOSSES, number))
    run = SimpleNamespace(trainer=config, data=SimpleNamespace(mean=[0.5] * 3, std=[0.2] * 3))
    teacher = Teacher(model(device), [0.4] * 3, [0.3] * 3, (16, 16), run, device)
    loss = Loss(config, DistillConfig("x", None, entry(DISTILLATIONS, number), 0.5, 2.0), teacher)
    for batch in batches:
        train_step(
            state, batch, 1e-3, seed=0, world=World(), config=config, loss=loss, clip_norm=1.0,
            device=device,
        )  # fmt: skip


@pytest.mark.parametrize("number", range(COUNT))
def test_all_of_a_model_is_on_its_device(number, monkeypatch):
    """Every entry of every table occurs in one of the models."""
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda *args, **options: None)  # reads back
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())
    shape = {option: entry(table, number) for option, table in TABLES.items()}
    with Fake(allow_non_fake_inputs=True):
        state = state_of(model(META, **shape, **(MORE if number % 3 else {})), META)
        images, small = torch.randn(4, 3, 16, 16, device=META), torch.randn(4, 3, 8, 8, device=META)
        labels, targets = torch.zeros(4, device=META).long(), torch.ones(4, 3, device=META)
        mask = torch.ones(4, 16, device=META).bool()
        batches = Batch(small, labels, targets), Batch(images, labels, targets, mask)
        with NoFloat64():
            step(state, batches, META, number)
            built = state.eval_model.eval()
            answers = [method(built, images, labels, mask) for method in METHODS.values()]
            answers += [merged(built, 2)(images), attention_distance(built, images)]
            answers += [patch_filters(built), position_similarity(built)]
        assert {answer.device for answer in answers if answer is not None} == {META}
        state.unread.clear()  # whose numbers nobody knows
        kept = [t for t in tree_leaves(state.state_dict()) if isinstance(t, torch.Tensor)]
        assert {tensor.device for tensor in kept} == {CPU}


@pytest.mark.parametrize("policy", POLICIES)
def test_batches_and_scores_need_no_float64(policy, monkeypatch):
    monkeypatch.setattr("vit.data.reading.transform.widest_float", lambda _: torch.float32)
    samples, read = array_samples(20, (16, 16)), reader((16, 16))
    config = augmentation(
        "strong", policy=policy, crop="resized", color_jitter=0.3, erasing=0.5, mix_probability=0.8
    )
    loader = TrainLoader(samples, 3, 8, config, "loss", 0, read, World())
    padded = TrainLoader(samples, 3, 8, replace(config, crop="padded"), "loss", 0, read, World())
    scored = EvalLoader(samples, 8, read)
    built = model(CPU)
    with NoFloat64():
        batches = [loader.batch_at(0), padded.batch_at(1)]
        predictions = predict(built, scored, "fp32", logits=True, mirrored=True)
    assert all(batch.images.isfinite().all() for batch in batches)
    assert predictions.losses.dtype == "float64"  # what is summed


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_need_no_float64(optimizer):
    state = state_of(model(CPU), CPU, optimizer)
    targets = torch.eye(3)[[0, 1, 2, 0]]
    batch = Batch(torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0]), targets)
    with NoFloat64():
        step(state, [batch, batch], CPU)
    assert state.metric_sums().dtype == torch.float64
    assert state.metric_sums()[[2, 4]].tolist() == [8, 2]
