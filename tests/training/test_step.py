"""A training step: gradients, bad steps, randomness, loss, average and groups."""

import copy
import dataclasses
import math

import pytest
import torch
from pictures import CPU
from stepping import (
    ADAMW,
    CLASSES,
    adamw_state,
    assert_equal,
    bad_steps,
    batch,
    model,
    saved,
    sgd_state,
    train,
    trainer,
    weights,
)
from timm.loss import BinaryCrossEntropy

from vit.data.types import Batch
from vit.optim.build import build_optimizer, parameter_groups
from vit.runtime.dist import World
from vit.training import step as step_module
from vit.training.loss import LOSSES, cross_entropy
from vit.training.state import LossScale, TrainState
from vit.training.step import parts_that_fit

# Gradients


def test_a_step_follows_the_gradient():
    state, data = sgd_state(), batch()
    twin = copy.deepcopy(state.model)
    loss = cross_entropy(twin(data.images), data.targets, 0.1).mean()
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in twin.parameters()])
    after = train(state, data, lr=0.5, label_smoothing=0.1)
    torch.testing.assert_close(after, weights(twin) - 0.5 * gradient, rtol=1e-6, atol=1e-7)
    total, correct, images, norm, steps = state.metric_sums().tolist()
    assert total == pytest.approx(8 * loss.item(), rel=1e-6)
    assert correct == (twin(data.images).argmax(dim=1) == data.labels).sum()
    assert (images, steps) == (8, 1)
    assert norm == pytest.approx(gradient.norm().item(), rel=1e-5)
    assert state.step == 1
    seen = torch.cat([p.grad.flatten() for p in state.model.parameters()])
    torch.testing.assert_close(seen, gradient)  # it stays to be looked at ...

    twin.zero_grad()
    twin.load_state_dict(state.model.state_dict())
    cross_entropy(twin(data.images), data.targets, 0.1).mean().backward()
    train(state, data, lr=0.5, label_smoothing=0.1)  # ... and the next one starts anew
    for ours, theirs in zip(state.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulation_is_the_whole_batch(parts):
    whole, accumulated = sgd_state(), sgd_state()
    start = weights(whole.model)
    gradient = train(whole, batch()) - start
    other = train(accumulated, batch(), accumulate=parts) - start
    assert (other - gradient).norm() < 1e-6 * gradient.norm()
    torch.testing.assert_close(accumulated.metric_sums(), whole.metric_sums(), rtol=1e-6, atol=0)
    assert whole.step == accumulated.step == 1


class Small:
    """A device other than the CPU, with the memory for so many images."""

    type = "small"


@pytest.mark.parametrize(("room", "parts"), [(64, 1), (24, 1), (12, 2), (7, 4), (1, 24)])
def test_a_batch_is_cut_into_as_few_parts_as_fit(room, parts, monkeypatch):
    built = model()
    before = weights(built)

    real = step_module._try_out
    monkeypatch.setattr(
        step_module,
        "_try_out",
        lambda model, images, precision, device: (
            real(model, images, precision, CPU) if images <= room else out_of_memory()
        ),
    )
    config = trainer(batch_size=24, accumulate="auto")
    assert parts_that_fit(built, config, World(), Small()) == parts
    assert parts_that_fit(built, config, World(), CPU) == 1
    assert torch.equal(weights(built), before)
    assert all(p.grad is None for p in built.parameters())


def out_of_memory():
    raise torch.OutOfMemoryError("no room")


def test_without_room_for_one_image_there_is_none(monkeypatch):
    monkeypatch.setattr(step_module, "_try_out", lambda *args: out_of_memory())
    with pytest.raises(torch.OutOfMemoryError):
        parts_that_fit(model(), trainer(batch_size=8), World(), Small())


def test_clipping():
    start = weights(model())
    full = train(sgd_state(), batch()) - start
    assert full.norm() > 0.5
    clipped = train(sgd_state(), batch(), clip_norm=0.5) - start
    assert clipped.norm().item() == pytest.approx(0.5, rel=1e-4)
    torch.testing.assert_close(clipped / 0.5, full / full.norm(), rtol=0, atol=1e-4)
    state = sgd_state()
    loose = train(state, batch(), clip_norm=2 * full.norm().item()) - start
    torch.testing.assert_close(loose, full, rtol=0, atol=1e-6)
    train(state, batch(), clip_norm=0.5)
    _, _, _, norms, _ = state.metric_sums().tolist()
    assert norms > full.norm().item() + 0.6  # norms are logged as they were before clipping


def test_learning_rate_is_that_of_the_call():
    start = weights(model())
    assert torch.equal(train(sgd_state(), batch(), lr=0.0), start)
    small, large = (train(sgd_state(), batch(), lr=lr) - start for lr in (0.01, 0.02))
    torch.testing.assert_close(2 * small, large, rtol=0, atol=1e-6)


# Corrupt steps


@pytest.mark.parametrize("pixel", [math.inf, -math.inf, math.nan])
def test_a_non_finite_batch_changes_no_weight(pixel):
    state = adamw_state()
    train(state, batch(0))
    before, metric_sums = saved(state), state.metric_sums().clone()
    bad = batch(1)
    bad.images[3, 0, 0, 0] = pixel
    train(state, bad, clip_norm=1.0)
    after = saved(state)
    assert_equal(after["model"], before["model"])
    assert_equal(after["optimizer"]["state"], before["optimizer"]["state"])
    assert torch.equal(state.metric_sums(), metric_sums)
    assert bad_steps(state) == [1, 1, 1, 1]
    assert state.step == 2
    assert state.is_finite()

    moved = train(state, batch(2))
    assert not torch.equal(moved, torch.cat([v.flatten() for v in before["model"].values()]))
    assert state.is_finite()
    assert bad_steps(state) == [0, 1, 1, 1]
    assert state.metric_sums()[2] == metric_sums[2] + 8


def test_a_bad_first_step_leaves_a_fresh_optimiser():
    state, untouched = adamw_state(), adamw_state()
    bad = batch()
    bad.images[0] = math.inf
    train(state, bad)
    untouched.step = 1
    train(state, batch(1))
    train(untouched, batch(1))
    assert torch.equal(weights(state.model), weights(untouched.model))


def test_bad_steps_are_counted_in_a_row_and_in_all():
    state = adamw_state()
    for number, is_bad in enumerate([0, 1, 1, 1, 0, 0, 1, 1, 0, 1]):
        data = batch(number)
        if is_bad:
            data.images[0] = math.nan
        train(state, data)
    assert bad_steps(state) == [1, 3, 6, 9]
    assert state.metric_sums()[2] == 4 * 8


def test_one_bad_part_spoils_the_whole_step():
    state = adamw_state()
    before = weights(state.model)
    bad = batch()
    bad.images[7] = math.inf
    assert torch.equal(train(state, bad, accumulate=4), before)
    assert bad_steps(state) == [1, 1, 1, 0]


# Model randomness


@pytest.mark.parametrize("rates", [{"dropout": 0.3}, {"drop_path": 0.5}])
def test_dropout_is_a_function_of_seed_step_rank_and_part(rates):
    def at(step=0, **options):
        state = sgd_state(**rates)
        state.step = step
        return train(state, batch(), lr=0.1, **options)

    first = at()
    torch.manual_seed(99)
    torch.rand(5)
    assert torch.equal(at(), first)
    for other in (at(step=1), at(seed=1), at(rank=1)):
        assert not torch.allclose(other, first, atol=1e-4)


def test_parts_of_a_batch_have_their_own_dropout():
    half = batch(size=4)
    twice = Batch(*(torch.cat([t, t]) for t in (half.images, half.labels, half.targets)))
    one = train(sgd_state(dropout=0.3), half, lr=0.1, batch_size=4)
    both = train(sgd_state(dropout=0.3), twice, lr=0.1, accumulate=2)
    assert not torch.allclose(one, both, atol=1e-4)
    plain = train(sgd_state(), half, lr=0.1, batch_size=4)
    torch.testing.assert_close(train(sgd_state(), twice, lr=0.1, accumulate=2), plain)


def test_a_step_puts_the_model_into_training():
    state = sgd_state(dropout=0.3)
    state.model.eval()
    assert not torch.equal(train(state, batch()), train(sgd_state(), batch()))


# Loss


def test_cross_entropy_of_soft_and_smoothed_targets():
    torch.manual_seed(0)
    logits, targets = torch.randn(6, CLASSES) * 3, torch.rand(6, CLASSES).softmax(dim=1)
    for smoothing in (0.0, 0.1, 0.5):
        smooth = (1 - smoothing) * targets.double() + smoothing / CLASSES
        expected = -(smooth * logits.double().log_softmax(dim=1)).sum(dim=1)
        losses = cross_entropy(logits, targets, smoothing)
        assert losses.shape == (6,)
        torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)


def test_cross_entropy_is_computed_in_fp32():
    logits = torch.randn(4, CLASSES).bfloat16()
    targets = torch.eye(CLASSES)[:4]
    losses = cross_entropy(logits, targets)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, cross_entropy(logits.float(), targets))


def test_bf16_trains_nearly_like_fp32():
    start = weights(model())
    exact = train(sgd_state(), batch()) - start
    rough = train(sgd_state(), batch(), precision="bf16") - start
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert torch.cosine_similarity(exact, rough, dim=0) > 0.99


def test_fp16_trains_nearly_like_fp32_and_its_scale_leaves_no_trace():
    start = weights(model())
    exact = train(sgd_state(), batch()) - start
    scaled = sgd_state()
    scaled.loss_scale = LossScale(CPU)
    scaled.loss_scale.factor.fill_(256.0)  # of the first it finds, by bad steps
    rough = train(scaled, batch(), precision="fp16") - start
    assert not torch.equal(exact, rough)
    assert torch.cosine_similarity(exact, rough, dim=0) > 0.99
    assert rough.norm() == pytest.approx(exact.norm().item(), rel=0.01)
    assert scaled.metric_sums()[3] == pytest.approx(exact.norm().item(), rel=0.01)
    in_fp32 = sgd_state()
    in_fp32.loss_scale = LossScale(CPU)  # a power of two changes no bit
    assert torch.equal(train(in_fp32, batch()) - start, exact)


def test_the_loss_scale_falls_after_a_bad_step_and_rises_after_many_good_ones(monkeypatch):
    monkeypatch.setattr(LossScale, "GROWS_AFTER", 3)
    state = adamw_state()
    state.loss_scale = LossScale(CPU)
    before = weights(state.model)
    factors = []
    for number in range(7):
        shown = batch(number)
        if number == 1:
            shown.images[0] = math.inf
            unchanged = weights(state.model)
        train(state, shown)
        factors.append(state.loss_scale.factor.item())
        if number == 1:
            assert torch.equal(weights(state.model), unchanged)
    assert factors == [2.0**k for k in (16, 15, 15, 15, 16, 16, 16)]
    assert not torch.equal(weights(state.model), before)


def test_gradients_that_fp16_rounds_to_zero_are_seen_through_the_scale():
    seen = []
    for scale in (None, LossScale(CPU)):
        state = sgd_state()
        state.loss_scale = scale
        shown = batch()
        faint = Batch(shown.images, shown.labels, shown.targets * 1e-8)
        train(state, faint, precision="fp16", label_smoothing=0.0)
        seen.append(sum(int(p.grad.count_nonzero()) for p in state.model.parameters()))
    assert seen[0] == 0
    assert seen[1] > 7000


# Average and groups


def test_ema_is_the_formula():
    state = sgd_state(ema=0.3)
    expected = weights(state.model).double()
    decays = []
    for step in range(6):
        current = train(state, batch(step), lr=0.05).double()
        decays.append(min(0.3, (1 + step) / (10 + step)))
        expected = decays[-1] * expected + (1 - decays[-1]) * current
        torch.testing.assert_close(weights(state.ema.model).double(), expected, rtol=0, atol=1e-6)
    assert decays[0] == 0.1
    assert decays[-1] == 0.3
    assert state.eval_model is state.ema.model
    assert sgd_state().eval_model is not None
    assert not any(p.requires_grad for p in state.ema.model.parameters())


def test_bce_is_timms():
    logits, labels = torch.randn(6, CLASSES), torch.arange(6)
    targets = torch.nn.functional.one_hot(labels, CLASSES).float()
    for smoothing in (0.0, 0.1):
        theirs = BinaryCrossEntropy(smoothing=smoothing)(logits, labels)
        ours = LOSSES["bce"](logits, targets, smoothing)
        assert ours.shape == (6,)
        torch.testing.assert_close(ours.mean(), theirs)


def test_only_matrices_decay():
    built = model()
    decay, plain = parameter_groups(built, ADAMW)
    assert (decay["weight_decay"], plain["weight_decay"]) == (0.1, 0)
    assert all(p.ndim > 1 for p in decay["params"])
    tokens = [built.pos_embed, built.cls_token]
    assert all(p.ndim == 1 or any(p is token for token in tokens) for p in plain["params"])
    everything = [*decay["params"], *plain["params"]]
    assert len({id(p) for p in everything}) == len(everything) == len(list(built.parameters()))


def test_layer_decay_slows_what_is_near_the_image():
    built = model()
    groups = parameter_groups(built, dataclasses.replace(ADAMW, layer_decay=0.5))
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    depth = len(built.blocks)
    for name, p in built.named_parameters():
        assert scales[id(p)] == 0.5 ** (depth + 1 - built.depth_of(name)), name
    assert scales[id(built.head.weight)] == 1.0
    assert scales[id(built.patch_embed.proj.weight)] == 0.5 ** (depth + 1)

    config = dataclasses.replace(ADAMW, layer_decay=0.5, weight_decay=0.0)
    state = TrainState(built, None, build_optimizer(built, config), CPU)
    train(state, batch(0), lr=1e-3)
    rates = {group["lr"] for group in state.optimizer.param_groups}
    assert rates == {1e-3 * 0.5**k for k in range(depth + 2)}


def test_weight_decay_reaches_the_weights():
    built = model()
    before = {name: p.detach().clone() for name, p in built.named_parameters()}
    optimizer = build_optimizer(built, ADAMW)
    for p in built.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in built.named_parameters():
        factor = 1 - ADAMW.lr * ADAMW.weight_decay if built.decays(name) else 1
        torch.testing.assert_close(p.detach(), before[name] * factor, rtol=1e-6, atol=0)
