"""One list of a model's options: settings resolve to it, checkpoints keep it."""

from dataclasses import MISSING, fields, replace

import pytest
import yaml
from composing import changed, composed, problems, sized

from vit.config.model import ARCH_KEYS, WEIGHT_KEYS, ModelOptions, ViTConfig
from vit.config.resolve import MICRO, resolve, vit_config
from vit.config.schema import ModelConfig, RunConfig
from vit.model.vit import SIZES, VisionTransformer

OTHER = {
    "dim": 48, "depth": 3, "heads": 8, "positions": "rope2d", "pool": "mean", "attention": "cosine",
    "registers": 3, "norm": "rmsnorm", "mlp": "swiglu", "layer_scale": 0.5, "qkv_bias": False,
    "norm_eps": 1e-5, "pre_norm": True, "pooled_norm": True,
    "qk_norm": True, "dropout": 0.25, "drop_path": 0.125, "patch_dropout": 0.5,
    "zero_branches": True, "distillation_token": True, "options": {},
}  # fmt: skip
"""Of every option a value that is neither its default nor that of the default run."""

SHAPE = ("dim", "depth", "heads")


def configured(**options: object) -> RunConfig:
    plain = changed(**{f"model__{name}": value for name, value in options.items()})
    if options.get("distillation_token"):
        plain["distill"]["teacher"] = "outputs/teacher"
    return resolve(sized(plain), precision="fp32")


@pytest.mark.parametrize("name", sorted(OTHER.keys() - {"options"}))  # plug-ins have those
def test_every_option_comes_from_its_setting(name: str) -> None:
    before, after = (vit_config(configured(**values), 7) for values in ({}, {name: OTHER[name]}))
    sizes = dict(zip(SHAPE, MICRO, strict=True))  # auto, of small images
    assert getattr(before, name) == sizes.get(name, composed()["model"][name])
    assert getattr(after, name) == OTHER[name] != getattr(before, name)
    assert OTHER[name] != getattr(ViTConfig(), name)


def test_no_option_is_forgotten() -> None:
    assert OTHER.keys() == {*SHAPE, *(option.name for option in fields(ModelOptions))}


@pytest.mark.parametrize("name", [option.name for option in fields(ModelConfig)])
def test_defaults_serve_python_alone(name: str) -> None:
    """What a setting is stands in the YAML files; without it there there is none."""
    plain = composed()
    del plain["model"][name]
    (problem,) = problems(plain)
    assert problem.startswith(f"model.{name} is missing; give it as model.{name}=<")
    assert all(o.default != MISSING or o.default_factory != MISSING for o in fields(ViTConfig))


def test_sizes_come_from_data_and_ratio() -> None:
    run = resolve(sized(changed(data__image_size=[8, 16], model__mlp_ratio=2.7)), precision="fp32")
    config = vit_config(run, 7)
    assert (config.image_size, config.num_classes, config.channels) == ((8, 16), 7, 1)
    assert config.patch_size == run.model.patch_size
    assert config.mlp_dim == int(2.7 * config.dim)
    assert config.grid == (8 // config.patch_size, 16 // config.patch_size)
    assert config.head_dim * config.heads == config.dim


def test_plain_values_make_it_again() -> None:
    config = ViTConfig(image_size=(16, 24), patch_size=4, **OTHER)  # type: ignore[arg-type]
    plain = yaml.safe_load(yaml.safe_dump(config.plain()))
    assert ViTConfig(**plain) == config
    assert plain.keys() == {option.name for option in fields(ViTConfig)}


def test_what_is_left_open_is_filled_in() -> None:
    config = ViTConfig(image_size=32, patch_size=4, dim=48)  # type: ignore[arg-type]
    assert (config.image_size, config.mlp_dim) == ((32, 32), 192)
    assert replace(config, depth=2).mlp_dim == 192
    assert replace(config, image_size=[32, 64]).image_size == (32, 64)  # type: ignore[arg-type]


def test_what_weights_decide() -> None:
    """In the first a model must be as its weights, to the others these are sized."""
    assert set(ARCH_KEYS) == {
        "dim", "depth", "heads", "mlp_dim", "mlp", "norm", "layer_scale", "qkv_bias", "qk_norm",
        "attention", "positions", "norm_eps", "pre_norm", "pooled_norm",
        "options",
    }  # fmt: skip
    assert set(WEIGHT_KEYS) - set(ARCH_KEYS) == {"pool", "registers", "image_size", "patch_size"}


def test_a_model_is_made_from_it_or_from_its_options() -> None:
    values = (16, 4, 5, 24, 2, 3, 40)
    config = ViTConfig(**dict(zip(SIZES, values, strict=True)))  # type: ignore[arg-type]
    for model in (
        VisionTransformer(config),
        VisionTransformer(*values),
        VisionTransformer(**dict(zip(SIZES, values, strict=True))),
        VisionTransformer(replace(config, depth=9), depth=2),
        VisionTransformer((16, 16), 4, 5, dim=24, depth=2, heads=3, mlp_dim=40),
    ):
        assert model.config == config
    with pytest.raises(TypeError, match="widht"):
        VisionTransformer(config, widht=3)
