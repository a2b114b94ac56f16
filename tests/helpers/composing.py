"""What the tests of the settings share: composed defaults, changed ones, and their judgement."""

import copy
from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import settings
from omegaconf import OmegaConf

from vit.config.resolve import fit_to_data
from vit.config.validate import legal_keys, to_config
from vit.config.yaml_files import config_dir
from vit.errors import ConfigError

KEYS = list(legal_keys())
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


def sized(plain):
    """The config of `plain`, at the size of small images where it waits for the images."""
    return fit_to_data(to_config(plain), 1000, None, gpu=False)


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
