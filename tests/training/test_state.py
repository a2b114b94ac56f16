"""Evaluation, and what a checkpoint carries."""

import copy
import math

import numpy as np
import pytest
import torch
from pictures import array_samples, reader
from stepping import (
    CLASSES,
    adamw_state,
    assert_equal,
    batch,
    model,
    saved,
    sgd_state,
    train,
)

from vit.config.saved import SavedBest
from vit.data.loader import EvalLoader
from vit.inference.predict import predict
from vit.model.vit import VisionTransformer
from vit.training.state import flops_per_image, parameter_count

# Evaluation


def evaluation(n, batch_size):
    return EvalLoader(array_samples(n, classes=CLASSES), batch_size, reader((8, 8)))


@pytest.mark.parametrize(("n", "batch_size"), [(37, 10), (37, 37), (37, 100), (37, 1), (1, 4)])
def test_scores_are_those_of_a_plain_loop(n, batch_size):
    built = model().train()
    predictions = predict(built, evaluation(n, batch_size), "fp32")
    exact = copy.deepcopy(built).double().eval()
    losses, ranks, best = [], [], []
    for k in range(n):
        images, labels, index, _ = evaluation(n, 1).batch(k)
        assert index.tolist() == [k]
        logits = exact(images.double())[0].tolist()
        probabilities = [math.exp(x) / sum(math.exp(y) for y in logits) for x in logits]
        losses.append(-math.log(probabilities[labels.item()]))
        ranks.append(sum(x > logits[labels.item()] for x in logits))
        best.append(max(probabilities))
    assert predictions.losses.dtype == np.float64
    np.testing.assert_allclose(predictions.losses, losses, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(predictions.probability, best, rtol=1e-4)
    assert predictions.labels.tolist() == [i % CLASSES for i in range(n)]
    assert predictions.index.tolist() == list(range(n))
    assert predictions.top.shape == (n, 5)
    scores = predictions.scores()
    assert scores["loss"] == pytest.approx(sum(losses) / n, rel=1e-5)
    assert scores["top1"] == pytest.approx(100 * sum(rank == 0 for rank in ranks) / n)
    assert scores["top5"] == pytest.approx(100 * sum(rank < 5 for rank in ranks) / n)
    assert not built.training


def test_scores_do_not_depend_on_the_batch_size():
    built = model(dropout=0.5, drop_path=0.5)
    expected = predict(built, evaluation(60, 60), "fp32")
    for batch_size in (1, 7, 59, 1000):
        other = predict(built, evaluation(60, batch_size), "fp32")
        assert np.array_equal(other.top[:, 0], expected.top[:, 0])
        assert other.scores()["top1"] == expected.scores()["top1"]
        np.testing.assert_allclose(other.losses, expected.losses, rtol=1e-4)


def test_top5_of_fewer_classes():
    torch.manual_seed(0)
    built = VisionTransformer(8, 4, 3, dim=16, depth=1, heads=2)
    torch.nn.init.normal_(built.head.weight)
    loader = evaluation(20, 8)
    loader.labels %= 3
    predictions = predict(built, loader, "fp32")
    assert predictions.top.shape == (20, 3)
    assert predictions.scores()["top5"] == 100


def test_between_batches_one_can_stop():
    calls = []
    predict(model(), evaluation(37, 10), "fp32", lambda: calls.append(1))
    assert len(calls) == 4
    with pytest.raises(KeyboardInterrupt):
        predict(model(), evaluation(37, 10), "fp32", interrupt)


def interrupt():
    raise KeyboardInterrupt


# State


def test_a_restored_state_goes_on_bit_for_bit():
    state = adamw_state(ema=0.5, dropout=0.2)
    bad = batch(9)
    bad.images[0] = math.nan
    for data in (batch(0), bad, batch(1)):
        train(state, data, lr=1e-2, clip_norm=1.0)
    state.window_means("log", reset=True)
    state.best = SavedBest(top1=50.0, loss=1.5, top5=90.0, step=2, epoch=0.5)
    state.evaluated_at, state.evals_since_best, state.seconds, state.images = 2, 1, 3.5, 24
    content = saved(state)

    other = adamw_state(ema=0.5, dropout=0.2)
    other.load_state_dict(3, content)
    assert other.step == 3
    assert other.best == state.best
    assert_equal(saved(other), content)
    for number in (4, 5):
        train(state, batch(number), lr=1e-2, clip_norm=1.0)
        train(other, batch(number), lr=1e-2, clip_norm=1.0)
    assert_equal(saved(other), saved(state))
    assert not torch.equal(content["odometer"], other.metric_sums())


def test_means_since_a_mark():
    state = sgd_state()
    for number in range(3):
        train(state, batch(number), lr=0.01)
    loss, correct, images, norms, _ = state.metric_sums().tolist()
    for _ in range(2):  # looking does not move the mark
        since = state.window_means("epoch", reset=False)
        assert since == pytest.approx(
            {"loss": loss / 24, "right": 100 * correct / 24, "grad_norm": norms / 3}
        )
    assert state.window_means("epoch", reset=True) == since
    train(state, batch(3), lr=0.01)
    later = state.window_means("epoch", reset=False)
    assert later["loss"] == pytest.approx((state.metric_sums()[0].item() - loss) / 8)
    assert later["grad_norm"] == pytest.approx(state.metric_sums()[3].item() - norms)
    assert state.window_starts["log"] == [0.0] * 5
    assert images == 24


def test_best_is_top1_then_loss():
    state = sgd_state()
    assert state.improves({"top1": 0.0, "loss": 9.0})
    state.best = SavedBest(top1=50.0, loss=1.0, top5=90.0, step=1, epoch=1.0)
    assert state.improves({"top1": 50.1, "loss": 9.0})
    assert state.improves({"top1": 50.0, "loss": 0.9})
    assert not state.improves({"top1": 50.0, "loss": 1.0})
    assert not state.improves({"top1": 49.9, "loss": 0.1})


def test_counts_of_weights_and_operations():
    built = model()
    assert parameter_count(built) == sum(p.numel() for p in built.parameters())
    built.cls_token.requires_grad_(False)
    assert parameter_count(built) == sum(p.numel() for p in built.parameters()) - 16
    tokens, patches, dim, hidden = 5, 4, 16, 64
    block = tokens * (4 * dim * dim + 2 * dim * hidden) + 2 * tokens * tokens * dim
    last = tokens * 3 * dim * dim + dim * dim + 2 * dim * hidden + 2 * tokens * dim
    products = patches * 3 * 4 * 4 * dim + block + last + dim * CLASSES
    assert flops_per_image(built) == 2 * products
