"""One pure function says what a run is: settings, weights, saved run, data and machine decide."""

from typing import Any

import pytest
from composing import changed

from vit.config.checks import FROM_WEIGHTS
from vit.config.final import DataFacts, FinalConfig, final_config
from vit.config.resolve import MEMORY_LIMIT, MICRO, plan
from vit.config.validate import to_config, to_plain
from vit.errors import ConfigError

FACTS = DataFacts(classes=7, train=1000, images=1200, side=375)
BROUGHT = {
    "data.image_size": [16, 24], "data.mean": [0.4], "data.std": [0.2], "model.dim": 48,
    "model.depth": 3, "model.heads": 6, "model.mlp_ratio": 2.0, "model.mlp": "swiglu",
    "model.norm": "rmsnorm", "model.layer_scale": 0.1, "model.qkv_bias": False,
    "model.qk_norm": True, "model.attention": "cosine", "model.positions": "rope2d",
    "model.patch_size": 8, "model.pool": "mean", "model.registers": 2, "model.norm_eps": 1e-5,
    "model.pre_norm": True, "model.pooled_norm": True, "model.options": {},
}  # fmt: skip


def final(
    plain: dict[str, Any],
    *user_keys: str,
    weights: dict[str, Any] | None = None,
    saved: dict[str, Any] | None = None,
    facts: DataFacts = FACTS,
    precision: str = "fp32",
    gpu: bool = False,
) -> FinalConfig:
    settings = to_config(plain, complete=False)
    return final_config(
        settings, frozenset(user_keys), weights, saved, facts, precision=precision, gpu=gpu
    )


def flat(made: FinalConfig) -> dict[str, Any]:
    plain = to_plain(made.config)
    return {f"{section}.{k}": v for section in ("data", "model") for k, v in plain[section].items()}


def test_nothing_stays_automatic() -> None:
    for precision in ("fp32", "bf16", "fp16"):
        made = final(changed(), precision=precision)
        assert made.config.trainer.precision == precision
        assert "auto" not in [made.config.model.patch_size, made.config.optim.lr,
                              made.config.augment.crop, made.config.data.memory]  # fmt: skip
        assert (made.model.num_classes, made.model.dim) == (7, made.config.model.dim)
        assert made.plan == plan(made.config, FACTS.train)


def test_weights_bring_their_shape() -> None:
    assert BROUGHT.keys() == set(FROM_WEIGHTS)
    made = final(changed(model__weights="x"), weights=BROUGHT)
    assert {key: flat(made)[key] for key in BROUGHT} == BROUGHT
    assert (made.model.grid, made.model.mlp_dim, made.model.head_dim) == ((2, 3), 96, 8)


def test_what_the_user_gave_stays() -> None:
    plain = changed(model__weights="x", model__depth=5, data__image_size=32)
    made = final(plain, "model.depth", "data.image_size", weights=BROUGHT)
    assert (made.config.model.depth, made.config.data.image_size) == (5, 32)
    assert made.config.model.dim == 48
    made = final(plain, "model", weights=BROUGHT)  # a group decides all of the shape
    assert (made.config.model.dim, made.config.data.image_size) == (MICRO[0], [16, 24])


def test_heads_must_come_from_somewhere() -> None:
    weights = {key: value for key, value in BROUGHT.items() if key != "model.heads"}
    with pytest.raises(ConfigError, match=r"heads its 48 features have; give model\.heads"):
        final(changed(model__weights="x"), weights=weights)
    made = final(changed(model__weights="x", model__heads=4), "model.heads", weights=weights)
    assert made.model.heads == 4


def test_a_run_that_goes_on_keeps_what_it_resolved() -> None:
    first = final(changed(model__weights="x"), weights=BROUGHT, precision="bf16")
    again = final(changed(model__weights="x"), saved=to_plain(first.config), precision="fp32")
    assert again == first
    longer = changed(model__weights="x", trainer__epochs=500)
    again = final(longer, saved=to_plain(first.config))
    assert again.model == first.model
    assert again.plan.steps > first.plan.steps


def test_images_that_are_too_many_are_streamed_or_refused() -> None:
    many = FACTS._replace(images=MEMORY_LIMIT)
    assert final(changed(), facts=FACTS).config.data.memory == "device"
    plain = changed(data__name="folder", data__root="x")
    assert final(plain, facts=many).config.data.memory == "stream"
    plain["data"]["memory"] = "device"
    with pytest.raises(ConfigError, match=r"over the limit of 4 GiB; try data.memory=stream"):
        final(plain, facts=many)


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="longer than the run"):
        final(changed(trainer__epochs=1.0, schedule__warmup="2ep"))
