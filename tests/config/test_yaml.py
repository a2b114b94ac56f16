"""The YAML files: every option composes, every key is explained, every name is known."""

import re

import pytest
import yaml
from composing import KEYS, composed, problems, put

from vit.cli.argv import prepare, split
from vit.cli.overrides import Overrides
from vit.cli.usage import EXAMPLES, FIRST, FIRST_RUN, groups_in, usage
from vit.config.commands import EmbedConfig, EvalConfig, ExplainConfig, ExportConfig, PredictConfig
from vit.config.rules import registry_names
from vit.config.validate import flatten, legal_keys, to_config, to_plain
from vit.config.yaml_files import config_dir, dump_yaml, load_yaml
from vit.data.sources.registry import SOURCES
from vit.errors import ConfigError
from vit.model.pooling import POOLINGS
from vit.model.positions import POSITIONS
from vit.optim.build import OPTIMIZERS
from vit.optim.schedule import SCHEDULES

GROUPS = groups_in(config_dir())
USES = {
    "eval": EvalConfig,
    "predict": PredictConfig,
    "embed": EmbedConfig,
    "explain": ExplainConfig,
    "export": ExportConfig,
}
"""The settings of the commands that use a trained model."""
OPTIONS = [(group, option) for group, options in GROUPS.items() for option in options]


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids="=".join)
def test_every_option_composes_and_survives_the_round_trip(group, option):
    plain = composed(f"{group}={option}", "data.root=/images", "model.weights=/weights.pth")
    if plain["data"]["name"] == "digits":
        plain["data"]["root"] = None
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
    section = usage("train", GROUPS).split(f"\n{group}=...", 1)[1].split("=...")[0]
    assert re.search(rf"^  {option} +\S", section, re.M)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_explained_in_the_help(key):
    text = usage("train", GROUPS)
    assert re.search(rf"^ +{re.escape(key)}: \S.* # \S", text, re.M)


@pytest.mark.parametrize(
    ("command", "key"),
    [(command, key) for command, schema in USES.items() for key in legal_keys(schema)],
)
def test_every_key_of_the_other_commands_is_explained_in_the_help(command, key):
    assert re.search(rf"^ +{key.split('.')[-1]}: \S.* # ", usage(command, GROUPS), re.M)


@pytest.mark.parametrize("command", EXAMPLES)
def test_the_help_has_five_examples_that_name_only_what_exists(command):
    text = usage(command, GROUPS)
    assert len(EXAMPLES[command]) == 5
    known = {*(legal_keys(USES[command]) if command in USES else KEYS), *GROUPS}
    for line, why in EXAMPLES[command]:
        assert f"  {line}\n      {why}\n" in text
        program, *arguments = line.split()
        assert program == f"vit-{command}"
        flags, overrides = split([re.sub(r"[<>]", "", a) for a in arguments], command)
        Overrides(prepare(overrides, GROUPS))
        assert set(flags) <= {"--multirun"}
        for key, _, option in (override.partition("=") for override in overrides):
            assert key in known
            assert option in GROUPS.get(key, [option])


def test_the_help_starts_with_what_matters_for_a_first_run():
    text = usage("train", GROUPS)
    block = text.split("what matters for a first run:\n\n", 1)[1].split("\n\n")[0].splitlines()
    assert [line.split(":")[0].strip() for line in block] == list(FIRST)
    assert len(FIRST) == 8
    plain = {**flatten(composed()), "data": "digits", "model": "auto", "augment": "medium"}
    for line in block:
        key, value, meaning = re.fullmatch(r"  (\S+): (.*?) +# (\S.*)", line).groups()
        assert yaml.safe_load(value) == plain[key]
        assert meaning
    assert f"  {FIRST_RUN}\n" in text
    assert text.index(FIRST_RUN) < text.index("settings (key")


@pytest.mark.parametrize("group", GROUPS)
def test_the_help_of_one_group_is_a_part_of_the_whole(group):
    alone = usage("train", GROUPS, group)
    assert alone.startswith(f"{group}=...")
    assert alone in usage("train", GROUPS)
    assert alone.count("=...") == 1
    with pytest.raises(ConfigError, match=r"the groups are augment, data"):
        usage("train", GROUPS, f"{group}s")


def test_the_help_shows_no_plumbing():
    text = usage("train", GROUPS)
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
        ("data/sources/registry.py", "SOURCES", SOURCES),
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
