"""`vit-explain`: a picture of each image and an index, inside the folder that was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from pictures import CPU, RED, noise, save, write
from PIL import Image

from vit.artifacts.predictions import Labelled
from vit.cli.explain import class_number
from vit.config.commands import ExplainConfig
from vit.config.validate import checked
from vit.config.yaml_files import config_dir, load_yaml
from vit.errors import ConfigError
from vit.inference.explain import class_attention, heat, relevance, rollout
from vit.inference.load import load_trained
from vit.inference.pictures import METHODS, Explained, contact_sheet, explain
from vit.inference.predict import classify, open_images

HOSTILE = "~..\n\x1b[1m; rm *\udcff.png"


def test_pictures_are_written_and_open(finished: Path, tmp_path: Path) -> None:
    for name in (HOSTILE, "größe.jpg", "z.png"):
        save(tmp_path / "in" / "photos" / name, noise(30, 20))
    write(tmp_path / "in" / "photos" / "bad.png", b"hello")
    before = set(tmp_path.rglob("*"))
    args = [f"checkpoint={finished}", "images=in/photos", "limit=3", "class=7", "layers=true"]
    args.append("explorer=0")
    done = run("explain", *args, "output=in/out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 images explained (of 4 found; more with limit=4)\n  in/out/")
    assert "warning: in/photos/bad.png cannot be decoded" in done.stderr
    folder = tmp_path / "in" / "out"
    made = set(tmp_path.rglob("*")) - before - {folder}
    assert {path.parent for path in made} == {folder}
    names = sorted(path.name for path in made)
    assert len(names) == 5
    assert names[4] == "index.png"
    assert all(name.isascii() and " " not in name for name in names)
    sizes = {}
    for name in names:
        with Image.open(folder / name) as image:
            sizes[name] = image.size
            assert image.mode == "RGB"
            assert np.asarray(image).std() > 10
    figure, layers = sizes[names[1]], sizes[names[0]]
    assert 4 * 224 <= figure[0] < 4 * 250  # the image, three methods and the scale
    assert 224 < figure[1] < 300
    assert 2 * 224 < layers[0] < 3 * 224  # two heads, two layers
    assert 2 * 224 < layers[1] < 3 * 224
    assert sizes["index.png"][0] > 4 * 112
    assert 2 * 112 < sizes["index.png"][1] < 3 * 112


def test_by_default_pictures_go_into_the_run(finished: Path, tmp_path: Path) -> None:
    save(tmp_path / "x.png", RED)
    args = ["images=x.png", "methods=[rollout]"]
    done = run("explain", f"checkpoint={finished}", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = finished / "explain"
    names = ["001-x.png", "index.html", "index.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    with Image.open(folder / "001-x.png") as image:
        assert 2 * 224 <= image.width < 2 * 270
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_errors_are_one_line(finished: Path, tmp_path: Path) -> None:
    save(tmp_path / "x.png")
    for args, code, words in (
        (["images=x.png", "class=seven"], 2, "class=seven is none of the model's: 0, 1, 2,"),
        (["images=x.png", "metods=[rollout]"], 2, "did you mean methods?"),
        (["images=nowhere"], 2, "images=nowhere does not exist"),
    ):
        done = run("explain", f"checkpoint={finished}", *args, cwd=tmp_path)
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr
        assert all(line.startswith("vit-explain: ") for line in done.stderr.splitlines())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["rollot"]}, "did you mean rollout?"),
        ({"methods": []}, "must not be empty"),
        ({"methods": "rollout"}, r"must be a list, e.g. \[rollout\]"),
        ({"class": 7}, "class=7 must be text"),
        ({"class_": "7"}, "class_ is no known key; did you mean class?"),
        ({"limit": 0}, "limit=0 must be 1 or more"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, object], words: str) -> None:
    plain = load_yaml((config_dir() / "explain.yaml").read_text(), "explain.yaml")
    del plain["defaults"]
    plain |= {"checkpoint": "run", "images": "photos"}
    assert checked(ExplainConfig, {**plain, "class": "rose"}).class_ == "rose"
    with pytest.raises(ConfigError, match=words):
        checked(ExplainConfig, {**plain, **changes})


def test_a_class_is_found_by_its_name() -> None:
    assert class_number(None, ["a", "b"]) is None
    assert class_number("b", ["a", "b"]) == 1
    with pytest.raises(ConfigError, match=r"a0, .*a11 and 18 more \(did you mean a29\?\)"):
        class_number("a29x", [f"a{i}" for i in range(30)])


def explained(finished: Path, paths: list[str], wanted: int | None) -> list[Explained]:
    trained = load_trained(finished, CPU, pytest.fail)
    loader = open_images(trained, paths, batch_size=2)
    return list(explain(trained, loader, list(METHODS), wanted))


def test_maps_are_those_of_the_methods_and_the_picture_is_what_the_model_sees(
    finished: Path, tmp_path: Path
) -> None:
    paths = [str(save(tmp_path / f"{i}.png", noise(8, 8, seed=i))) for i in range(3)]
    trained = load_trained(finished, CPU, pytest.fail)
    images = torch.cat([open_images(trained, [path]).batch(0)[0] for path in paths])
    answers = classify(trained, open_images(trained, paths), 3)
    best = [dict([answer.labels[0]]) for answer in answers]
    found = explained(finished, paths, None)
    classes = torch.tensor([int(next(iter(labels))) for labels in best])
    layers = class_attention(trained.model, images)
    expected = {
        "rollout": rollout(trained.model, images),
        "relevance": relevance(trained.model, images, classes),
        "attention": layers[:, -1].mean(dim=1),
    }
    for i, one in enumerate(found):
        assert one.name == paths[i]
        ((label, probability),) = best[i].items()
        assert one.caption == f"{100 * probability:.0f} % {label}"
        assert list(one.heats) == list(expected)
        for name, values in expected.items():
            np.testing.assert_allclose(one.heats[name], heat(values)[i], atol=1e-4)
        most = layers[i].amax(dim=(1, 2, 3))
        np.testing.assert_allclose(one.layers, layers[i] / most[:, None, None, None], atol=1e-4)
        np.testing.assert_allclose(one.most, most * layers[i][0, 0].numel(), rtol=1e-4)
        with Image.open(paths[i]) as file:
            gray = np.asarray(file.convert("L"))
        assert one.image.shape == (224, 224, 3)
        np.testing.assert_array_equal(one.image[::28, ::28], gray[..., None].repeat(3, 2))
        np.testing.assert_array_equal(one.image[27::28, 27::28, 1], gray)
        assert [tile.shape for tile in one.small_tiles()] == [(112, 112, 3)] * 4
    for i, one in enumerate(explained(finished, paths, 4)):
        ours = relevance(trained.model, images, torch.full((3,), 4))
        np.testing.assert_allclose(one.heats["relevance"], heat(ours)[i], atol=1e-4)
        assert "; relevance for " in one.caption
        assert one.caption.endswith(" % 4")


def test_a_sheet_of_many_and_of_one(tmp_path: Path) -> None:
    paths = [str(save(tmp_path / f"{i}.png", noise(40, 30, seed=i))) for i in range(7)]
    sheet = contact_sheet([Labelled(path, [(HOSTILE, 0.5), ("b", 0.1)]) for path in paths])
    assert sheet.dtype == np.uint8
    assert 3 * 172 < sheet.shape[1] < 3 * 180
    one = contact_sheet([Labelled(paths[0], [("a", 1.0)])])
    three = contact_sheet([Labelled(paths[0], [("a", 0.8), ("b", 0.1), ("c", 0.1)])])
    assert three.shape == (one.shape[0] + 2 * 17, *one.shape[1:])


def test_unsure_and_unknown_images_stand_out_on_the_sheet(tmp_path: Path) -> None:
    path = str(save(tmp_path / "a.png", noise(40, 30)))
    sure, unsure, unknown = (
        contact_sheet([image])[-6, 20].tolist()
        for image in (
            Labelled(path, [("a", 0.5), ("b", 0.4)], set=["a", "b"]),
            Labelled(path, [("a", 0.4), ("b", 0.3)]),
            Labelled(path, [], unknown=True),
        )
    )
    assert max(sure) - min(sure) < 10  # gray
    assert sure != unsure != unknown != sure
    assert unsure[0] > unsure[2] + 40
    assert unknown[0] > unknown[1] + 30
