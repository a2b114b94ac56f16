"""What TensorBoard shows of a model: the numbers behind the pictures, and a real server."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import SMALL, run

from vit.inference import explain as insight
from vit.inference.explain import attention_distance, patch_filters, position_similarity
from vit.model.positions import POSITIONS
from vit.model.vit import VisionTransformer
from vit.report.drawing import LABELLED, confusion_picture, similarity_picture
from vit.training.monitor import SHARE, TensorBoardPictures, in_turn


def model(**knobs: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer((16, 24), 4, 5, dim=16, depth=3, heads=2, **knobs).eval()


@pytest.mark.parametrize("positions", sorted(POSITIONS))
def test_similarity_is_the_cosine_between_two_positions(positions):
    built = model(positions=positions)
    similarity = position_similarity(built)
    if built.pos_embed is None:
        assert similarity is None
        return
    assert similarity is not None
    assert similarity.shape == (4, 6, 4, 6)
    table = built.pos_embed[0].view(4, 6, 16)
    a, b = table[1, 2].double(), table[3, 5].double()
    expected = (a @ b / a.norm() / b.norm()).item()
    assert similarity[1, 2, 3, 5].item() == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(similarity[1, 2, 1, 2], torch.ones(()))


def test_filters_are_the_directions_in_which_filters_differ():
    built = model()
    flat = torch.zeros(16, 3 * 4 * 4)
    flat[:8, 5], flat[8:, 5] = 1.0, -1.0  # they differ in one pixel alone
    with torch.no_grad():
        built.patch_embed.proj.weight.copy_(flat.view_as(built.patch_embed.proj.weight))
    filters = patch_filters(built, 3)
    assert filters.shape == (3, 3, 4, 4)
    first = filters[0].flatten() - 0.5
    assert first[5].abs() == pytest.approx(0.5)
    assert first[torch.arange(48) != 5].abs().max() < 1e-6
    assert 0 <= filters.min() <= filters.max() <= 1


def test_distance_is_in_pixels(monkeypatch):
    """Patches that attend to their right neighbours look 4 px far; those to themselves 0."""
    built = model(pool="mean")
    ahead = torch.zeros(1, 2, 24, 24)
    for n in range(24):
        ahead[0, 0, n, n] = 1
        ahead[0, 1, n, n + 1 if n % 6 < 5 else n - 1] = 1
    monkeypatch.setattr(insight, "attention_maps", lambda model, images, mask: [ahead])
    assert attention_distance(built, torch.zeros(1, 3, 16, 24)).tolist() == [[0.0, 4.0]]


def test_distance_is_of_patches_alone():
    """What goes to class token and registers does not count, and all else counts wholly."""
    plain = model()
    images = torch.randn(2, 3, 16, 24)
    assert attention_distance(plain, images).shape == (3, 2)
    far = attention_distance(model(registers=3), images)
    assert 4 < far.min() <= far.max() < (16**2 + 24**2) ** 0.5


def test_one_of_each_class_then_the_next():
    labels = np.array([2, 0, 0, 1, 2, 2, 0])
    assert in_turn(labels, 5).tolist() == [1, 3, 0, 2, 4]
    assert sorted(in_turn(labels, 99).tolist()) == list(range(7))


@pytest.mark.parametrize("classes", [2, LABELLED, LABELLED + 1, 300])
def test_a_confusion_picture_is_bright_where_the_images_are(classes):
    counts = np.diag(np.full(classes, 5))
    picture = confusion_picture(counts, ["a <b> long name of a class"] * classes)
    assert picture.dtype == np.uint8
    assert max(picture.shape[:2]) < 2000
    cell = 44 if classes <= LABELLED else 800 // classes
    last = picture[-cell // 4, -cell // 4]  # of the diagonal
    beside = picture[-cell // 4, -cell - 1]
    assert int(last.sum()) > int(beside.sum()) + 100


def test_a_similarity_picture_has_a_tile_for_each_patch():
    similarity = np.zeros((2, 3, 2, 3))
    for row in range(2):
        for column in range(3):
            similarity[row, column, row, column] = 1
    picture = similarity_picture(similarity, side=120)
    scale = (120 // 3 - 4) // 3
    height, width = 2 * scale + 4, 3 * scale + 4
    assert picture.shape == (2 * height, 3 * width, 3)
    bright = picture.sum(axis=-1, dtype=int)
    for row in range(2):
        for column in range(3):
            tile = bright[row * height :, column * width :][: 2 * scale, : 3 * scale]
            cells = tile[::scale, ::scale]
            assert cells.argmax() == row * 3 + column


def test_pictures_take_their_share_of_the_time():
    album = TensorBoardPictures.__new__(TensorBoardPictures)
    album.seconds = album.last = 0.0
    assert album.is_due(0.0)
    album.seconds, album.last = 0.5, 0.2
    assert not album.is_due(0.8 / SHARE)
    assert album.is_due(0.95 / SHARE)  # the last ones fit as well


def ask(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/{path}", timeout=20) as answer:
        body = answer.read()
    return json.loads(body) if body[:1] in b"[{" else body


def test_tensorboard_serves_every_tag(tmp_path: Path) -> None:
    """A real server on a real run folder."""
    args = [*SMALL, "trainer.epochs=2", "trainer.histograms=true", "name=seen"]
    assert run("train", *args, cwd=tmp_path).returncode == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", "outputs/seen", "--port", str(port),
         "--load_fast=false"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        tags: dict[str, Any] = {}
        while not tags.get("images") or "final" not in tags["scalars"]:
            assert time.monotonic() < deadline, "TensorBoard shows nothing"
            time.sleep(0.5)
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                plugins = ("scalars", "images", "histograms")
                tags = {p: ask(port, f"plugin/{p}/tags") for p in plugins}
        assert set(tags["scalars"]) == {"train", "val", "final"}
        for split in ("train", "val"):  # one chart for both, and nothing is sorted before it
            assert sorted(tags["scalars"][split])[:2] == ["curves/loss", "curves/top1"]
        every = {tag for runs in tags.values() for found in runs.values() for tag in found}
        assert min(every - {"curves/loss", "curves/top1"}).startswith("details/")
        assert set(tags["images"]["train"]) == {"pictures/first_batch"}
        pictures = {"confusion", "attention", "positions", "patch_filters"}
        assert {f"pictures/{name}" for name in pictures} == set(tags["images"]["val"])
        assert {"recall/7", "distance/layer_01"} <= set(tags["scalars"]["val"])
        assert {"weights/head.weight", "gradients/head.weight"} <= set(tags["histograms"]["val"])
        for plugin, runs in tags.items():
            for of, tag in [(of, tag) for of, found in runs.items() for tag in found]:
                query = urllib.parse.urlencode({"run": of, "tag": tag})
                points = ask(port, f"plugin/{plugin}/{plugin}?{query}")
                assert points, tag
                if plugin == "images":
                    picture = ask(port, f"plugin/images/individualImage?{points[-1]['query']}")
                    assert picture.startswith(b"\x89PNG")
        settings = ask(port, "plugin/hparams/experiment?request=%7B%7D")
        columns = {column["name"] for column in settings["hparamInfos"]}
        assert {"optim.lr", "augment.name", "model.dim", "data.workers"} <= columns
        assert len(columns) < 30
        scores = {"test_loss", "test_top1", "test_top5", "val_loss", "val_top1", "val_top5"}
        found = {metric["name"]["tag"] for metric in settings["metricInfos"]}
        assert found == {f"scores/{score}" for score in scores}
    finally:
        server.terminate()
        server.wait(timeout=20)
