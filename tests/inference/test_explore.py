"""The explorer: its weights are those of the model, to the quantisation, and so are its numbers."""

from __future__ import annotations

import base64
import itertools
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import Page, driven, needs_browser
from commands import SMALL, run
from pictures import CPU, noise, save
from small_models import images, small
from torch import Tensor
from torch.testing import assert_close

from vit.inference.explain import attention_maps
from vit.inference.explore import Recorded, explore, formula, recorded_attention, token_names
from vit.inference.load import load_trained
from vit.inference.predict import open_images
from vit.model.attention import SCORES, ScaledDot
from vit.model.pooling import POOLINGS
from vit.model.positions import POSITIONS
from vit.report.explorer import (
    LEVELS,
    LIMIT,
    SIGNED_LEVELS,
    Explored,
    explorer_page,
    quantised,
    restored,
)

HOSTILE = "<img src=x onerror=alert(1)>"


def near(found: np.ndarray, weights: np.ndarray) -> bool:
    """Whether weights (..., T) are those, to half a level of a square root."""
    most = np.abs(weights).max(axis=-1, keepdims=True)
    levels = SIGNED_LEVELS if weights.min() < 0 else LEVELS
    roots = [np.sign(w) * np.sqrt(np.abs(w) / most) for w in (found, weights)]
    return bool(np.abs(roots[0] - roots[1]).max() <= 0.5 / levels + 1e-6)


@pytest.mark.parametrize("least", [0.0, -0.3])
def test_bytes_stand_for_weights(least: float) -> None:
    rng = np.random.default_rng(0)
    weights = (rng.random((3, 2, 9, 50)) ** 6 + least).astype(np.float32)
    codes, most = quantised(weights)
    assert codes.dtype == (np.int8 if least else np.uint8)
    assert near(restored(codes, most), weights)
    share = np.abs(restored(codes, most) - weights) / np.abs(weights).max(axis=-1, keepdims=True)
    assert share.max() < (0.008 if least else 0.004)
    assert (restored(*quantised(np.zeros((2, 3), np.float32))) == 0).all()


@pytest.mark.parametrize("attention", SCORES)
@pytest.mark.parametrize(
    ("pool", "positions"), list(zip(itertools.cycle(POOLINGS), POSITIONS, strict=False))
)
def test_what_is_recorded_is_what_the_model_computes(
    attention: str, pool: str, positions: str
) -> None:
    mask = torch.arange(16) < torch.tensor([11, 16])[:, None]
    for registers, given in itertools.product((0, 2), (None, mask)):
        model = small(attention=attention, pool=pool, positions=positions, registers=registers)
        found, reading, there = recorded_attention(model, images(), given)
        for block, weights in zip(found, attention_maps(model, images(), given), strict=True):
            assert_close(block.weights, weights)
            assert_close(weights @ block.values, block.mixed, rtol=1e-4, atol=1e-4)
            check_scores(block, weights, softmax=attention != "differential")
        assert_close(reading.sum(dim=1), torch.ones(2))
        assert (there is None) == (given is None)
        assert len(token_names(model)) == model.prefix


def check_scores(block: Recorded, weights: torch.Tensor, *, softmax: bool) -> None:
    """Exponentials of the scores, by their sums, are the weights."""
    assert (block.log_sums is not None) == softmax
    if block.log_sums is not None:
        scores = weights.log() + block.log_sums[..., None]
        assert_close(scores.exp().sum(dim=-1).log(), block.log_sums, rtol=1e-4, atol=1e-4)


def test_an_attention_of_ones_own_claims_no_softmax() -> None:
    """Nor the formula of what it is derived from."""

    class Halves(ScaledDot):
        def weights(self, q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
            return super().weights(q, k, mask) / 2

    model = small()
    assert formula(model) == "q · k / √K"
    for block in model.blocks:
        block.attn.score = Halves(4, 8)
    found, _, _ = recorded_attention(model, images())
    assert [block.log_sums for block in found] == [None] * 3
    assert_close(found[0].weights.sum(dim=-1), torch.full((2, 4, 17), 0.5))
    assert formula(model) == "scaled_dot"


def unpacked(image: dict[str, Any]) -> dict[str, np.ndarray]:
    """The numbers of a page's image, by the description of `packed`."""
    content = zlib.decompress(base64.b64decode(image["numbers"]))
    layers, heads, tokens, features = image["shape"]
    rows = layers * heads * tokens
    found, at = {}, 0
    for name, kind, shape in (
        ("most", "<f4", (layers, heads, tokens)),
        ("sums", "<f4", (layers, heads, tokens) if image["softmax"] else (0,)),
        ("reading", "<f4", (tokens,)),
        ("values", "<f2", (layers, heads, tokens, features)),
        ("mixed", "<f2", (layers, heads, tokens, features)),
        ("codes", "i1" if image["signed"] else "u1", (layers, heads, tokens, tokens)),
    ):
        count = math.prod(shape)
        found[name] = np.frombuffer(content, kind, count, at).reshape(shape)
        at += count * np.dtype(kind).itemsize
    assert (
        at == len(content) == rows * (4 + 4 * image["softmax"] + 4 * features + tokens) + 4 * tokens
    )
    return found


@pytest.fixture(scope="module")
def page(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The explorer of three images, one of them of a hostile name."""
    folder = tmp_path_factory.mktemp("explorer")
    for i, name in enumerate(
        ("a.png", "long-" * 30 + "name.png", HOSTILE.replace("/", "") + ".png")
    ):
        save(folder / "in" / name, noise(8, 8, seed=i))
    done = run("explain", f"checkpoint={finished}", "images=in", "output=out", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "every weight, for a browser: out/index.html" in done.stdout
    return folder


def test_the_page_holds_every_weight(finished: Path, page: Path) -> None:
    text = (page / "out" / "index.html").read_text()
    held = Page(text).data
    trained = load_trained(finished, CPU, pytest.fail)
    for image in held["images"]:
        pixels = open_images(trained, [str(page / image["name"])]).batch(0)[0]
        maps = torch.stack(attention_maps(trained.model, pixels), dim=1)[0].numpy()
        found = unpacked(image)
        assert near(restored(found["codes"], found["most"]), maps)
        np.testing.assert_allclose(maps @ found["values"].astype(float), found["mixed"], atol=0.01)
        assert image["grid"] == [4, 4]
    assert {image["name"] for image in held["images"]} == {
        str(path.relative_to(page)) for path in (page / "in").iterdir()
    }
    assert "onerror=alert(1)>" not in text


def test_images_of_their_own_shape_have_no_padding(tmp_path: Path) -> None:
    for label, (width, height) in {"high": (12, 32), "wide": (40, 10)}.items():
        for i in range(8):
            save(tmp_path / "in" / label / f"{i}.png", noise(width, height, seed=i))
    args = ["data=folder", "data.root=in", "data.image_size=16", "data.aspect=native", "name=n"]
    more = ["trainer.steps=2", "trainer.batch_size=4", "data.val_fraction=0.3"]
    done = run("train", *SMALL, *args, *more, "data.test_fraction=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    trained = load_trained(tmp_path / "outputs" / "n", CPU, pytest.fail)
    paths = [str(tmp_path / "in" / label / "0.png") for label in ("high", "wide")]
    found = list(explore(trained, open_images(trained, paths, batch_size=2)))
    prefix = trained.model.prefix
    for image in found:
        assert image.weights.shape[-1] == prefix + image.grid[0] * image.grid[1]
        np.testing.assert_allclose(image.weights.sum(axis=-1), 1, atol=1e-5)
        size = trained.model.config.patch_size
        assert image.picture.shape[:2] == (image.grid[0] * size, image.grid[1] * size)
    assert found[0].grid[0] > found[0].grid[1]
    assert found[1].grid[0] < found[1].grid[1]


@pytest.mark.parametrize(("heads", "held"), [(6, 8), (24, 1)])
def test_eight_images_of_197_tokens_fit(heads: int, held: int) -> None:
    rng = np.random.default_rng(0)
    scores = 2 * rng.standard_normal((12, heads, 197, 197), np.float32)
    weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    rest = rng.standard_normal((12, heads, 197, 4), np.float32)
    image = Explored(
        "a", np.zeros((224, 224, 3), np.uint8), "b", 0.5, (14, 14), weights, weights[..., 0], rest,
        rest, np.full(197, 1 / 197), {},
    )  # fmt: skip
    text, count = explorer_page("t", [], "", ["class token"], [image] * 8)
    assert held <= count <= 8
    assert (count == 8) == (held == 8)
    assert len(text) < LIMIT + 200_000


LOOK = """
  const $ = s => document.querySelector(s), all = s => [...document.querySelectorAll(s)];
  const later = () => new Promise(done => setTimeout(done, 50));
  for (let i = 0; i < 100 && !$("#chosen").textContent; i++) await later();
  const press = key => $("#stage").dispatchEvent(new KeyboardEvent("keydown", { key }));
  const pick = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event("change")); };
  const cells = () => all("#numbers tr").map(row => [...row.cells].map(cell => cell.textContent));
  const found = { answer: $("#chosen").textContent, pooled: cells() };
  pick("#layer", 1);
  pick("#head", 1);
  for (const key of ["ArrowDown", "ArrowDown", "ArrowRight"]) press(key);
  found.chosen = $("#chosen").textContent;
  found.numbers = cells();
  found.said = $("#said").textContent;
  found.outlined = [$("#cell").style.left, $("#cell").style.top];
  $("#turn").click();
  found.turned = [$("#chosen").textContent, cells()];
  $("#turn").click();
  press("Escape");
  found.escaped = $("#chosen").textContent;
  const box = $("#stage").getBoundingClientRect();
  const at = (x, y) => ({ clientX: box.left + x * box.width, clientY: box.top + y * box.height });
  const corner = { ...at(.9, .1), pointerType: "mouse" };
  $("#stage").dispatchEvent(new PointerEvent("pointermove", corner));
  found.pointed = $("#chosen").textContent;
  $("#tokens").children[1].click();
  found.token = $("#chosen").textContent;
  pick("#layer", -1);
  found.whole = [$("#whole").hidden, $("#whole").src.slice(0, 14), $("#numbers").hidden];
  pick("#layer", 0);
  all("[data-number]")[2].click();
  await later();
  found.name = $("#name").textContent;
  found.wide = [document.documentElement.scrollWidth, innerWidth];
  const outside = x => !x.closest(".wide") && x.getBoundingClientRect().right > innerWidth + 1;
  found.outside = all("main *").filter(outside).length;
  return found;
"""


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_numbers_of_the_model(
    finished: Path, page: Path, tmp_path: Path, width: int
) -> None:
    text = (page / "out" / "index.html").read_text()
    found = driven(text, LOOK, tmp_path, width)
    assert found["answer"] == found["escaped"] == "Where the answer looks"
    assert found["chosen"] == "Where row 2, column 2 looks"
    assert found["outlined"] == ["25%", "25%"]
    held = Page(text).data["images"]
    trained = load_trained(finished, CPU, pytest.fail)
    (own,) = explore(trained, open_images(trained, [str(page / held[0]["name"])]))
    prefix = trained.model.prefix
    query = prefix + 4 + 1
    head, *rows, others, total = found["numbers"]
    assert head == ["to", "score s", "w", "v₁", "v₂", "v₃", "v₄"]
    weights = own.weights[1, 1, query]
    assert own.log_sums is not None
    for row in rows:
        key = trained_token(row[0], prefix)
        score = math.log(weights[key]) + own.log_sums[1, 1, query]
        assert float(row[1]) == pytest.approx(score, abs=0.02)
        assert float(row[2]) == pytest.approx(weights[key], abs=0.002)
        np.testing.assert_allclose([*map(float, row[3:])], own.values[1, 1, key], atol=0.01)
    assert [float(row[2]) for row in rows] == sorted((float(row[2]) for row in rows), reverse=True)
    assert others[0] == f"{len(weights) - 5} others"
    assert float(total[2]) == pytest.approx(1, abs=0.011)
    np.testing.assert_allclose([*map(float, total[3:])], own.mixed[1, 1, query], atol=0.01)
    assert found["said"].startswith("Softmax: w = exp(s) / Σ exp(s).")
    title, (_, *rows) = found["turned"]
    assert title == "Who looks at row 2, column 2"
    for name, weight in rows[:5]:
        asks = trained_token(name, prefix)
        assert float(weight) == pytest.approx(own.weights[1, 1, asks, query], abs=0.002)
    assert found["pointed"] == "Where row 1, column 4 looks"
    assert found["token"] == f"Where {token_names(trained.model)[0]} looks"
    assert found["whole"] == [False, "data:image/png", True]
    assert found["name"].startswith(held[2]["name"])
    assert found["wide"][0] <= found["wide"][1]
    assert found["outside"] == 0


def trained_token(name: str, prefix: int) -> int:
    """The number of a token by what the page calls it, of a model with a class token."""
    if name == "class token":
        return 0
    row, column = (int(part.split()[1]) for part in name.split(", "))
    return prefix + 4 * (row - 1) + column - 1


def test_no_page_where_none_is_wanted_or_images_have_too_many_tokens(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "x.png")
    args = [f"checkpoint={finished}", "images=x.png", "output=o", "explorer=0"]
    done = run("explain", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "o" / "index.html").exists()
    assert json.dumps(done.stdout).count("index") == 1
