"""The page of `vit-eval`: complete, self-contained, safe, small, and it works in a browser."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import time
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import driven, needs_browser
from conftest import SMALL, run
from pictures import noise, save
from PIL import Image

from vit.artifacts.figures import chart, nice_ticks, reliability, thinned
from vit.artifacts.gallery import choose, data_uri, within
from vit.artifacts.report import BUDGET, Report, Versus, report_page
from vit.config.compose import to_config
from vit.data.sources import load_data_set
from vit.engine import metrics
from vit.engine.restore import load_run

HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Elements, texts and the data of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.data: dict[str, Any] = json.loads(
            text.split('<script type="application/json" id="data">')[1].split("</script>")[0]
        )

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str, key: str) -> list[str]:
        """The values of an attribute of elements."""
        return [str(given[key]) for name, given in self.tags if name == tag and key in given]


@pytest.fixture(scope="module")
def digits(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation."""
    folder = tmp_path_factory.mktemp("report")
    done = run("eval", f"checkpoint={finished}", f"output={folder}", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert str(folder / "report" / "index.html") in done.stdout
    return folder


def index(folder: Path) -> str:
    return (folder / "report" / "index.html").read_text(encoding="utf-8")


def needs_nothing(text: str) -> None:
    """Whether nothing beside the page is asked for."""
    assert not re.search(r"https?://|url\(|@import", text)
    for tag, given in Page(text).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert not {"src", "href", "action", "srcset", "poster", "background"} & given.keys()


def made_up(
    n: int, classes: int, name: Callable[[int], str] = "class {}".format, right: float = 0.7
) -> Report:
    """A report of random predictions."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    logits = rng.standard_normal((n, classes)).astype(np.float32)
    logits[np.arange(n), labels] += np.where(rng.random(n) < right, 9, 0)
    predicted = logits.argmax(axis=1)
    judged = metrics.judge(logits, labels)
    top = np.argpartition(-logits, 1, axis=1)[:, :2] if classes > 2 else np.zeros((n, 2), int)
    top[:, 0] = predicted
    names = [name(k) for k in range(classes)]
    return Report(
        title="made up", facts=[f"{n} images"], classes=names,
        names=[f"{names[k]}/{i}.jpg" for i, k in enumerate(labels)],
        labels=labels, predicted=predicted, confidence=judged.confidence,
        scores=metrics.all_scores(top, labels, judged.loss, judged), compared={},
        versus=None, corruptions={},
        table=metrics.per_class(labels, predicted, classes),
        confusion=metrics.confusion(labels, predicted, classes),
        reliability={"as it is": metrics.calibration(judged.confidence, predicted == labels)},
        calibration="None.", loss={}, top1={}, epoch=None, settings={"a.key": None},
        command="vit-eval", chosen=choose(labels, predicted, judged.loss, judged.margin, classes),
    )  # fmt: skip


def against(report: Report, name: str) -> Versus:
    """A second model that says the first class of every image."""
    said = np.zeros_like(report.labels)
    ours, theirs = report.predicted == report.labels, said == report.labels
    return Versus(
        names=(name, f"{name} 2"), top1=(70.0, 30.0), counts=(1, 2, 3, 4), statement=name,
        predicted=said, first=np.flatnonzero(ours & ~theirs)[:12].tolist(),
        second=np.flatnonzero(theirs & ~ours)[:12].tolist(),
    )  # fmt: skip


def pictures_of(report: Report, side: int = 8) -> dict[int, str]:
    """Noise for all images of a report."""
    rng = np.random.default_rng(0)
    numbers = list(dict.fromkeys([*report.different(), *report.chosen.in_order()]))
    return within(((i, rng.integers(0, 256, (side, side, 3), np.uint8)) for i in numbers), BUDGET)


# What the page says


def test_the_page_needs_nothing_beside_itself(digits: Path) -> None:
    text = index(digits)
    needs_nothing(text)
    assert {file.name for file in (digits / "report").iterdir()} == {"index.html"}
    policy = "default-src 'none'"
    assert any(policy in content for content in Page(text).all("meta", "content"))


def test_the_page_shows_every_score_with_its_interval(digits: Path) -> None:
    page, found = Page(index(digits)), json.loads((digits / "metrics.json").read_text())
    shown = {text.strip() for text in page.texts}
    for key in ("top1", "top5", "macro_f1", "loss", "brier", "ece"):
        digits_after = 2 if key.startswith("top") else 4
        low, high = found["intervals"][key]
        assert f"{found[key]:.{digits_after}f}" in shown
        assert f"{low:.{digits_after}f} to {high:.{digits_after}f}" in shown
    assert f"with temperature {found['temperature']:.3f}" in index(digits)
    assert any(f"{found['calibrated']['loss']:.4f}" in text for text in shown)
    for row in found["per_class"]:
        assert f"{row['f1']:.3f}" in shown


def test_the_matrix_is_that_of_the_predictions(digits: Path) -> None:
    with open(digits / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    buttons = [given for tag, given in Page(index(digits)).tags if "data-cell" in given]
    shown = {given["data-cell"]: int(str(given["data-count"])) for given in buttons}
    pairs = [f"{row['label']},{row['prediction']}" for row in rows]
    assert shown == {pair: pairs.count(pair) for pair in pairs}


def test_every_wrong_image_is_shown_as_the_model_saw_it(finished: Path, digits: Path) -> None:
    data = Page(index(digits)).data
    samples = load_data_set(to_config(load_run(finished).config).data).splits["test"]
    with open(digits / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    wrong = 0
    for cell, numbers in data["cells"].items():
        label, said = cell.split(",")
        inside = [
            i for i, row in enumerate(rows) if (row["label"], row["prediction"]) == (label, said)
        ]
        assert set(numbers) <= set(inside)
        assert len(numbers) == min(len(inside), 4 if label == said else 20)
        wrong += len(numbers) if label != said else 0
        for i in numbers:
            encoded = data["thumbnails"][str(i)].partition("base64,")[2]
            pixels = np.asarray(Image.open(io.BytesIO(b64decode(encoded))))
            expected = samples.images.pixels[samples.index[i]].transpose(1, 2, 0)
            assert (pixels == expected).all()
            assert data["captions"][str(i)]["name"] == rows[i]["image"]
    assert wrong > 0


def test_worst_and_least_certain_come_first_with_attention(digits: Path) -> None:
    page = Page(index(digits))
    shown = page.all("img", "data-image")
    assert len(shown) == 48
    assert page.all("img", "data-overlay") == shown
    assert set(shown) <= set(page.data["thumbnails"])
    assert set(shown) == set(page.data["overlays"])
    with open(digits / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    wrong = [i for i in map(int, shown[:24]) if rows[i]["label"] != rows[i]["prediction"]]
    assert len(wrong) == 24
    sure = [float(rows[int(i)]["probability"]) for i in shown[24:]]
    assert max(sure) < np.median([float(row["probability"]) for row in rows])


def test_the_run_is_in_the_page(finished: Path, digits: Path) -> None:
    page = Page(index(digits))
    assert sum(tag == "polyline" for tag, _ in page.tags) == 4
    assert {"training", "validation", "model.dim", "16"} <= {text.strip() for text in page.texts}
    command = f"vit-eval checkpoint={finished} output={digits}"
    assert command in page.texts


def test_a_file_outside_a_run_has_no_curves(finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / "checkpoints" / "best.pt", tmp_path / "alone.pt")
    done = run("eval", "checkpoint=alone.pt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = Page(index(tmp_path / "alone" / "test"))
    assert not any(tag == "polyline" for tag, _ in page.tags)
    assert "Learning curves" not in page.texts
    assert (tmp_path / "alone" / "temperature.json").is_file()


def test_no_page_where_none_is_wanted(finished: Path, tmp_path: Path) -> None:
    done = run("eval", f"checkpoint={finished}", "output=o", "report=false", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "index.html" not in done.stdout
    assert sorted(file.name for file in (tmp_path / "o").iterdir()) == [
        "metrics.json", "predictions.csv", "temperature.json",
    ]  # fmt: skip


def test_a_fit_on_what_is_shown_is_called_optimistic(finished: Path, tmp_path: Path) -> None:
    done = run("eval", f"checkpoint={finished}", "output=o", "split=val", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "optimistic" in index(tmp_path / "o")


def test_a_fit_on_other_images_is_not(digits: Path) -> None:
    assert "optimistic" not in index(digits)


# Hostile names, another folder


def test_hostile_class_folders_are_text(tmp_path: Path) -> None:
    classes = ["<script>alert(1)<", "{{ 7 * 7 }}", "\"'&<img src=x onerror=alert(1)>"]
    for number, label in enumerate(classes):
        for i in range(12):
            save(tmp_path / "in" / label / f"<b>{i}.png", noise(16, 16, seed=100 * number + i))
    args = [*SMALL, "data=folder", "data.root=in", "data.image_size=16", "trainer.steps=2"]
    cut = ["trainer.batch_size=8", "data.val_fraction=0.2", "data.test_fraction=0.4"]
    done = run("train", *args, *cut, "name=h", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert run("eval", "checkpoint=outputs/h", cwd=tmp_path).returncode == 0
    done = run("eval", "checkpoint=outputs/h", "images=in", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for what in ("test", "images-in"):
        text = index(tmp_path / "outputs" / "h" / "eval" / what)
        needs_nothing(text)
        page = Page(text)
        assert page.data["classes"] == sorted(classes)
        assert [given for tag, given in page.tags if tag == "script"] == [
            {"type": "application/json", "id": "data"}, {},
        ]  # fmt: skip
        assert not any("onerror" in given for _, given in page.tags)
        assert set(classes) <= set(page.texts)
    original = json.loads((tmp_path / "outputs/h/eval/test/metrics.json").read_text())
    shown = [words.strip() for words in page.texts]
    row = shown.index("test")  # the split's own scores beside those of the folder
    assert f"{original['top1']:.2f}" in shown[row : row + 4]
    assert "difference" in shown


def test_hostile_names_everywhere_are_text() -> None:
    report = made_up(60, 4, lambda k: f"{HOSTILE}{k}")
    report = replace(
        report, title=HOSTILE, facts=[HOSTILE], calibration=HOSTILE, command=HOSTILE,
        settings={HOSTILE: HOSTILE}, compared={HOSTILE: {"top1": 1.0}, "b": {"top1": 2.0}},
        names=[f"{HOSTILE}\udce9"] * 60, loss={HOSTILE: [(0.0, 1.0), (1.0, 2.0)]},
        reliability={HOSTILE: next(iter(report.reliability.values()))},
        corruptions={HOSTILE: {1: 50.0, 3: 40.0}}, versus=against(report, HOSTILE),
    )  # fmt: skip
    thumbnails = pictures_of(report)
    text = report_page(report, thumbnails, thumbnails)
    assert HOSTILE not in text
    assert sum(tag == "script" for tag, _ in Page(text).tags) == 2
    assert text.count(HOSTILE.replace("<", "&lt;").replace(">", "&gt;")) > 20
    assert text.encode("utf-8", "replace")


# Size


def test_fifty_thousand_images_of_a_thousand_classes_fit() -> None:
    report = made_up(50_000, 1000)
    started = time.monotonic()
    thumbnails = pictures_of(report, side=224)
    text = report_page(report, thumbnails, {i: thumbnails[i] for i in report.chosen.worst})
    assert time.monotonic() - started < 60
    assert 1_000_000 < len(text) < 20_000_000
    page = Page(text)
    assert "With 1000 classes the whole matrix" in text
    assert len(page.all("button", "data-cell")) == len(report.chosen.cells) == 60
    assert sum(given.get("class") == "bar" for _, given in page.tags) == 3000
    assert all(len(numbers) <= 20 for numbers in page.data["cells"].values())


@pytest.mark.parametrize("classes", [50, 51])
def test_the_matrix_is_whole_up_to_fifty_classes(classes: int) -> None:
    report = made_up(3000, classes)
    text = report_page(report, pictures_of(report), {})
    assert ("the whole matrix" in text) == (classes > 50)
    shown = len(Page(text).all("button", "data-cell"))
    assert shown == (np.count_nonzero(report.confusion) if classes == 50 else 60)
    assert len(report.chosen.in_order()) <= 1000


def test_few_classes_and_nothing_wrong_have_a_page() -> None:
    report = made_up(5, 2, right=1.0)
    text = report_page(report, pictures_of(report), {})
    assert "Worst mistakes" not in text
    assert "top-5" not in text
    assert Page(text).data["cells"].keys() <= {"0,0", "1,1"}


def test_thumbnails_are_small_and_small_images_exact() -> None:
    rng = np.random.default_rng(0)
    for side, kind in ((8, "PNG"), (32, "PNG"), (33, "JPEG"), (500, "JPEG")):
        image = rng.integers(0, 256, (side, 2 * side if side == 500 else side, 3), np.uint8)
        shown = Image.open(io.BytesIO(b64decode(data_uri(image).partition("base64,")[2])))
        assert (shown.format, max(shown.size)) == (kind, min(side, 96))
        if kind == "PNG":
            assert (np.asarray(shown) == image).all()
    images = [(i, np.zeros((8, 8, 3), np.uint8)) for i in range(9)]
    one = len(data_uri(images[0][1]))
    assert list(within(iter(images), 4 * one + 1)) == [0, 1, 2, 3]


# Figures


def test_ticks_are_round_and_hold_the_range() -> None:
    for low, high in ((0.0, 1.0), (0.137, 2.3), (93.0, 97.5), (5.0, 5.0), (0.0, 0.0), (-3.0, 1e6)):
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low
        assert ticks[-1] >= high
        assert 2 <= len(ticks) <= 8
        np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_lines_stay_inside_and_keep_their_mean() -> None:
    points = [(float(i), float(np.sin(i / 50))) for i in range(1, 2001)]
    thin = thinned(points)
    assert len(thin) <= 300
    drawn = chart({"a": points, "b": [(1.0, 0.0)]}, mark=1000.0)
    assert drawn is not None
    assert list(drawn["lines"]) == ["a"]
    xy = np.array([[float(v) for v in p.split(",")] for p in drawn["lines"]["a"].split()])
    assert drawn["left"] <= xy[:, 0].min()
    assert xy[:, 0].max() <= drawn["right"]
    assert drawn["top"] <= xy[:, 1].min()
    assert xy[:, 1].max() <= drawn["bottom"]
    assert chart({"b": [(1.0, 0.0)]}) is None


def test_bars_reach_from_accuracy_to_confidence() -> None:
    bins = metrics.calibration(np.array([0.5, 0.5, 0.9, 0.9]), np.array([1, 1, 1, 0], bool))
    spare, missing = reliability(bins)["bars"]
    assert [bar["too_sure"] for bar in (spare, missing)] == [False, True]
    scale = (240 - 10) / 100
    assert spare["height"] / scale == pytest.approx(50)
    assert missing["height"] / scale == pytest.approx(50)
    assert (spare["gap"] / scale, missing["gap"] / scale) == (pytest.approx(50), pytest.approx(40))
    assert spare["count"] == missing["count"] == 44


# In a browser


DRIVER = """
<script>
addEventListener("load", () => setTimeout(() => {
  const found = {}, $ = s => document.querySelector(s), texts = () =>
    [...document.querySelectorAll("#classes tbody tr")].map(row => row.cells[2].textContent);
  const recall = document.querySelectorAll("#classes th button")[2];
  recall.focus();
  found.focused = document.activeElement === recall;
  recall.click();
  found.falling = [recall.parentNode.getAttribute("aria-sort"), texts()];
  recall.click();
  found.rising = [recall.parentNode.getAttribute("aria-sort"), texts()];
  document.querySelectorAll("#classes th button")[0].click();
  found.names = [...document.querySelectorAll("#classes tbody td.text")].map(x => x.textContent);
  found.sorted = document.querySelectorAll("#classes th[aria-sort]").length;
  found.cells = [...document.querySelectorAll("button[data-cell]")].map(button => {
    button.click();
    return [button.dataset.cell, document.querySelectorAll("#opened img").length,
            $("#opened h3").textContent, document.querySelectorAll("[aria-pressed=true]").length];
  });
  Promise.all([...document.images].map(image => image.decode())).then(() => {
    found.images = [...document.images].every(image => image.naturalWidth > 0);
    found.wide = document.documentElement.scrollWidth;
    found.view = innerWidth;
    document.body.dataset.found = JSON.stringify(found);
  });
}, 50));
</script>
"""


def opened(page: str, folder: Path, width: int = 390) -> dict[str, Any]:
    """What a browser finds after clicking through the page."""
    return driven(page, DRIVER, folder, width)


@needs_browser
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_sorts_and_opens(digits: Path, tmp_path: Path, width: int) -> None:
    page = Page(index(digits))
    found = opened(index(digits), tmp_path, width)
    assert found["focused"]
    order, recalls = found["falling"]
    assert (order, recalls) == ("descending", sorted(recalls, key=float, reverse=True))
    order, recalls = found["rising"]
    assert (order, recalls) == ("ascending", sorted(recalls, key=float))
    assert found["names"] == [str(k) for k in range(10)]
    assert found["sorted"] == 1
    assert found["images"]
    assert found["wide"] <= found["view"]
    for cell, images, title, pressed in found["cells"]:
        assert images == len(page.data["cells"][cell]) > 0
        assert cell[0] in title
        assert pressed == 1


@needs_browser
def test_a_browser_runs_nothing_hostile(tmp_path: Path) -> None:
    attack = "<img src=x onerror=\"document.body.dataset.found='pwned'\">" + HOSTILE
    report = replace(made_up(80, 3, lambda k: f"{attack}{k}"), title=attack)
    found = opened(report_page(report, pictures_of(report), {}), tmp_path)
    assert found["images"]
    assert all(attack in title for _, _, title, _ in found["cells"])


@needs_browser
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_a_comparison_and_corruptions(tmp_path: Path, width: int) -> None:
    report = made_up(200, 4)
    scores = {name: {1: 90.0, 3: 60.0, 5: 7.5} for name in ("gaussian_noise", "contrast")}
    report = replace(report, versus=against(report, "a/long/path/" * 9), corruptions=scores)
    text = report_page(report, pictures_of(report), {})
    found = opened(text, tmp_path, width)
    assert found["images"]
    assert found["wide"] <= found["view"]
    shown = {words.strip() for words in Page(text).texts}
    assert {"Gaussian noise", "contrast", "52.50", "severity 5", "7.50"} <= shown


@needs_browser
def test_a_browser_opens_pairs_of_many_classes(tmp_path: Path) -> None:
    report = made_up(2000, 60, "long-name-of-a-class-{}".format)
    found = opened(report_page(report, pictures_of(report), {}), tmp_path)
    assert len(found["cells"]) == 60
    assert all(images > 0 for _, images, _, _ in found["cells"])
    assert found["names"] == [f"long-name-of-a-class-{k}" for k in range(60)]  # 2 before 10
