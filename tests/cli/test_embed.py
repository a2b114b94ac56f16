"""`vit-embed`: embeddings, neighbours and what they are worth, of runs and of weights alone."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from pictures import noise, save, write
from PIL import Image
from sklearn.linear_model import RidgeClassifierCV
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

import vit
from vit.model.vit import VisionTransformer, ViTConfig
from vit.report.neighbours import SHARPNESS, nearest, probe


def shade(bright: int, seed: int) -> Image.Image:
    """Noise, in the upper half of the values or in the lower one."""
    return noise(12, 12, seed=seed).point([127 * bright + value // 2 for value in range(256)] * 3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise, bright and dark, with train and val; a damaged image; and others."""
    folder = tmp_path_factory.mktemp("embed")
    for split, count in (("train", 12), ("val", 5)):
        for number, name in enumerate(("bright", "dark")):
            for i in range(count):
                image = shade(1 - number, seed=100 * count + 20 * number + i)
                save(folder / "labelled" / split / name / f"{i:02}.png", image)
    for i in range(4):
        save(folder / "new" / f"{i}.png", shade(i % 2, seed=i))
    write(folder / "new" / "bad.png", b"hello")
    return folder


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


# Neighbours


def test_neighbours_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = (rng.normal(size=(n, 7)).astype(np.float32) for n in (30, 90))
    near = nearest(ours, theirs, 5)
    found = NearestNeighbors(n_neighbors=5, metric="cosine").fit(theirs)
    distance, index = found.kneighbors(ours)
    np.testing.assert_array_equal(near.index, index)
    np.testing.assert_allclose(near.similarity, 1 - distance, atol=1e-6)
    alone = nearest(theirs, theirs, 4, among_themselves=True)
    np.testing.assert_array_equal(alone.index, found.kneighbors(theirs)[1][:, 1:])
    assert nearest(ours, theirs[:3], 5).index.shape == (30, 3)
    assert nearest(theirs[:3], theirs[:3], 5, among_themselves=True).index.shape == (3, 2)


def test_votes_are_weighted_by_similarity() -> None:
    near = nearest(np.array([[1.0, 0.0]]), np.array([[1.0, 0.1], [1.0, 0.5], [1.0, -0.5]]), 3)
    labels = np.array([1, 0, 0])
    weights = np.exp((near.similarity[0] - near.similarity[0, 0]) / SHARPNESS)
    best, share = near.vote(labels, 2)
    assert best.tolist() == [1]  # one that is close outweighs two that are not
    assert share[0] == pytest.approx(weights[0] / weights.sum())


def test_the_probe_is_ridge_regression() -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(120) % 3
    values = rng.normal(size=(120, 6)) + labels[:, None] * [1, 0, -1, 0, 0.5, 0]
    scaler = StandardScaler().fit(values[:90])
    own = RidgeClassifierCV(np.logspace(-2, 5, 8)).fit(scaler.transform(values[:90]), labels[:90])
    said = probe(values[:90], labels[:90], values[90:])
    np.testing.assert_array_equal(said, own.predict(scaler.transform(values[90:])))
    held_out = probe(values, rng.permutation(labels))
    assert 0.15 < (held_out == labels).mean() < 0.55  # of labels that say nothing it learns nothing


# The command


def test_embeddings_are_what_the_head_sees(finished: Path, photos: Path) -> None:
    done = run("embed", str(finished), "new", "output=e.npy", cwd=photos)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 images embedded, 16 numbers each\n  e.npy\n  e.csv")
    assert "new/bad.png cannot be decoded" in done.stderr
    found, trained = np.load(photos / "e.npy"), vit.load_run(finished)
    names = [row["image"] for row in rows(photos / "e.csv")]
    assert names == [f"new/{i}.png" for i in range(4)]
    places = [photos / name for name in names]
    np.testing.assert_array_equal(found, trained.embed(places))
    with torch.no_grad():
        seen = torch.stack([trained.transform(place) for place in places])
        own = trained.model.forward_head(trained.model.encode(seen)[0], None, pre_logits=True)
    np.testing.assert_allclose(found, own.numpy(), atol=2e-2 * np.abs(found).max())


def test_neighbours_label_images_and_are_scored(finished: Path, photos: Path) -> None:
    args = ["knn=labelled", "neighbours=3", "output=n.npy", "page=n.html"]
    done = run("embed", str(finished), "new", *args, cwd=photos)
    assert done.returncode == 0, done.stderr
    said = rows(photos / "n.csv")
    assert [row["label"] for row in said] == ["dark", "bright", "dark", "bright"]
    trained = vit.load_run(finished)
    bank = sorted((photos / "labelled" / "train").rglob("*.png"))
    close = nearest(np.load(photos / "n.npy"), trained.embed(bank), 3)
    for row, index, similarity in zip(said, close.index, close.similarity, strict=True):
        assert row["neighbour"] == str(bank[index[0]].relative_to(photos / "labelled"))
        assert float(row["similarity"]) == pytest.approx(similarity[0], abs=1e-5)
    for name in ("k-NN, 3 neighbours", "linear probe"):
        told = "top-1 100.00 (95 % 72.2 to 100.0), of 10 images of a split of their own"
        assert f"{name}: {told}" in done.stdout
    page = (photos / "n.html").read_text()
    assert page.count('<section class="group query">') == 4
    assert page.count("<img ") == 4 * 4
    done = run("embed", str(finished), "knn=labelled/train", "page=t.html", cwd=photos)
    assert done.returncode == 0, done.stderr
    assert "of 24 images, each by the others" in done.stdout
    assert "images embedded" not in done.stdout


def test_images_that_were_trained_on_are_told(photos: Path, tmp_path: Path) -> None:
    data = ["data=folder", f"data.root={photos}/labelled", "data.image_size=8", "model.dim=16"]
    shape = ["model.depth=1", "model.heads=2", "trainer.steps=3", "name=r", "trainer.batch_size=8"]
    done = run("train", *data, *shape, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for root, told in (("labelled/train", True), ("labelled", False)):
        done = run("embed", "outputs/r", f"knn={photos}/{root}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert ("22 of the 24 images were trained on" in done.stderr) == told


def test_weights_alone_embed(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = ViTConfig(
        dim=64, depth=1, heads=1, image_size=(16, 16), patch_size=8, num_classes=5, mlp_dim=64
    )
    model = VisionTransformer(shape).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    args = ["model.weights=w.pth", f"images={photos}/new", "output=e.npy", f"knn={photos}/labelled"]
    done = run("embed", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "w.pth: " in done.stdout
    assert np.load(tmp_path / "e.npy").shape == (4, 64)
    assert "linear probe: top-1 " in done.stdout
    larger = run("embed", *args, "data.image_size=24", cwd=tmp_path)
    assert larger.returncode == 0, larger.stderr
    assert "resized: positions 2x2 -> 3x3" in larger.stdout


def test_parquet_holds_names_and_embeddings(finished: Path, photos: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    args = ("images=new", "output=e.parquet", "knn=labelled")
    done = run("embed", str(finished), *args, cwd=photos)
    assert done.returncode == 0, done.stderr
    done = run("embed", str(finished), "new", "output=same.npy", cwd=photos)
    table = parquet.read_table(photos / "e.parquet")
    assert table.column_names[:3] == ["image", "label", "share"]
    np.testing.assert_array_equal(
        np.stack(table["embedding"].to_pylist()).astype(np.float32), np.load(photos / "same.npy")
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "give one model: checkpoint="),
        (["r", "model.weights=w.pth", "knn=labelled"], "give one model: checkpoint="),
        (["r"], "give images=<files or a folder>, or knn="),
        (["r", "new"], "give output=<file>.npy or .parquet"),
        (["r", "knn=labelled", "output=e.npy"], "output=e.npy is for the embeddings of images="),
        (["r", "new", "output=e.npy", "page=p.html"], "page=p.html shows neighbours; give knn="),
        (["r", "new", "output=e.txt"], "output=e.txt must end in .npy or .parquet"),
        (["r", "new", "output=e.npy"], "checkpoint=r does not exist"),
    ],
)
def test_what_does_not_go_together_is_answered(given: list[str], told: str, photos: Path) -> None:
    done = run("embed", *given, cwd=photos)
    assert (done.returncode in (1, 2, 3), done.stdout) == (True, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
