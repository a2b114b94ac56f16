"""Optimisers: which parameters go where, exact resume, and steps that are not finite."""

import copy
import dataclasses
import io

import pytest
import torch
from stepping import ADAMW, CPU, bad_steps, batch, model, train
from timm.optim.muon import Muon

from vit.optim.build import OPTIMIZERS, build_optimizer, step_unless
from vit.training.state import TrainState

NAMES = list(OPTIMIZERS)


def state_of(name, **changes):
    built = model()
    config = dataclasses.replace(ADAMW, name=name, **changes)
    return TrainState(built, None, build_optimizer(built, config), CPU)


def weights(state):
    return {name: p.detach().clone() for name, p in state.model.named_parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_in_one_group_and_moves(name):
    state = state_of(name)
    groups = state.optimizer.param_groups
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(map(id, state.model.parameters()))
    before = weights(state)
    for number in range(2):  # the head is zero at first, and with it the gradient of the rest
        train(state, batch(number), lr=1e-2)
    for key, now in weights(state).items():
        assert not torch.equal(now, before[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_decay_is_of_matrices_alone(name):
    state = state_of(name, weight_decay=0.3)
    decay = {id(p): g["weight_decay"] for g in state.optimizer.param_groups for p in g["params"]}
    for key, p in state.model.named_parameters():
        assert decay[id(p)] == (0.3 if state.model.decays(key) else 0), key


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_optimizer_goes_on_to_the_bit(name):
    whole = state_of(name)
    for number in range(6):
        train(whole, batch(number), lr=1e-2)
    first = state_of(name)
    for number in range(3):
        train(first, batch(number), lr=1e-2)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second = state_of(name)
    second.load_state_dict(3, torch.load(buffer, weights_only=True))
    for number in range(3, 6):
        train(second, batch(number), lr=1e-2)
    expected = weights(whole)
    for key, now in weights(second).items():
        assert torch.equal(now, expected[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_is_not_finite_changes_nothing(name):
    state = state_of(name)
    train(state, batch(0), lr=1e-2)
    before = weights(state)
    moments = copy.deepcopy(state.optimizer.state_dict()["state"])
    bad = dataclasses.replace(batch(1), images=batch(1).images * float("inf"))
    train(state, bad, lr=1e-2)
    for key, now in weights(state).items():
        assert torch.equal(now, before[key]), key
    for number, entries in state.optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(moments[number][key])), key
    assert bad_steps(state)[2] == 1


@pytest.mark.parametrize("name", [name for name in NAMES if name != "adamw"])
def test_a_step_is_taken_or_taken_back_without_asking(name):
    def moments(state):
        entries = state.optimizer.state_dict()["state"].items()
        return {
            f"{number} {key}": value.clone()
            for number, values in entries
            for key, value in values.items()
            if isinstance(value, torch.Tensor) and key != "step"
        }

    asked, unasked = state_of(name), state_of(name)
    for number, bad in enumerate([False, False, True]):
        for state in (asked, unasked):
            torch.manual_seed(number)
            for p in state.model.parameters():
                p.grad = torch.randn_like(p)
        if not bad:
            asked.optimizer.step()
        else:
            next(unasked.model.parameters()).grad[0] = torch.nan
        step_unless(unasked.optimizer, torch.tensor(bad))
        for one, other in ((weights(asked), weights(unasked)), (moments(asked), moments(unasked))):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[key], other[key]) for key in one)
    fresh = state_of(name)
    before = weights(fresh)
    for p in fresh.model.parameters():
        p.grad = torch.full_like(p, torch.inf)
    step_unless(fresh.optimizer, torch.tensor(True))
    assert all(torch.equal(now, before[key]) for key, now in weights(fresh).items())
    assert not any(moment.any() for moment in moments(fresh).values())


def test_muon_in_batches_is_timms():
    """Of the matrices of the blocks, where none is several; the others, which it updates in another
    way, stay.
    """
    ours, theirs = (state_of("muon", weight_decay=0.3, other_lr=0.0) for _ in range(2))
    ours.optimizer.stacked = {}
    theirs.optimizer.__class__ = Muon
    for number in range(4):
        for state in (ours, theirs):
            train(state, batch(number), lr=1e-2)
    for key, now in weights(ours).items():
        torch.testing.assert_close(now, weights(theirs)[key], rtol=1e-2, atol=1e-3)
    one, other = (state.optimizer.state_dict() for state in (ours, theirs))
    assert one["param_groups"] == other["param_groups"]
    assert {n: s.keys() - {"matrices"} for n, s in one["state"].items()} == {
        n: s.keys() for n, s in other["state"].items()
    }


def test_queries_keys_and_values_are_orthogonalised_each():
    state = state_of("muon", lr=0.02, weight_decay=0.0)
    train(state, batch(0), lr=0.0)
    before = weights(state)
    train(state, batch(1), lr=0.02)
    key = "blocks.0.attn.qkv.weight"
    for part in (weights(state)[key] - before[key]).chunk(3):
        values = torch.linalg.svdvals(part) / 0.02
        assert 0.95 < values.median() < 1.05
        assert (values < 1.2).all()


def test_a_run_that_began_with_them_as_one_goes_on_so():
    state = state_of("muon", lr=0.02, weight_decay=0.0)
    train(state, batch(0), lr=0.02)
    saved = copy.deepcopy(state.optimizer.state_dict())
    for of_parameter in saved["state"].values():
        of_parameter.pop("matrices", None)
    whole, apart = state_of("muon", lr=0.02, weight_decay=0.0), state
    whole.model.load_state_dict(apart.model.state_dict())
    whole.optimizer.load_state_dict(saved)
    for each in (whole, apart):
        train(each, batch(1), lr=0.02)
    for key, now in weights(whole).items():
        same = torch.equal(now, weights(apart)[key])
        assert same == (not key.endswith("attn.qkv.weight")), key


def test_muons_other_parameters_take_adamws_steps():
    muon = state_of("muon", weight_decay=0.3, lr=1e-2, other_lr=1e-2, betas=[0.9, 0.95])
    adamw = state_of("adamw", weight_decay=0.3, betas=[0.9, 0.95])
    for group in adamw.optimizer.param_groups:
        group["eps"] = muon.optimizer.param_groups[0]["eps"]
    for state in (muon, adamw):
        train(state, batch(0), lr=1e-2)
    for key, now in weights(muon).items():
        same = torch.allclose(now, weights(adamw)[key], rtol=1e-5, atol=1e-7)
        assert same != muon.model.is_hidden_matrix(key), key


def test_muon_takes_the_matrices_of_the_blocks():
    state = state_of("muon", lr=0.02, other_lr=0.001)
    hidden = {
        id(p): not group["use_fallback"]
        for group in state.optimizer.param_groups
        for p in group["params"]
    }
    for key, p in state.model.named_parameters():
        assert hidden[id(p)] == (key.startswith("blocks.") and p.ndim == 2), key
    train(state, batch(0), lr=0.01)  # half of the peak
    for group in state.optimizer.param_groups:
        assert group["lr"] == pytest.approx(0.0005 if group["use_fallback"] else 0.01)


def test_muons_update_is_orthogonal():
    """The singular values of a matrix's update are near lr sqrt(max(1, A / B)).

    But one, perhaps: along the mean of the features, which the norm before the matrix removes.
    """
    state = state_of("muon", lr=0.02, weight_decay=0.0)
    train(state, batch(0), lr=0.0)
    before = weights(state)
    train(state, batch(1), lr=0.02)
    key = "blocks.0.mlp.fc1.weight"
    update = weights(state)[key] - before[key]
    rows, columns = update.shape
    expected = 0.02 * max(1, rows / columns) ** 0.5
    values = torch.linalg.svdvals(update)
    assert (values[:-1] > 0.5 * expected).all()
    assert (values < 1.4 * expected).all()
