"""Evaluation at another image size: timm's logits, every position encoding, the whole command."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import SMALL, run
from pictures import array_samples, noise, reader, save
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import VisionTransformer as TimmTransformer
from timm.models.vision_transformer import checkpoint_filter_fn

from vit.config.validate import to_config
from vit.data.loader import EvalLoader
from vit.data.reading.reader import of_size
from vit.data.reading.transform import Transform, resize
from vit.data.sources.registry import load_data_set
from vit.errors import ConfigError
from vit.inference.load import load_trained
from vit.model.positions import POSITIONS
from vit.model.vit import VisionTransformer
from vit.model.weights import resized, timm_kwargs

CPU = torch.device("cpu")
SIZES = [(16, 24), (32, 48), (8, 12), (20, 20), (40, 8)]


def model_of(positions: str, size: tuple[int, int] = (16, 24), **changes: object):
    """A model of random weights for 16 x 24 px, in patches of 4."""
    torch.manual_seed(0)
    shape = {"image_size": size, "patch_size": 4, "num_classes": 5, "dim": 32, "depth": 2}
    model = VisionTransformer(**shape, heads=4, positions=positions, **changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def at(model: VisionTransformer, size: tuple[int, int]) -> VisionTransformer:
    """The same model for images of another size."""
    state, config = resized(model.state_dict(), model.config, size)
    other = VisionTransformer(config).eval()
    other.load_state_dict(state, strict=True)
    return other


@pytest.mark.parametrize("positions", ["learned", "sincos1d", "sincos2d"])
@pytest.mark.parametrize("size", SIZES)
def test_a_table_is_resampled_as_timm_does_it(positions, size):
    model = model_of(positions)
    state, config = resized(model.state_dict(), model.config, size)
    grid = [side // 4 for side in size]
    expected = resample_abs_pos_embed(model.pos_embed, grid, [4, 6], num_prefix_tokens=0)
    torch.testing.assert_close(state["pos_embed"], expected, rtol=0, atol=1e-6)
    assert config == replace(model.config, image_size=size)
    assert {name: value for name, value in state.items() if name != "pos_embed"}.keys() == (
        model.state_dict().keys() - {"pos_embed"}
    )


@pytest.mark.parametrize("positions", ["learned", "sincos1d", "sincos2d", "none"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("size", SIZES)
def test_logits_at_another_size_are_timms(positions, pool, size):
    model = model_of(positions, pool=pool, registers=2)
    theirs = TimmTransformer(**{**timm_kwargs(model.config), "img_size": size}).eval()
    loaded = model.state_dict()
    if positions != "none":  # timm's own loading takes every table for a square one
        loaded["pos_embed"] = resample_abs_pos_embed(
            loaded["pos_embed"], theirs.patch_embed.grid_size, [4, 6], num_prefix_tokens=0
        )
    theirs.load_state_dict(loaded, strict=True)
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(at(model, size)(images), theirs(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (24, 40)])
def test_timms_own_loading_gives_the_same_logits(size):
    model = model_of("learned", (16, 16))
    theirs = TimmTransformer(**{**timm_kwargs(model.config), "img_size": size}).eval()
    theirs.load_state_dict(checkpoint_filter_fn(model.state_dict(), theirs), strict=True)
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(at(model, size)(images), theirs(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
def test_at_its_own_size_a_model_is_what_it_was(positions):
    model = model_of(positions)
    images = torch.randn(2, 3, 16, 24)
    assert torch.equal(at(model, (16, 24))(images), model(images))


def test_rotary_positions_go_on_with_the_coordinates():
    model = model_of("rope2d")
    larger, images = at(model, (24, 32)), torch.randn(2, 3, 16, 24)
    assert torch.equal(larger(images), model(images))  # the top left part of the larger grid
    assert larger(torch.randn(2, 3, 24, 32)).shape == (2, 5)


def test_the_state_that_was_given_stays_as_it_was():
    model = model_of("learned")
    given = model.state_dict()
    before = {name: value.clone() for name, value in given.items()}
    resized(given, model.config, (32, 32))
    assert all(torch.equal(given[name], value) for name, value in before.items())
    assert model.config.image_size == (16, 24)
    with pytest.raises(ValueError, match="not a multiple of patch_size=4"):
        resized(given, model.config, (16, 18))


def test_arrays_are_resized_as_files_are():
    samples = array_samples(5, (8, 12))
    assert of_size(samples.images, Transform(8, 12, 3)) is samples.images
    some = samples.take(np.array([3, 1]))
    pixels = samples.images[[3, 1]]
    enlarged = of_size(pixels, Transform(16, 24, 3, center_crop=0.5))  # which arrays do without
    for row, source in enumerate((3, 1)):
        expected = resize(samples.images[source].transpose(1, 2, 0), 16, 24)
        assert (enlarged[row] == expected.transpose(2, 0, 1)).all()
    middle = of_size(pixels, Transform(16, 16, 3))
    assert (middle == enlarged[..., 4:20]).all()
    images, labels, index, _ = EvalLoader(some, 2, reader((16, 24))).batch(0)
    assert (images.shape, labels.tolist(), index.tolist()) == ((2, 3, 16, 24), [0, 1], [0, 1])


# The command


def test_a_run_is_evaluated_at_another_size(finished: Path, tmp_path: Path) -> None:
    results = {}
    for size in ("null", "8", "12", "[12,16]"):
        folder = tmp_path / size
        args = (f"checkpoint={finished}", f"data.image_size={size}", f"output={folder}")
        done = run("eval", *args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        results[size] = json.loads((folder / "metrics.json").read_text())
        if size == "[12,16]":
            assert done.stdout.startswith("test-12x16: top-1")
    own = results["null"]
    assert own == results["8"]
    assert own["image_size"] == [8, 8]
    assert results["12"]["image_size"] == [12, 12]
    page = (tmp_path / "[12,16]" / "report" / "index.html").read_text()
    assert "12 x 16 px (trained at 8 x 8)" in page
    own_page = (tmp_path / "8" / "report" / "index.html").read_text()
    assert "8 x 8 px</li>" in own_page

    trained = load_trained(finished, CPU, pytest.fail, (12, 12))
    samples = load_data_set(to_config(trained.config).data).splits["test"]
    pixels = torch.from_numpy(samples.images[samples.index])
    pixels = torch.nn.functional.interpolate(pixels, (12, 12), mode="bilinear", antialias=True)
    mean, std = (trained.preprocessing[key][0] for key in ("mean", "std"))
    with torch.no_grad():
        said = trained.model((pixels / 255 - mean) / std).argmax(dim=1).numpy()
    assert results["12"]["top1"] == pytest.approx(100 * (said == samples.labels).mean())
    assert results["12"]["loss"] != own["loss"]


def test_the_own_evaluation_stays_and_is_compared(tmp_path: Path) -> None:
    for label, side in (("a", 30), ("b", 60)):
        for i in range(20):
            save(tmp_path / "in" / label / f"{i}.png", noise(side, side, seed=i))
    args = [*SMALL, "data=folder", "data.root=in", "data.image_size=[16,24]", "name=r"]
    small = ["model.patch_size=8", "trainer.batch_size=8", "data.test_fraction=0.3"]
    kept = ["data.cache=uint8", "data.cache_size=24", "data.cache_dir=kept"]
    done = run("train", *args, *small, *kept, "trainer.steps=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for size in ("null", "[32,24]"):
        command = ("eval", "checkpoint=outputs/r", f"data.image_size={size}")
        done = run(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / "r" / "eval"
    assert {path.name for path in folder.iterdir()} >= {"test", "test-32x24"}
    own, other = (json.loads((folder / n / "metrics.json").read_text())
                  for n in ("test", "test-32x24"))  # fmt: skip
    assert (own["image_size"], other["image_size"]) == ([16, 24], [32, 24])
    page = (folder / "test-32x24" / "report" / "index.html").read_text()
    for name, scores in (("test", own), ("test-32x24", other)):
        row = re.search(rf'<th scope="row">{name}</th>(.*)</tr>', page)
        assert row is not None
        assert f"<td>{scores['loss']:.4f}</td>" in row[1]


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("9", "data.image_size=9 is no multiple of the model's patch of 2 px; "
              "try data.image_size=8 or 10"),
        ("[8,13]", "data.image_size=[8, 13] is no multiple of the model's patch of 2 px; "
                   "try data.image_size=[8,12]"),
        ("5000", "data.image_size=5000 must lie in [4, 4096]"),
    ],
)  # fmt: skip
def test_a_size_that_does_not_fit_is_one_line(finished, tmp_path, size, words):
    done = run("eval", f"checkpoint={finished}", f"data.image_size={size}", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    with pytest.raises(ConfigError):
        load_trained(finished, CPU, pytest.fail, (9, 9))
