"""The configuration: every YAML composes, every mistake is named, what is saved is what runs."""

import copy
import math
import re
from fractions import Fraction
from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from vit.cli.argv import prepare
from vit.cli.train import saved_settings
from vit.cli.usage import EXAMPLES, groups_in, usage
from vit.config.checks import auto_patch_size
from vit.config.compose import (
    config_dir,
    dump_yaml,
    flatten,
    legal_keys,
    load_yaml,
    to_config,
    to_eval_config,
    to_plain,
)
from vit.config.errors import ConfigError, NoCheckpointError
from vit.config.resolve import MEMORY_LIMIT, plan, resolve, resolve_memory
from vit.config.resume import MAY_CHANGE, changes, with_saved
from vit.config.schema import EvalConfig, registry_names
from vit.config.suggest import nearest
from vit.data.sources import SOURCES
from vit.model.pooling import POOLINGS
from vit.model.positions import POSITIONS
from vit.optim.build import OPTIMIZERS
from vit.optim.schedule import SCHEDULES

GROUPS = groups_in(config_dir())
OPTIONS = [(group, option) for group, options in GROUPS.items() for option in options]
KEYS = legal_keys()
UNHURRIED = settings(deadline=None)


@cache
def _composed(*overrides):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        plain = OmegaConf.to_container(compose("train", list(overrides)), resolve=True)
    del plain["search"]  # of the sweep, not of its runs
    return plain


def composed(*overrides):
    """What Hydra makes of the YAML files and `overrides`: plain values, of the caller's own."""
    return copy.deepcopy(_composed(*overrides))


def put(plain, key, value):
    """Set a dotted key."""
    *sections, name = key.split(".")
    for section in sections:
        plain = plain[section]
    plain[name] = value


def changed(**values):
    """The default settings with `section__key=value`, or with `key=value`, on top."""
    plain = composed()
    for key, value in values.items():
        put(plain, key.replace("__", "."), value)
    return plain


def problems(plain, world_size=1):
    with pytest.raises(ConfigError) as raised:
        to_config(plain, world_size)
    assert str(raised.value) == "\n".join(raised.value.problems)
    assert raised.value.exit_code == 2
    return raised.value.problems


def outcome(plain):
    """The config, or None and what is wrong with it."""
    try:
        return to_config(plain), []
    except ConfigError as error:
        return None, error.problems


# The YAML files


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids="=".join)
def test_every_option_composes_and_survives_the_round_trip(group, option):
    plain = composed(f"{group}={option}", "data.root=/images")
    config = to_config(plain)
    assert to_config(to_plain(config)) == config
    assert load_yaml(dump_yaml(to_plain(config)), "memory") == to_plain(config)
    if group in plain:
        assert plain[group].get("name", option) == option
    assert set(flatten(plain)) == set(KEYS)


def test_the_groups_are_those_of_the_schema():
    sections = {key.split(".")[0] for key in KEYS if "." in key}
    assert set(GROUPS) == sections | {"experiment", "sweep"}
    assert all(GROUPS.values())


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids="=".join)
def test_every_option_is_listed_with_what_it_is(group, option):
    section = usage("train", config_dir()).split(f"\n{group}=...", 1)[1].split("=...")[0]
    assert re.search(rf"^  {option} +\S", section, re.M)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_explained_in_the_help(key):
    text = usage("train", config_dir())
    assert re.search(rf"^ +{re.escape(key)}: \S.* # \S", text, re.M)


@pytest.mark.parametrize("key", legal_keys(EvalConfig))
def test_every_key_of_evaluation_is_explained_in_the_help(key):
    assert re.search(rf"^ +{key.split('.')[-1]}: \S.* # ", usage("eval", config_dir()), re.M)


@pytest.mark.parametrize("command", EXAMPLES)
def test_the_help_has_five_examples_that_name_only_what_exists(command):
    text = usage(command, config_dir())
    assert len(EXAMPLES[command]) == 5
    known = {*KEYS, *legal_keys(EvalConfig), *GROUPS}
    for line, why in EXAMPLES[command]:
        assert f"  {line}\n      {why}\n" in text
        program, *arguments = line.split()
        assert program == f"vit-{command}"
        prepare(arguments, GROUPS)
        for key, equals, option in (a.partition("=") for a in arguments if a != "-m"):
            assert equals
            assert key in known
            assert option in GROUPS.get(key, [option])


def test_the_help_shows_no_plumbing():
    text = usage("train", config_dir())
    assert "hydra" not in text.lower()
    assert "_self_" not in text
    assert "\n  defaults:" not in text


def test_a_config_cannot_be_changed():
    config = to_config(composed())
    with pytest.raises(AttributeError):
        config.seed = 1
    with pytest.raises(AttributeError):
        config.trainer.epochs = 1


def test_the_experiment_wins_over_the_defaults_and_the_user_over_the_experiment():
    plain = composed("experiment=cifar10_quick")
    assert (plain["data"]["name"], plain["model"]["depth"]) == ("cifar10", 6)
    assert plain["trainer"]["epochs"] == 3
    assert composed("experiment=cifar10_quick", "model.depth=2")["model"]["depth"] == 2


@pytest.mark.parametrize(
    ("file", "table", "registry"),
    [
        ("model/positions.py", "POSITIONS", POSITIONS),
        ("model/pooling.py", "POOLINGS", POOLINGS),
        ("data/sources.py", "SOURCES", SOURCES),
        ("optim/build.py", "OPTIMIZERS", OPTIMIZERS),
        ("optim/schedule.py", "SCHEDULES", SCHEDULES),
    ],
)
def test_names_read_from_source_are_the_names_there_are(file, table, registry):
    assert registry_names(file, table) == tuple(registry)


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        ("data.name", SOURCES),
        ("model.positions", POSITIONS),
        ("model.pool", POOLINGS),
        ("optim.name", OPTIMIZERS),
        ("schedule.name", SCHEDULES),
    ],
)
def test_a_wrong_name_is_answered_with_all_right_ones(key, registry):
    plain = composed()
    put(plain, key, next(iter(registry)) + "x")
    (problem,) = problems(plain)
    assert problem.startswith(f"{key}=")
    assert all(name in problem for name in registry)
    assert f"did you mean {next(iter(registry))}?" in problem


# Mistakes


def test_all_mistakes_are_reported_at_once():
    plain = changed(trainer__epoch=10, optm={"lr": 1}, optim__weight_decay="much", model__heads=3)
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
        ("trainer.epochs", "many", "must be a number or null"),
        ("trainer.precision", "fp16", "must be one of auto, bf16, fp32"),
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
        ({"model__dim": 66, "model__heads": 6, "model__positions": "sincos2d"}, "try 64 or 68"),
        ({"model__dim": 7, "model__heads": 1, "model__positions": "sincos1d"}, "try 6 or 8"),
        ({"data__image_size": 32, "model__patch_size": 5}, "try 2 or 4"),
        ({"data__image_size": 131}, "try data.image_size=128"),
        ({"trainer__epochs": None}, "e.g. trainer.epochs=10"),
        ({"trainer__steps": 5}, "give only one"),
        ({"trainer__accumulate": 3}, "try 63 or 66"),
        ({"trainer__batch_size": 63, "augment__mixup": 0.2}, "try 62 or 64"),
        ({"trainer__batch_size": 1, "augment__cutmix": 1}, "try 2"),
        ({"trainer__early_stop": 3, "data__val_fraction": 0}, "try data.val_fraction=0.1"),
        ({"data__val_fraction": 0.5, "data__test_fraction": 0.5}, "try 0.1 each"),
        ({"data__mean": [0.5] * 3}, "1 (gray) or 3"),
        ({"data__mean": [], "data__std": []}, "1 (gray) or 3"),
        ({"data__name": "folder", "data__root": None}, "data.root=<folder"),
        (
            {"trainer__epochs": None, "trainer__steps": 50, "schedule__warmup": 51},
            "try schedule.warmup=5%",
        ),
        ({"resume": "auto"}, "needs name="),
    ],
)
def test_a_contradiction_is_named_with_its_remedy(values, words):
    (problem,) = problems(changed(**values))
    assert words in problem
    assert any(f"{key.replace('__', '.')}" in problem for key in values)


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
    config = to_config(changed(data__root=root, outputs=outputs, optim__lr=lr, seed=seed))
    assert to_config(load_yaml(dump_yaml(to_plain(config)), "memory")) == config


def test_the_one_character_that_yaml_loses_is_escaped():
    assert load_yaml(dump_yaml({"outputs": "a\x85b"}), "memory") == {"outputs": "a\x85b"}


@pytest.mark.parametrize("text", ["", "[1]", "3", "a: [", "a: !!python/object:os.system {}", "\0"])
def test_text_that_is_no_config_is_refused_with_its_file(text):
    with pytest.raises(ConfigError, match=r"^outputs/run/config\.yaml"):
        load_yaml(text, "outputs/run/config.yaml")


def test_evaluation_settings_are_checked_too():
    plain = {"checkpoint": "a", "split": "test", "images": None, "device": "auto", "output": None,
             "data": {"root": None, "workers": "auto"}}  # fmt: skip
    assert to_eval_config(plain).data.workers == "auto"
    with pytest.raises(ConfigError) as raised:
        to_eval_config({**plain, "split": "train", "spilt": 1})
    assert len(raised.value.problems) == 2
    assert "did you mean split?" in str(raised.value)


# `auto` and durations become values


@pytest.mark.parametrize(
    ("size", "patch"), [(32, 4), (64, 8), (96, 12), (128, 16), (224, 16), (256, 16), (384, 16)]
)
def test_automatic_patch_size(size, patch):
    config = resolve(to_config(changed(data__image_size=size)), bf16=False)
    assert config.model.patch_size == patch


def test_automatic_patch_size_of_the_digits_is_small():
    assert auto_patch_size(8, 8) == 2


@UNHURRIED
@given(height=st.integers(4, 4096), width=st.integers(4, 4096))
def test_automatic_patch_size_always_divides(height, width):
    patch = auto_patch_size(height, width)
    assert height % patch == 0
    assert width % patch == 0
    assert patch < min(height, width)


@UNHURRIED
@given(size=st.integers(4, 4096))
def test_an_automatic_patch_size_that_is_accepted_gives_a_sensible_number_of_tokens(size):
    config, found = outcome(changed(data__image_size=size))
    if config is None:
        assert f"data.image_size={size} has no good patch size" in found[0]
    else:
        patch = resolve(config, bf16=False).model.patch_size
        assert 4 <= (size // patch) ** 2 <= max(32, size / 8) ** 2


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("flip", ["auto", 0, 0.5, 1])
def test_automatic_mirroring_follows_the_data(mirror, flip):
    config = resolve(to_config(changed(data__mirror=mirror, augment__flip=flip)), bf16=False)
    assert config.augment.flip == (0.5 * mirror if flip == "auto" else flip)


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
def test_automatic_precision_follows_the_hardware(bf16, precision):
    config = resolve(to_config(changed(trainer__precision=precision)), bf16=bf16)
    expected = ("bf16" if bf16 else "fp32") if precision == "auto" else precision
    assert config.trainer.precision == expected


def test_resolving_changes_nothing_but_auto_and_only_once():
    before = to_config(composed())
    after = resolve(before, bf16=True)
    old, new = flatten(to_plain(before)), flatten(to_plain(after))
    assert all(old[key] == "auto" for key in KEYS if old[key] != new[key])
    later = {"trainer.device", "data.workers", "data.memory"}
    assert {key for key in KEYS if new[key] == "auto"} == later
    assert resolve(after, bf16=False) == after
    assert to_config(to_plain(after)) == after


LIMIT = MEMORY_LIMIT // (3 * 64 * 64)


@pytest.mark.parametrize(
    ("images", "in_files", "crop", "memory"),
    [
        (LIMIT, True, "padded", "device"),
        (LIMIT + 1, True, "padded", "stream"),
        (10, True, "resized", "stream"),
        (10, False, "resized", "device"),
    ],
)
def test_where_images_are_held(images, in_files, crop, memory):
    changes = {"data__image_size": 64, "data__mean": [0.5] * 3, "data__std": [0.5] * 3}
    config = resolve(to_config(changed(**changes, augment__crop=crop)), bf16=False)
    held = resolve_memory(config, images, in_files=in_files)
    assert held.data.memory == memory
    assert resolve_memory(held, images, in_files=in_files) == held


def test_data_sets_are_measured_before_they_are_decoded():
    plain = changed(data__memory="device", data__mean=[0.5], data__std=[0.5])
    config = resolve(to_config(plain), bf16=False)
    fits = MEMORY_LIMIT // (config.data.size[0] * config.data.size[1])
    assert resolve_memory(config, fits, in_files=True) == config
    with pytest.raises(ConfigError, match=r"8\.0 GiB.*try data\.memory=stream"):
        resolve_memory(config, 2 * fits, in_files=True)


@pytest.mark.parametrize(
    ("size", "crop"), [(127, "padded"), (128, "resized"), ([96, 256], "padded")]
)
def test_photos_are_cropped_and_resized(size, crop):
    config = resolve(to_config(changed(data__image_size=size, model__patch_size=1)), bf16=False)
    assert config.augment.crop == crop


def test_sizes_may_differ_in_height_and_width():
    config = resolve(to_config(changed(data__image_size=[224, 288])), bf16=False)
    assert config.data.size == (224, 288)
    assert config.model.patch_size == 16
    wrong = outcome(changed(data__image_size=[224, 288], model__patch_size=20))[1]
    assert "model.patch_size=20 does not divide data.image_size=[224, 288]; try 8 or 16" in wrong[0]
    for bad in ([224], [224, 288, 3], [2, 224], "big"):
        assert outcome(changed(data__image_size=bad))[1], bad


@UNHURRIED
@given(epochs=st.integers(1, 3000), n=st.integers(1, 10**6), batch=st.integers(1, 5000))
def test_the_length_of_a_run(epochs, n, batch):
    plain = changed(trainer__epochs=epochs / 10, trainer__batch_size=batch)
    made = plan(to_config(plain), n)
    assert made.steps == math.ceil(Fraction(epochs * n, 10 * batch))
    assert made.steps_per_epoch == Fraction(n, batch)
    assert made.epoch_at(made.steps) >= Fraction(epochs, 10)
    assert made.epoch_at(made.steps - 1) < Fraction(epochs, 10)
    assert 0 <= made.warmup <= made.steps


def test_durations_of_a_plan_by_hand():
    plain = changed(
        trainer__epochs=10, trainer__batch_size=40, trainer__eval_every="2ep",
        trainer__log_every=7, trainer__save_every="5%", schedule__warmup="0.5ep", trainer__ema=2,
    )  # fmt: skip
    made = plan(to_config(plain), 1010)
    assert made.steps == 253  # 10 x 25.25, rounded up
    assert made.eval_every == Fraction(101, 2)
    assert made.log_every == 7
    assert made.save_every == Fraction(253, 20)
    assert made.warmup == 12.625
    assert made.ema_decay == pytest.approx(math.exp(-1 / 50.5))
    assert made.epoch_at(101) == 4


def test_steps_are_taken_as_they_are():
    plain = changed(trainer__epochs=None, trainer__steps=17, schedule__warmup="3ep")
    made = plan(to_config(plain), 640)
    assert (made.steps, made.warmup, made.ema_decay) == (17, 17, None)


# Going on with a run

SAVED = flatten(to_plain(resolve(to_config(composed()), bf16=True)))
OTHER = {
    "trainer.epochs": 1000.0, "trainer.device": "cpu", "trainer.compile": True,
    "trainer.log_every": 3, "trainer.save_every": "2ep", "trainer.keep": 9,
    "trainer.early_stop": 4, "data.root": "/elsewhere", "data.workers": 2,
    "outputs": "elsewhere", "name": "other", "resume": "outputs/run", "data.timeout": 5.0,
    "data.verify": True, "data.cache_dir": "elsewhere", "data.on_bad_image": "skip",
    "data.bad_image_limit": 0.5,
    "trainer.checkpoint_activations": True, "trainer.shard": "fsdp",
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
    saved = to_plain(resolve(to_config(composed()), bf16=True))
    kept = with_saved(saved, composed())
    for key in ("model.patch_size", "augment.flip", "augment.crop", "trainer.precision"):
        assert flatten(kept)[key] == SAVED[key] != "auto"
    assert to_config(kept) == to_config(saved)


@pytest.mark.parametrize("key", ["trainer.batch_size", "model.patch_size", "trainer.precision"])
def test_a_value_that_was_given_is_kept(key):
    wanted = composed()
    value = {"trainer.precision": "fp32"}.get(key, 1)
    put(wanted, key, value)
    assert flatten(with_saved(to_plain(to_config(composed())), wanted))[key] == value


@pytest.mark.parametrize(("key", "saved"), [("trainer.device", "cpu"), ("data.workers", 3)])
def test_automatic_may_be_asked_for_where_change_is_allowed(key, saved):
    before, wanted = composed(), composed()
    put(before, key, saved)
    put(wanted, key, "auto")
    assert flatten(with_saved(before, wanted))[key] == "auto"


@UNHURRIED
@given(st.dictionaries(st.sampled_from(KEYS), st.sampled_from(["auto", 1, None])))
def test_with_saved_leaves_what_is_not_automatic(values):
    wanted = composed()
    for key, value in values.items():
        put(wanted, key, value)
    kept = flatten(with_saved(composed(), wanted))
    assert kept.keys() == set(KEYS)
    assert all(kept[key] == value for key, value in values.items() if value != "auto")


@pytest.fixture
def folder(tmp_path):
    """A run folder as far as its settings go."""
    plain = changed(model__dim=32, data__root="/ä b", name=None)
    (tmp_path / "config.yaml").write_text(dump_yaml(plain), encoding="utf-8")
    return tmp_path


def test_a_saved_run_takes_the_users_values(folder):
    overrides = ["++trainer.epochs=7", "++optim.betas=[0.5,0.6]", "++data.root='/new (1)'",
                 "++trainer.early_stop=null", "++trainer.compile=true"]  # fmt: skip
    plain = saved_settings(folder, overrides)
    assert plain["model"]["dim"] == 32
    assert plain["trainer"]["epochs"] == 7
    assert plain["trainer"]["early_stop"] is None
    assert plain["trainer"]["compile"] is True
    assert plain["optim"]["betas"] == [0.5, 0.6]
    assert plain["data"]["root"] == "/new (1)"
    assert (plain["resume"], plain["name"]) == (str(folder), None)
    assert to_config(plain)


def test_a_saved_run_without_overrides_is_itself(folder):
    plain = saved_settings(folder, [])
    assert plain == {**changed(model__dim=32, data__root="/ä b"), "resume": str(folder)}


@pytest.mark.parametrize("override", ["model=small", "experiment=cifar10_quick", "~optim.lr"])
def test_a_saved_run_takes_no_group(folder, override):
    with pytest.raises(ConfigError, match="start a new run") as raised:
        saved_settings(folder, [override])
    assert str(raised.value).startswith(override)


def test_an_unknown_key_of_a_saved_run_is_named(folder):
    found = problems(saved_settings(folder, ["++trainer.epoch=3", "++nonsense.key=3"]))
    assert any("did you mean trainer.epochs?" in problem for problem in found)
    assert any(problem.startswith("nonsense.key") for problem in found)


@pytest.mark.parametrize("override", ["++seed.x=1", "++trainer.steps.x=1"])
def test_a_value_is_no_section_of_a_saved_run(folder, override):
    with pytest.raises(ConfigError, match=override.lstrip("+").split("=")[0]):
        saved_settings(folder, [override])


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(NoCheckpointError, match="is no run folder") as raised:
        saved_settings(tmp_path, [])
    assert str(tmp_path) in str(raised.value)


def test_a_damaged_config_is_named(folder):
    (folder / "config.yaml").write_text("model: [", encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(str(folder / "config.yaml"))):
        saved_settings(folder, [])
