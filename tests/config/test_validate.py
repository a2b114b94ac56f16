"""Settings: every mistake is named with its remedy, what is saved is what runs."""

import math
import re

import pytest
from composing import KEYS, UNHURRIED, changed, composed, outcome, problems, put
from hypothesis import given, settings
from hypothesis import strategies as st

from vit.config.commands import EvalConfig
from vit.config.telling import telling
from vit.config.validate import checked, flatten, to_config, to_plain
from vit.config.yaml_files import dump_yaml, load_yaml
from vit.errors import ConfigError, nearest

# Mistakes


def test_all_mistakes_are_reported_at_once():
    plain = changed(
        trainer__epoch=10, optm={"lr": 1}, optim__weight_decay="much", model__dim=64, model__heads=3
    )
    del plain["data"]["mirror"]
    found = problems(plain)
    for words in (
        "trainer.epoch is no known key; did you mean trainer.epochs?",
        "optm.lr is no known key; did you mean optim.lr?",
        "optim.weight_decay=much must be a number",
        "model.dim=64 is not divisible by model.heads=3; try 63 or 66",
        "data.mirror is missing",
    ):
        assert sum(words in problem for problem in found) == 1, words
    assert len(found) == 5


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("trainer.epoch", "trainer.epochs"),
        ("model.dims", "model.dim"),
        ("modle.dim", "model.dim"),
        ("lr", "optim.lr"),
        ("warmup", "schedule.warmup"),
        ("batchsize", "trainer.batch_size"),
        ("data.batch_size", "trainer.batch_size"),
        ("image_size", "data.image_size"),
        ("optim.warmup", "schedule.warmup"),
        ("trainer.lr", "optim.lr"),
        ("trainer.warmup", "schedule.warmup"),
    ],
)
def test_the_nearest_key_is_suggested(typo, meant):
    assert nearest(typo, KEYS) == meant


def test_nothing_is_suggested_for_gibberish():
    assert nearest("xyzzy", KEYS) is None
    (problem,) = problems({**composed(), "xyzzy": 1})
    assert problem == "xyzzy is no known key; --help lists all keys"


@pytest.mark.parametrize("key", KEYS)
def test_every_key_must_have_a_value(key):
    plain = composed()
    *sections, name = key.split(".")
    del (plain[sections[0]] if sections else plain)[name]
    assert any(problem.startswith(f"{key} is missing") for problem in problems(plain))


@pytest.mark.parametrize(
    "section", [key for key, value in composed().items() if isinstance(value, dict)]
)
def test_a_section_is_no_value(section):
    assert problems({**composed(), section: 3}) == [
        f"{section}=3 is a group of keys; set e.g. {section}.<key>"
    ]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("trainer.batch_size", 1.5, "must be a whole number"),
        ("trainer.batch_size", True, "must be a whole number"),
        ("trainer.batch_size", "64", "must be a whole number"),
        ("trainer.batch_size", 0, "must be 1 or more"),
        ("trainer.compile", 1, "must be true or false"),
        ("trainer.compile", "yes", "must be true or false"),
        ("trainer.keep", 1, "must be 2 or more"),
        ("trainer.epochs", "many", "must be a number or auto or null"),
        ("trainer.precision", "fp8", "must be one of auto, bf16, fp16, fp32, tf32"),
        ("trainer.precision", "16-mixed", "(did you mean fp16?)"),
        ("trainer.device", "cuda:0", "(did you mean cuda?)"),
        ("data.val_fraction", 1, "must lie in [0, 1)"),
        ("data.workers", -1, "must be 0 or more or auto"),
        ("data.image_size", 3, "must lie in [4, 4096]"),
        ("data.std", [0.0], "must lie in"),
        ("data.mean", 0.5, "must be a list"),
        ("optim.betas", [0.9], "must have 2 entries"),
        ("optim.betas", [0.9, 1], "must lie in [0, 1)"),
        ("optim.weight_decay", math.nan, "must lie in"),
        ("optim.clip_norm", 0, "1e-12"),
        ("schedule.warmup", "101%", "must be at most 100%"),
        ("schedule.warmup", "5min", "steps (500), epochs (2ep) or a share of the run (5%)"),
        ("trainer.save_every", 0, "must be more than 0"),
        ("trainer.save_every", "0ep", "must be more than 0"),
        ("trainer.eval_every", 1.5, "epochs (2ep)"),
        ("trainer.eval_every", None, "epochs (2ep)"),
        ("name", "a b", "letters, digits, '.', '_' and '-'"),
        ("name", "../a", "letters, digits"),
        ("name", ".a", "letters, digits"),
        ("name", "", "letters, digits"),
        ("name", "größe", "letters, digits"),
        ("seed", None, "must be a whole number"),
        ("outputs", None, "must be text"),
        ("outputs", "", "must"),
    ],
)
def test_a_bad_value_is_named_with_what_is_legal(key, value, words):
    plain = composed()
    put(plain, key, value)
    (problem,) = problems(plain)
    assert problem.startswith(f"{key}=")
    assert words in problem


@pytest.mark.parametrize(
    ("key", "value"), [("name", "a b"), ("trainer.epochs", math.inf), ("optim.clip_norm", 0)]
)
def test_complaints_about_optional_values_are_english(key, value):
    plain = composed()
    put(plain, key, value)
    assert not re.search(r"be (hold|lie|have|must|at most)", problems(plain)[0])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model__dim": 200, "model__heads": 3}, "try 198 or 201"),
        (
            {"model__dim": 66, "model__heads": 6, "model__positions": "sincos2d"},
            "try model.dim=60 or 72",
        ),
        (
            {"model__dim": 7, "model__heads": 1, "model__positions": "sincos1d"},
            "try model.dim=6 or 8",
        ),
        ({"data__image_size": 32, "model__patch_size": 5}, "try 2 or 4"),
        ({"data__image_size": 131}, "try data.image_size=128"),
        ({"trainer__epochs": None}, "e.g. trainer.epochs=10"),
        ({"trainer__epochs": 3, "trainer__steps": 5}, "give only one"),
        ({"trainer__accumulate": 3}, "try 63 or 66"),
        ({"trainer__batch_size": 63, "augment__mixup": 0.2}, "try 62 or 64"),
        ({"trainer__batch_size": 1, "augment__cutmix": 1}, "try 2"),
        ({"trainer__early_stop": 3, "data__val_fraction": 0}, "try data.val_fraction=0.1"),
        ({"data__val_fraction": 0.5, "data__test_fraction": 0.5}, "try 0.1 each"),
        ({"data__mean": [0.5] * 3}, "1 (gray) or 3"),
        ({"data__mean": [], "data__std": []}, "1 (gray) or 3"),
        ({"data__name": "folder", "data__root": None}, "data.root=<folder"),
        ({"data__root": "/photos"}, "data=folder data.root=/photos"),
        ({"resume": "auto"}, "needs name="),
        ({"optim__name": "muon", "optim__lr": 0.0}, "try optim.lr=0.02"),
    ],
)
def test_a_contradiction_is_named_with_its_remedy(values, words):
    (problem,) = problems(changed(**values))
    assert words in problem
    assert any(f"{key.replace('__', '.')}" in problem for key in values)


def test_sharding_goes_with_adamw_alone():
    sharded = changed(trainer__shard="fsdp", optim__name="lion")
    assert problems(sharded, 2) == [
        "trainer.shard=fsdp was not tried with optim=lion; choose optim=adamw"
    ]
    assert to_config(changed(trainer__shard="fsdp"), 2).trainer.shard == "fsdp"


@pytest.mark.parametrize(("world_size", "legal"), [(1, True), (2, True), (3, False), (128, False)])
def test_a_batch_is_shared_by_all_processes(world_size, legal):
    plain = changed(trainer__batch_size=64, trainer__accumulate=2)
    if legal:
        assert to_config(plain, world_size).trainer.batch_size == 64
    else:
        (problem,) = problems(plain, world_size)
        assert f"{world_size} processes" in problem


@UNHURRIED
@given(dim=st.integers(1, 2000), heads=st.integers(1, 64))
def test_the_remedy_for_heads_is_one(dim, heads):
    plain = changed(model__dim=dim, model__heads=heads)
    if dim % heads == 0:
        assert to_config(plain).model.dim == dim
    else:
        remedies = problems(plain)[0].split("; try ")[1].split(" or ")
        for remedy in remedies:
            assert to_config(changed(model__dim=int(remedy), model__heads=heads))


@UNHURRIED
@given(size=st.integers(4, 300), patch=st.integers(1, 320))
def test_the_remedy_for_patches_is_one(size, patch):
    plain = changed(data__image_size=size, model__patch_size=patch)
    if size % patch == 0:
        assert to_config(plain).model.patch_size == patch
    else:
        remedies = problems(plain)[0].split("; try ")[1].split(" or ")
        for remedy in remedies:
            assert to_config(changed(data__image_size=size, model__patch_size=int(remedy)))


@UNHURRIED
@given(size=st.integers(4, 4096))
def test_the_remedy_for_image_sizes_is_one(size):
    for problem in outcome(changed(data__image_size=size))[1]:
        remedy = int(problem.split("try data.image_size=")[1])
        assert to_config(changed(data__image_size=remedy))


# Anything at all

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 5000),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["auto", "null", "cpu", "cls", "5%", "2ep", "1e400ep", "folder", "sincos2d"]),
)
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.lists(st.floats(0, 1), min_size=1, max_size=3),
    st.dictionaries(st.text(max_size=4), SCALARS, max_size=2),
)


def check_value(key, value):
    """Legal, and then it is in the config; else a ConfigError that names the key, nothing else."""
    plain = composed()
    put(plain, key, value)
    config, found = outcome(plain)
    assert (config is None) == bool(found)
    spelt = (key, f"{key.removesuffix('.name')}=")  # data.name=folder is data=folder
    assert all(any(words in problem for words in spelt) for problem in found)
    if config is None:
        return
    assert flatten(to_plain(config))[key] == value
    assert to_config(to_plain(config)) == config
    assert load_yaml(dump_yaml(to_plain(config)), "memory") == to_plain(config)


@settings(deadline=None, max_examples=400)
@given(key=st.sampled_from(KEYS), value=VALUES)
def test_any_value_is_taken_or_refused_by_name(key, value):
    check_value(key, value)


@pytest.mark.parametrize("key", ["trainer.batch_size", "trainer.epochs", "seed"])
def test_a_number_beyond_all_floats(key):
    check_value(key, 10**400)


@pytest.mark.parametrize("key", KEYS)
def test_odd_values_of_every_key(key):
    for value in (None, True, -1, 1e300, math.nan, "\n", [], [None], {}, {"a": 1}):
        check_value(key, value)


JUNK = st.recursive(
    SCALARS,
    lambda inner: st.dictionaries(
        st.sampled_from(["data", "model", "trainer", "name", "dim", "x", ""]), inner, max_size=4
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=60)
@given(junk=st.dictionaries(st.sampled_from([*composed(), "x"]), JUNK))
def test_any_tree_is_taken_or_refused(junk):
    for plain in (junk, {**composed(), **junk}):
        config, found = outcome(plain)
        assert (config is None) == bool(found)
        assert all(problem.strip() for problem in found)
        if config is not None:
            assert to_config(to_plain(config)) == config


# Text that a config is saved as


TEXT = st.text(min_size=1)


@UNHURRIED
@given(root=TEXT, outputs=TEXT, lr=st.floats(0, 1e12), seed=st.integers(0, 2**63))
def test_what_is_saved_is_what_is_loaded(root, outputs, lr, seed):
    config = to_config(
        changed(data__name="folder", data__root=root, outputs=outputs, optim__lr=lr, seed=seed)
    )
    assert to_config(load_yaml(dump_yaml(to_plain(config)), "memory")) == config


def test_the_one_character_that_yaml_loses_is_escaped():
    assert load_yaml(dump_yaml({"outputs": "a\x85b"}), "memory") == {"outputs": "a\x85b"}


@pytest.mark.parametrize("text", ["", "[1]", "3", "a: [", "a: !!python/object:os.system {}", "\0",
                                  "a: " + "[" * 9999, "a: 2001-99-99", "a: " + "9" * 5000,
                                  "a: &a [*a]", "a: &a {b: *a}"])  # fmt: skip
def test_text_that_is_no_config_is_refused_with_its_file(text):
    with pytest.raises(ConfigError, match=r"^outputs/run/config\.yaml"):
        load_yaml(text, "outputs/run/config.yaml")


def test_evaluation_settings_are_checked_too():
    plain = {"checkpoint": "a", "split": "test", "images": None, "device": "auto", "output": None,
             "tta": "none", "merge": 0, "report": True, "corruptions": False,
             "calibration": "auto",
             "data": {"root": None, "image_size": None, "workers": "auto", "on_bad_image": None,
                      "bad_image_limit": None}}  # fmt: skip
    assert checked(EvalConfig, plain).data.workers == "auto"
    with pytest.raises(ConfigError) as raised:
        checked(EvalConfig, {**plain, "split": "train", "spilt": 1})
    assert len(raised.value.problems) == 2
    assert "did you mean split?" in str(raised.value)


def test_what_tells_a_run_from_others_is_what_is_not_usual():
    usual = telling(to_config(composed()))
    assert usual.keys() == {"seed", "optim.lr", "optim.weight_decay", "trainer.epochs",
                            "trainer.batch_size", *(f"{group}.name" for group in (
                                "data", "model", "augment", "optim", "schedule"))}  # fmt: skip
    own = ("augment=strong", "augment.cutmix=0.7", "data.workers=2", "model.pool=mean", "seed=3")
    found = telling(to_config(composed(*own)), {"trainer.ema", "data.workers", "augment"})
    assert found == {
        **usual, "augment.name": "strong", "augment.cutmix": 0.7, "model.pool": "mean", "seed": 3,
        "data.workers": 2, "trainer.ema": None,
    }  # fmt: skip
