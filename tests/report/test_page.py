"""The page of `vit-eval`: complete, self-contained, safe, small."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import time
from base64 import b64decode
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import Page
from commands import SMALL, run
from pictures import noise, save
from PIL import Image
from reports import HOSTILE, against, index, made_up, pictures_of

from vit.api import load_run
from vit.config.validate import to_config
from vit.data.sources.registry import load_data_set
from vit.report.page import report_page


def needs_nothing(text: str) -> None:
    """Whether nothing beside the page is asked for."""
    assert not re.search(r"https?://|url\(|@import", text)
    for tag, given in Page(text).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert not {"src", "href", "action", "srcset", "poster", "background"} & given.keys()


# What the page says


def test_the_page_needs_nothing_beside_itself(evaluated: Path) -> None:
    text = index(evaluated)
    needs_nothing(text)
    assert {file.name for file in (evaluated / "report").iterdir()} == {"index.html"}
    policy = "default-src 'none'"
    assert any(policy in content for content in Page(text).all("meta", "content"))


def test_the_page_shows_every_score_with_its_interval(evaluated: Path) -> None:
    page, found = Page(index(evaluated)), json.loads((evaluated / "metrics.json").read_text())
    shown = {text.strip() for text in page.texts}
    for key in ("top1", "top5", "macro_f1", "loss", "brier", "ece"):
        digits_after = 2 if key.startswith("top") else 4
        low, high = found["intervals"][key]
        assert f"{found[key]:.{digits_after}f}" in shown
        assert f"{low:.{digits_after}f} to {high:.{digits_after}f}" in shown
    assert f"with temperature {found['temperature']:.3f}" in index(evaluated)
    assert any(f"{found['calibrated']['loss']:.4f}" in text for text in shown)
    for row in found["per_class"]:
        assert f"{row['f1']:.3f}" in shown
    assert found["sets"]
    for own in found["sets"].values():
        assert {f"{own['holds']:.1f} %", f"{own['labels']:.2f}"} <= shown
    for own in found["unknown"].values():
        assert f"{own['refused']:.1f} %" in shown


def test_the_matrix_is_that_of_the_predictions(evaluated: Path) -> None:
    with open(evaluated / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    buttons = [given for tag, given in Page(index(evaluated)).tags if "data-cell" in given]
    shown = {given["data-cell"]: int(str(given["data-count"])) for given in buttons}
    pairs = [f"{row['label']},{row['prediction']}" for row in rows]
    assert shown == {pair: pairs.count(pair) for pair in pairs}


def test_every_image_of_few_is_shown_as_the_model_saw_it(finished: Path, evaluated: Path) -> None:
    images = Page(index(evaluated)).data["images"]
    trained = load_run(finished)
    samples = load_data_set(to_config(trained.config).data).splits["test"]
    with open(evaluated / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(images) == set(map(str, range(len(rows))))
    pixels = torch.from_numpy(samples.images[samples.index]).float() / 255
    mean, std = trained.preprocessing["mean"][0], trained.preprocessing["std"][0]
    with torch.no_grad():
        logits = trained.model((pixels - mean) / std)
    chances = 100 * (logits / json.loads((evaluated / "metrics.json").read_text())["temperature"]
                     ).softmax(-1)  # fmt: skip
    for i, row in enumerate(rows):
        image = images[str(i)]
        encoded = image["picture"].partition("base64,")[2]
        shown = np.asarray(Image.open(io.BytesIO(b64decode(encoded))))
        assert (shown == samples.images[samples.index[i]].transpose(1, 2, 0)).all()
        assert image["name"] == row["image"]
        assert (image["label"], image["said"]) == ([int(row["label"])], [int(row["prediction"])])
        best = chances[i].topk(5)
        assert [k for k, _ in image["top"]][:5] == best.indices.tolist()
        for k, percent in image["top"]:
            assert percent == pytest.approx(float(chances[i, k]), abs=0.06)
        assert int(row["label"]) in [k for k, _ in image["top"]]


def test_heat_maps_are_of_the_worst_and_the_least_certain(evaluated: Path) -> None:
    images = list(Page(index(evaluated)).data["images"].values())
    hot = [image for image in images if "heat" in image]
    assert len(hot) == 200
    wrong = sorted((i for i in images if i["label"] != i["said"]), key=lambda i: -i["loss"])
    assert all("heat" in image for image in wrong[:24])
    assert all("heat" in i for i in sorted(images, key=lambda i: i["margin"])[:24])
    file = io.BytesIO(b64decode(hot[0]["heat"].partition("base64,")[2]))
    picture = np.asarray(Image.open(file))
    assert picture.shape == (4, 4, 4)  # a colour and an opacity of each patch
    assert picture[..., 3].min() < 50 < 200 < picture[..., 3].max()


def test_likely_label_errors_are_listed_and_marked(evaluated: Path) -> None:
    images = Page(index(evaluated)).data["images"]
    with open(evaluated / "label_errors.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    marked = sorted((i for i in images.values() if "issue" in i), key=lambda i: i["issue"])
    assert [(i["name"], str(i["label"][0]), str(i["instead"])) for i in marked] == [
        (row["image"], row["label"], row["rather"]) for row in rows
    ]
    gaps = [float(row["probability"]) - float(row["probability_rather"]) for row in rows]
    assert len(gaps) > 3
    assert gaps == sorted(gaps)


def test_the_page_begins_with_its_sentences(evaluated: Path) -> None:
    page, found = Page(index(evaluated)), json.loads((evaluated / "metrics.json").read_text())
    images, hits = found["images"], round(found["top1"] * found["images"] / 100)
    (first,) = [text for text in page.texts if text.startswith("Right ")]
    low, high = found["intervals"]["top1"]
    assert first.startswith(f"Right {hits} times of {images} ({low:.0f} to {high:.0f} %). Always '")
    assert any(text.startswith("The validation loss ") for text in page.texts)


def test_the_run_is_in_the_page(finished: Path, evaluated: Path) -> None:
    page = Page(index(evaluated))
    assert sum(tag == "polyline" for tag, _ in page.tags) == 4
    assert {"training", "validation", "model.dim", "16"} <= {text.strip() for text in page.texts}
    command = f"vit-eval checkpoint={finished} output={evaluated}"
    assert command in page.texts


def test_a_file_outside_a_run_has_no_curves(finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / "checkpoints" / "best.pt", tmp_path / "alone.pt")
    done = run("eval", "checkpoint=alone.pt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = Page(index(tmp_path / "alone" / "test"))
    assert not any(tag == "polyline" for tag, _ in page.tags)
    assert "Learning curves" not in page.texts


def test_no_page_where_none_is_wanted(finished: Path, tmp_path: Path) -> None:
    done = run("eval", f"checkpoint={finished}", "output=o", "report=false", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "index.html" not in done.stdout
    assert sorted(file.name for file in (tmp_path / "o").iterdir()) == [
        "label_errors.csv", "metrics.json", "predictions.csv",
    ]  # fmt: skip


def test_a_fit_on_what_is_shown_is_called_optimistic(finished: Path, tmp_path: Path) -> None:
    done = run("eval", f"checkpoint={finished}", "output=o", "split=val", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "optimistic" in index(tmp_path / "o")


def test_a_fit_on_other_images_is_not(evaluated: Path) -> None:
    assert "optimistic" not in index(evaluated)


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
        names=[f"{HOSTILE}\udce9"] * 60, curves={HOSTILE: {HOSTILE: [(0.0, 1.0), (1.0, 2.0)]}},
        reliability={HOSTILE: next(iter(report.reliability.values()))},
        corruptions={HOSTILE: {1: 50.0, 3: 40.0}}, versus=against(report, HOSTILE),
    )  # fmt: skip
    pictures = pictures_of(report)
    text = report_page(report, pictures, pictures)
    assert HOSTILE not in text
    assert sum(tag == "script" for tag, _ in Page(text).tags) == 2
    assert text.count(HOSTILE.replace("<", "&lt;").replace(">", "&gt;")) > 20
    assert text.encode("utf-8", "replace")


# Size


def test_fifty_thousand_images_of_a_thousand_classes_fit() -> None:
    report = made_up(50_000, 1000)
    started = time.monotonic()
    pictures = pictures_of(report, side=224)
    text = report_page(report, pictures, {i: pictures[i] for i in report.order[:24]})
    assert time.monotonic() - started < 60
    assert 1_000_000 < len(text) < 20_000_000
    page = Page(text)
    assert "With 1000 classes the whole matrix" in text
    assert len(page.all("button", "data-cell")) == 60
    assert sum(given.get("class") == "bar" for _, given in page.tags) == 3000
    assert 300 < len(page.data["images"]) <= 1000  # of noise, which takes most


@pytest.mark.parametrize("classes", [50, 51])
def test_the_matrix_is_whole_up_to_fifty_classes(classes: int) -> None:
    report = made_up(3000, classes)
    text = report_page(report, pictures_of(report), {})
    assert ("the whole matrix" in text) == (classes > 50)
    shown = Page(text).all("button", "data-cell")
    counts = Counter(zip(report.labels.tolist(), report.predicted.tolist(), strict=True))
    if classes == 50:
        assert set(shown) == {f"{a},{b}" for a, b in counts}
    else:
        most = sorted((n for (a, b), n in counts.items() if a != b), reverse=True)[:60]
        assert [counts[a, b] for a, b in (map(int, cell.split(",")) for cell in shown)] == most
    assert len(report.order) == len(set(report.order)) == 1000


def test_few_classes_and_nothing_wrong_have_a_page() -> None:
    report = made_up(5, 2, right=1.0)
    text = report_page(report, pictures_of(report), {})
    assert "It is wrong on none of them." in text
    assert "top-5" not in text
    assert set(Page(text).all("button", "data-cell")) <= {"0,0", "1,1"}
