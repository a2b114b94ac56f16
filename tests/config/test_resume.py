"""Going on with a run: what may change, and whose value counts."""

import re

import pytest
from composing import KEYS, UNHURRIED, changed, composed, problems, put, sized
from hypothesis import given
from hypothesis import strategies as st

from vit.cli.overrides import Overrides
from vit.cli.train import saved_settings
from vit.config.resolve import resolve
from vit.config.resume import MAY_CHANGE, changes, with_saved
from vit.config.validate import flatten, to_config, to_plain
from vit.config.yaml_files import dump_yaml
from vit.errors import ConfigError, NoCheckpointError

SAVED = flatten(to_plain(resolve(sized(composed()), precision="bf16")))
OTHER = {
    "trainer.epochs": 1000.0, "trainer.device": "cpu", "trainer.compile": True,
    "trainer.histograms": True, "trainer.minutes": 9.0,
    "trainer.log_every": 3, "trainer.save_every": "2ep", "trainer.keep": 9,
    "trainer.early_stop": 4, "data.root": "/elsewhere", "data.images": "/there", "data.workers": 2,
    "outputs": "elsewhere", "name": "other", "resume": "outputs/run", "data.timeout": 5.0,
    "data.verify": True, "data.cache_dir": "elsewhere", "data.on_bad_image": "skip",
    "data.bad_image_limit": 0.5, "data.max_pixels": 7,
    "trainer.checkpoint_activations": True, "trainer.shard": "fsdp",
    "distill.teacher": "elsewhere", "distill.weights": "elsewhere",
    "tracker.name": "other", "tracker.options": {"project": "flowers"},
}  # fmt: skip


@pytest.mark.parametrize("key", sorted(MAY_CHANGE - {"trainer.steps"}))
def test_what_may_change_is_said(key):
    told = changes(SAVED, {**SAVED, key: OTHER[key]})
    silent = key in ("outputs", "name", "resume")
    assert told == ([] if silent else [f"{key}: {SAVED[key]} -> {OTHER[key]}"])


@pytest.mark.parametrize("key", [key for key in KEYS if key not in MAY_CHANGE])
def test_what_would_make_it_another_run_is_refused(key):
    with pytest.raises(ConfigError) as raised:
        changes(SAVED, {**SAVED, key: "something else"})
    (problem,) = raised.value.problems
    assert f"{key}=something else" in problem
    assert f"{key}={SAVED[key]}" in problem
    assert "start a new run" in problem


def test_no_difference_no_words():
    assert changes(SAVED, SAVED) == []
    automatic = dict.fromkeys(("model.patch_size", "augment.flip", "trainer.precision"), "auto")
    assert changes(SAVED, {**SAVED, **automatic}) == []


def test_every_refusal_is_reported_at_once():
    wanted = {**SAVED, "seed": 5, "optim.weight_decay": 3.0, "trainer.epochs": 1.0}
    with pytest.raises(ConfigError) as raised:
        changes(SAVED, wanted)
    assert len(raised.value.problems) == 2


def test_automatic_values_stay_what_they_became():
    saved = to_plain(resolve(sized(composed()), precision="bf16"))
    kept = with_saved(saved, composed())
    for key in ("model.patch_size", "augment.flip", "augment.crop", "trainer.precision"):
        assert flatten(kept)[key] == SAVED[key] != "auto"
    assert to_config(kept) == to_config(saved)


@pytest.mark.parametrize("key", ["trainer.batch_size", "model.patch_size", "trainer.precision"])
def test_a_value_that_was_given_is_kept(key):
    wanted = composed()
    value = {"trainer.precision": "fp32"}.get(key, 1)
    put(wanted, key, value)
    assert flatten(with_saved(to_plain(sized(composed())), wanted))[key] == value


@pytest.mark.parametrize(("key", "saved"), [("trainer.device", "cpu"), ("data.workers", 3)])
def test_automatic_may_be_asked_for_where_change_is_allowed(key, saved):
    before, wanted = composed(), composed()
    put(before, key, saved)
    put(wanted, key, "auto")
    assert flatten(with_saved(before, wanted))[key] == "auto"


@UNHURRIED
@given(
    st.dictionaries(
        st.sampled_from(sorted({*KEYS} - {"trainer.minutes"})), st.sampled_from(["auto", 1, None])
    )
)
def test_with_saved_leaves_what_is_not_automatic(values):
    wanted = composed()
    for key, value in values.items():
        put(wanted, key, value)
    kept = flatten(with_saved(composed(), wanted))
    assert kept.keys() == set(KEYS)
    assert all(kept[key] == value for key, value in values.items() if value != "auto")


CHANGED = {"model__dim": 32, "data__name": "folder", "data__root": "/ä b"}


@pytest.fixture
def folder(tmp_path):
    """A run folder as far as its settings go."""
    plain = changed(**CHANGED, name=None)
    (tmp_path / "config.yaml").write_text(dump_yaml(plain), encoding="utf-8")
    return tmp_path


def test_a_saved_run_takes_the_users_values(folder):
    overrides = ["++trainer.epochs=7", "++optim.betas=[0.5,0.6]", "++data.root='/new (1)'",
                 "++trainer.early_stop=null", "++trainer.compile=true"]  # fmt: skip
    plain = saved_settings(folder, Overrides(overrides))
    assert plain["model"]["dim"] == 32
    assert plain["trainer"]["epochs"] == 7
    assert plain["trainer"]["early_stop"] is None
    assert plain["trainer"]["compile"] is True
    assert plain["optim"]["betas"] == [0.5, 0.6]
    assert plain["data"]["root"] == "/new (1)"
    assert (plain["resume"], plain["name"]) == (str(folder), None)
    assert to_config(plain)


def test_a_saved_run_without_overrides_is_itself(folder):
    plain = saved_settings(folder, Overrides([]))
    assert plain == {**changed(**CHANGED), "resume": str(folder)}


@pytest.mark.parametrize("override", ["model=small", "experiment=cifar10_quick", "~optim.lr"])
def test_a_saved_run_takes_no_group(folder, override):
    with pytest.raises(ConfigError, match="start a new run") as raised:
        saved_settings(folder, Overrides([override]))
    assert str(raised.value).startswith(override)


def test_an_unknown_key_of_a_saved_run_is_named(folder):
    found = problems(saved_settings(folder, Overrides(["++trainer.epoch=3", "++nonsense.key=3"])))
    assert any("did you mean trainer.epochs?" in problem for problem in found)
    assert any(problem.startswith("nonsense.key") for problem in found)


@pytest.mark.parametrize("override", ["++seed.x=1", "++trainer.steps.x=1"])
def test_a_value_is_no_section_of_a_saved_run(folder, override):
    with pytest.raises(ConfigError, match=override.lstrip("+").split("=")[0]):
        saved_settings(folder, Overrides([override]))


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(NoCheckpointError, match="is no run folder") as raised:
        saved_settings(tmp_path, Overrides([]))
    assert str(tmp_path) in str(raised.value)


def test_a_damaged_config_is_named(folder):
    (folder / "config.yaml").write_text("model: [", encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(str(folder / "config.yaml"))):
        saved_settings(folder, Overrides([]))


@pytest.mark.parametrize(
    ("saved", "wanted", "expected"),
    [
        ((30.0, None), ("auto", None), (30.0, None)),
        ((None, 500), ("auto", None), (None, 500)),
        ((None, 500), ("auto", 800), (None, 800)),
        ((30.0, None), (40.0, None), (40.0, None)),
    ],
)
def test_a_length_that_is_not_given_stays(saved, wanted, expected):
    def lengths(pair):
        return changed(trainer__epochs=pair[0], trainer__steps=pair[1])

    trainer = with_saved(lengths(saved), lengths(wanted))["trainer"]
    assert (trainer["epochs"], trainer["steps"]) == expected
