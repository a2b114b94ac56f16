"""Durations, cadence, schedules and seeds: pure functions of their arguments."""

import math
import random
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit.config.durations import duration_in_steps, epochs_in_steps, parse_duration
from vit.optim import schedule
from vit.optim.schedule import SCHEDULES
from vit.runtime.seeding import derive, numpy_generator, reseed
from vit.training.clock import due

UNHURRIED = settings(deadline=None)
COUNT = st.integers(1, 300)
RUNS = st.tuples(st.integers(2, 400), st.floats(0, 1), st.sampled_from(sorted(SCHEDULES)))


# Durations


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (500, (500, "")),
        (0, (0, "")),
        ("500", (500, "")),
        ("500.0", (500, "")),
        ("2ep", (2, "ep")),
        ("0.5ep", (Fraction(1, 2), "ep")),
        ("0.1 ep", (Fraction(1, 10), "ep")),
        (" 5% ", (5, "%")),
        ("2.5%", (Fraction(5, 2), "%")),
    ],
)
def test_durations_are_read_exactly(text, expected):
    assert parse_duration(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "ep", "%", "-1", -1, "-1ep", 1.5, "1.5", "1e3", "5min", "5 epochs", "5%%", "1_000", "nan",
     ".5ep", "5.ep", True, None, [1], math.nan, math.inf],
)  # fmt: skip
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match=r"duration|whole"):
        parse_duration(text)


@UNHURRIED
@given(value=st.decimals(0, 10**6, places=3), unit=st.sampled_from(["ep", "%"]))
def test_durations_keep_their_decimals(value, unit):
    assert parse_duration(f"{value}{unit}") == (Fraction(value), unit)


@pytest.mark.parametrize(
    ("text", "steps"), [(7, 7), ("2ep", 20), ("0.25ep", Fraction(5, 2)), ("5%", 6), ("100%", 120)]
)
def test_durations_in_steps(text, steps):
    assert duration_in_steps(text, Fraction(10), 120) == steps


@UNHURRIED
@given(n=COUNT, batch=COUNT, tenths=st.integers(1, 500))
def test_epochs_are_rounded_up_to_full_batches(n, batch, tenths):
    steps = epochs_in_steps(tenths / 10, n, batch)
    assert steps * batch * 10 >= tenths * n > (steps - 1) * batch * 10


# Cadence


@UNHURRIED
@given(n=COUNT, batch=COUNT, epochs=st.integers(1, 12))
def test_epoch_k_falls_due_at_its_last_image(n, batch, epochs):
    steps = epochs_in_steps(epochs, n, batch)
    fell = [step for step in range(1, steps + 1) if due(step, Fraction(n, batch))]
    assert fell == sorted({-(-k * n // batch) for k in range(1, epochs + 1)})
    if n >= batch:
        assert len(fell) == epochs  # none shares a step: each event happens exactly once


@UNHURRIED
@given(n=st.integers(1, 10**9), batch=st.integers(1, 10**6), k=st.integers(1, 10**6))
def test_due_is_exact_far_out(n, batch, k):
    every, step = Fraction(n, batch), -(-k * n // batch)
    assert due(step, every)
    if every >= 1:
        assert due(step - 1, every) == (-(-(k - 1) * n // batch) == step - 1)


@UNHURRIED
@given(every=st.integers(1, 50), step=st.integers(1, 10**12))
def test_whole_steps_fall_due_at_their_multiples(every, step):
    assert due(step, Fraction(every)) == (step % every == 0)


# Schedules


def lr_at(step, *, name, lr, steps, warmup, final):
    shape = SimpleNamespace(name=name, final=final, options={})
    config = SimpleNamespace(optim=SimpleNamespace(lr=lr), schedule=shape)
    return schedule.lr_at(config, SimpleNamespace(steps=steps, warmup=warmup), step)


@UNHURRIED
@given(run=RUNS, lr=st.floats(1e-6, 10), final=st.floats(0, 1))
def test_warm_up_rises_from_zero_to_the_peak(run, lr, final):
    steps, share, name = run
    warmup = round(share * steps)
    rates = [lr_at(s, name=name, lr=lr, steps=steps, warmup=warmup, final=final)
             for s in range(warmup + 1)]  # fmt: skip
    assert rates[-1] == pytest.approx(lr)
    assert rates == sorted(rates)
    if warmup:
        assert rates[0] == 0
        assert rates[1] == pytest.approx(lr / warmup)


@UNHURRIED
@given(run=RUNS, lr=st.floats(1e-6, 10), final=st.floats(0, 1))
def test_after_the_warm_up_it_only_falls_down_to_final(run, lr, final):
    steps, share, name = run
    warmup = share * (steps - 1)
    rates = [lr_at(s, name=name, lr=lr, steps=steps, warmup=warmup, final=final)
             for s in range(math.ceil(warmup), steps + 1)]  # fmt: skip
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(rates))
    end = lr if name == "constant" else lr * final
    assert rates[-1] == pytest.approx(end, abs=1e-12)
    assert all(end * (1 - 1e-9) - 1e-12 <= rate <= lr * (1 + 1e-12) for rate in rates)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_remembers_nothing(name):
    settings_ = {"name": name, "lr": 0.1, "steps": 50, "warmup": 7.5, "final": 0.1}
    in_order = [lr_at(step, **settings_) for step in range(51)]
    shuffled = random.Random(0).sample(range(51), 51)
    assert {step: lr_at(step, **settings_) for step in shuffled} == dict(enumerate(in_order))


@pytest.mark.parametrize(("name", "half"), [("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)])
def test_halfway_by_hand(name, half):
    assert lr_at(60, name=name, lr=1.0, steps=100, warmup=20, final=0.1) == pytest.approx(half)


def test_quarter_of_a_cosine_by_hand():
    expected = 0.5 * (1 + math.cos(math.pi / 4))
    assert lr_at(25, name="cosine", lr=1, steps=100, warmup=0, final=0) == pytest.approx(expected)


# Seeds


ARGUMENTS = st.tuples(
    st.integers(0, 2**70),
    st.sampled_from(["init", "order", "augment", "model", "val", "test"]),
    st.lists(st.integers(0, 10**9), max_size=4),
)


@UNHURRIED
@given(one=ARGUMENTS, other=ARGUMENTS)
def test_other_arguments_other_seed(one, other):
    seeds = [derive(seed, stream, *index) for seed, stream, index in (one, other)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert (seeds[0] == seeds[1]) == (one == other)


def test_neighbouring_arguments_do_not_collide():
    near = [(1, "a", 23), (12, "a", 3), (1, "a", 2, 3), (1, "a2", 3), (1, "a"), (1, "a", 0)]
    assert len({derive(*arguments) for arguments in near}) == len(near)


def test_many_steps_many_seeds():
    assert len({derive(0, "augment", step) for step in range(20_000)}) == 20_000


def test_seeds_never_change():
    # These numbers are in every run ever trained: a change breaks resume and reproduction.
    assert derive(0, "augment", 7) == 6357030091244128898
    assert derive(3, "order") == 2264897327329187938
    assert numpy_generator(0, "order", 1).permutation(8).tolist() == [2, 6, 0, 5, 3, 7, 1, 4]


def test_generators_are_fresh_each_time():
    draws = [numpy_generator(5, "order", 2).random(4).tolist() for _ in range(2)]
    assert draws[0] == draws[1] != numpy_generator(5, "order", 3).random(4).tolist()


def test_reseed_forgets_what_was_drawn():
    with torch.random.fork_rng(devices=[]):
        reseed(1, "model", 4)
        first = torch.rand(3)
        torch.rand(100)
        reseed(1, "model", 4)
        assert torch.equal(torch.rand(3), first)
        reseed(1, "model", 5)
        assert not torch.equal(torch.rand(3), first)
        torch.manual_seed(derive(1, "model", 4))
        assert torch.equal(torch.rand(3), first)


def test_wsd_stays_and_then_falls_in_the_last_fifth():
    rates = [
        lr_at(step, name="wsd", lr=2.0, steps=110, warmup=10, final=0.0) for step in range(111)
    ]
    assert rates[10:91] == pytest.approx([2.0] * 81)
    assert rates[100] == pytest.approx(1.0)
    assert rates[110] == 0.0
