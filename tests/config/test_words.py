"""Words of other trainers: each is answered with a setting that there is."""

from __future__ import annotations

import pytest

from vit.cli.argv import prepare
from vit.cli.overrides import Overrides
from vit.cli.usage import groups_in
from vit.config.commands import SCHEMAS
from vit.config.validate import in_our_words, legal_keys
from vit.config.words import WORDS, timm_shape
from vit.config.yaml_files import config_dir

GROUPS = groups_in(config_dir())
LEGAL = {key for schema in SCHEMAS.values() for key in legal_keys(schema)}


@pytest.mark.parametrize("ours", [ours for ours in WORDS.values() if "=" in ours])
def test_what_the_table_names_is_there(ours: str) -> None:
    overrides = Overrides(prepare(ours.format(1).split(), GROUPS))
    assert overrides.keys <= {*GROUPS, *LEGAL, "trainer.steps", "trainer.epochs"}
    for group in set(GROUPS) & overrides.keys:
        assert "{}" in ours or set(overrides.choices(group)) <= set(GROUPS[group])


def test_no_word_is_a_setting_of_the_same_command() -> None:
    for words, ours in WORDS.items():
        key = ours.split()[-1].partition("=")[0]
        for schema in SCHEMAS.values():
            legal = legal_keys(schema)
            assert key not in legal or not set(words.split()) & set(legal), words


@pytest.mark.parametrize(
    ("command", "word", "value", "answer"),
    [
        ("train", "epochs", 10, "epochs is trainer.epochs here: trainer.epochs=10"),
        ("train", "--epochs", 10, "--epochs is trainer.epochs here: trainer.epochs=10"),
        ("train", "--lr", None, "--lr is optim.lr here: optim.lr=<value>"),
        ("train", "--Drop-Path", 0.1, "--Drop-Path is model.drop_path here: model.drop_path=0.1"),
        ("train", "--seed", 3, "--seed is seed here: seed=3"),
        ("train", "fit.max_epochs", 9, "fit.max_epochs is trainer.epochs here: trainer.epochs=9"),
        ("train", "warmup_epochs", 5, "warmup_epochs is schedule.warmup here: schedule.warmup=5ep"),
        ("train", "data_dir", "~/x", "data_dir is data.root here: data=folder data.root=~/x"),
        ("train", "amp", True, "amp is trainer.precision here: trainer.precision=auto"),
        ("train", "device", 0, "device is trainer.device here: trainer.device=0 must be one of "),
        (
            "train", "precision", "16-mixed",
            "precision is trainer.precision here: trainer.precision=16-mixed must be one of auto, ",
        ),
        ("train", "logger", "wandb", "logger: every run writes TensorBoard and metrics.jsonl"),
        ("train", "opt", "adamw", "opt is optim here: optim=adamw"),
        (
            "train", "--model", "vit_small_patch16_224.augreg_in1k",
            "--model is model here: model=small model.patch_size=16 data.image_size=224, with its "
            "weights experiment=finetune model.weights=timm/vit_small_patch16_224.augreg_in1k",
        ),
        ("train", "--model", "small", "--model is model here: model=small"),
        ("predict", "batch", 8, "batch is batch_size here: batch_size=8"),
        ("predict", "source", "x.jpg", "source is images here: images=x.jpg"),
        ("eval", "data_dir", "x", "data_dir is images here: images=x"),
        ("eval", "ckpt_path", "x.pt", "ckpt_path is checkpoint here: checkpoint=x.pt"),
        ("eval", "imgsz", 320, "imgsz is data.image_size here: data.image_size=320"),
        ("eval", "epochs", 3, None),
        ("train", "nonsense", 3, None),
        ("train", "modle.dim", 3, None),
    ],
)  # fmt: skip
def test_a_word_is_answered_with_ours(
    command: str, word: str, value: object, answer: str | None
) -> None:
    said = in_our_words(word, value, SCHEMAS[command])
    assert said == answer or (answer and said and said.startswith(answer))


@pytest.mark.parametrize(
    "name", ["vit_b_16", "resnet50", "small", "vit_small", "vit_huge_patch14_224"]
)
def test_only_shapes_that_there_are_come_from_timms_names(name: str) -> None:
    assert timm_shape(name) is None


def test_every_size_of_timms_names_is_a_model_here() -> None:
    for size in ("tiny", "small", "base", "large"):
        said = timm_shape(f"timm/deit3_{size}_patch16_384")
        assert said is not None
        assert said.startswith(f"model={size} model.patch_size=16 data.image_size=384,")
        assert size in GROUPS["model"]
