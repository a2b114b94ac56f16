"""Numbers that are not finite are never finished work: steps, validations, whole runs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from commands import lines
from composing import composed
from stepping import bad_steps, batch, sgd_state, train, weights

from vit.artifacts import checkpoint
from vit.artifacts.run_dir import RunDir
from vit.cli import train as train_command
from vit.cli.overrides import Overrides
from vit.config.saved import SavedBest
from vit.errors import DivergedError
from vit.training import trainer

TINY = [
    "model.dim=16", "model.depth=1", "model.heads=2", "data.workers=0", "trainer.precision=fp32",
    "trainer.log_every=1", "schedule.warmup=0",
]  # fmt: skip
BLIND = ["data.val_fraction=0", "data.test_fraction=0"]


def fit(folder: Path, *overrides: str, bad: range | tuple[int, ...] = ()) -> RunDir:
    """Train `folder/run` here, where the steps of `bad` see images that are not finite."""
    real = trainer.train_step

    def spoiled(state, data, *args, **more):
        if state.step in bad:
            data.images[:] = math.nan
        real(state, data, *args, **more)

    plain = composed(*TINY, "trainer.epochs=null", *overrides)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train_step", spoiled)
        train_command.train({**plain, "name": "run", "outputs": str(folder)}, Overrides(overrides))
    return RunDir(folder / "run")


def failed(folder: Path, *overrides: str, words: str, bad: range | tuple[int, ...] = ()) -> RunDir:
    """A run that diverges, and that does so again when it is resumed."""
    with pytest.raises(DivergedError, match=words):
        fit(folder, *overrides, bad=bad)
    run = RunDir(folder / "run")
    for again in (False, True):
        if again:
            with pytest.raises(DivergedError, match=words):
                train_command.train({**composed(), "resume": str(run.path)}, Overrides([]))
        summary = run.read_summary()
        assert (summary["state"], summary["exit_code"]) == ("failed", 4)
        assert "lower optim.lr" in summary["error"]
    return run


@pytest.mark.parametrize("blind", [[], BLIND])
def test_most_steps_bad_is_diverged_wherever_they_were(tmp_path, blind):
    bad = (0, 1, 3, 4, 6, 7)
    failed(tmp_path, "trainer.steps=11", *blind, bad=bad, words="6 of 11 steps")


def test_a_run_with_some_bad_steps_is_finished(tmp_path):
    run = fit(tmp_path, "trainer.steps=10", "trainer.log_every=2", bad=range(3, 8))
    assert run.read_summary()["state"] == "finished"
    log = {line["step"]: line for line in lines(run.metrics) if line["event"] == "train"}
    for key in ("loss", "top1", "grad_norm"):
        assert [step for step, line in log.items() if line[key] is None] == [6, 8]
    assert [log[step]["bad_steps"] for step in (4, 6, 8, 10)] == [1, 3, 5, 5]


def test_a_run_that_nothing_scores_ends_with_a_finite_step(tmp_path):
    failed(tmp_path, "trainer.steps=5", *BLIND, bad=(3, 4), words="last step")


@pytest.mark.parametrize("splits", [[], ["data.val_fraction=0"], ["data.test_fraction=0"], BLIND])
def test_a_learning_rate_out_of_bounds(tmp_path, splits, capsys):
    """With a patience that the run never comes to."""
    wild = ["optim.lr=1e12", "optim.clip_norm=null", "trainer.max_bad_steps=1000000"]
    run = failed(tmp_path, "trainer.steps=8", *wild, *splits, words="finite")
    assert not run.best.is_file()
    assert " *" not in capsys.readouterr().out
    for line in lines(run.metrics):
        assert line.get("loss") != 0
    for file in run.step_files():
        assert all(bool(w.isfinite().all()) for w in checkpoint.load(file)["weights"].values())


def test_a_test_that_is_not_finite(tmp_path, monkeypatch):
    """Of weights that validation found no fault with."""
    real = trainer.Trainer._predict

    def blinded(self, model, loader, **how):
        if loader is self.parts.test:
            model.head.weight.data.fill_(math.inf)
        return real(self, model, loader, **how)

    monkeypatch.setattr(trainer.Trainer, "_predict", blinded)
    failed(tmp_path, "trainer.steps=3", words="test_loss is not finite")


def test_what_is_not_finite_is_never_the_best():
    state = sgd_state()
    for best in (None, SavedBest(top1=50.0, loss=1.0, top5=90.0, step=1, epoch=1.0)):
        state.best = best
        for odd in (math.nan, math.inf, -math.inf):
            assert not state.improves({"top1": 99.0, "loss": odd})
            assert not state.improves({"top1": odd, "loss": 0.1})


def test_a_step_whose_loss_alone_is_not_finite_is_skipped():
    """Logits beyond half of the floats: the gradient of cross-entropy is still at most 1."""
    state = sgd_state()
    with torch.no_grad():
        state.model.head.bias.copy_(torch.linspace(-1.7e38, 1.7e38, 7))
    before = weights(state.model)
    assert torch.equal(train(state, batch()), before)
    assert bad_steps(state) == [1, 1, 1, 0]
    assert math.isnan(state.window_means("log", reset=True)["loss"])
    state.model.head.bias.data.zero_()
    train(state, batch(1))
    assert math.isfinite(state.window_means("log", reset=True)["loss"])


def test_the_average_is_looked_at_too():
    state = sgd_state(ema=0.5)
    assert state.is_finite()
    next(state.ema.model.parameters()).data.view(-1)[0] = math.inf
    assert not state.is_finite()
