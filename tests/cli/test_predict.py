"""`vit-predict`: the labels that vit-eval gives, for files however they are named."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from commands import run
from pictures import RED, noise, save, write
from PIL import Image

from vit.artifacts.predictions import Labelled, as_csv, as_json_lines, write_labels
from vit.config.commands import PredictConfig
from vit.config.validate import checked
from vit.config.yaml_files import config_dir, load_yaml
from vit.data.reading.cache import CachedImages, CacheSpec
from vit.data.reading.reader import decode_all
from vit.data.reading.transform import Transform
from vit.data.reading.workers import WorkerPool
from vit.data.sources.listing import list_images
from vit.data.types import FileImages, Samples
from vit.errors import ConfigError, DataError, printable
from vit.inference.predict import unlabelled
from vit.runtime.console import damaged
from vit.runtime.files import prepare_file

HOSTILE = 'a,"b"\n\r=c\udcff\x1b[1m.png'
"""Commas, quotes, line ends, a byte that is no UTF-8, and what a terminal obeys."""


def settings(**changes: object) -> dict[str, object]:
    """The defaults of vit-predict with `changes`, for its checks."""
    plain = load_yaml((config_dir() / "predict.yaml").read_text(), "predict.yaml")
    del plain["defaults"]
    return {**plain, "checkpoint": "run", "images": "photos", **changes}


# The command


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as vit-eval takes it: three images of noise for each of ten classes."""
    folder = tmp_path_factory.mktemp("digits")
    for digit in range(10):
        for i in range(3):
            save(folder / "in" / str(digit) / f"{i}.png", noise(20, 24, seed=3 * digit + i))
    return folder


def test_labels_are_those_of_vit_eval(finished: Path, digits: Path) -> None:
    for command, output in (("eval", "scores"), ("predict", "made/labels.jsonl")):
        args = (f"checkpoint={finished}", "images=in", f"output={output}")
        more = ["top=99", "sheet=made/sheet.PNG"] if command == "predict" else []
        done = run(command, *args, *more, cwd=digits)
        assert done.returncode == 0, done.stderr
    *said, told = done.stdout.splitlines()
    assert said == ["30 images labelled", "  made/labels.jsonl", "  made/sheet.PNG"]
    assert told.startswith("  probabilities with temperature ")
    assert done.stderr == ""
    with open(digits / "scores" / "predictions.csv", newline="") as file:
        judged = list(csv.DictReader(file))
    labelled = [*map(json.loads, (digits / "made" / "labels.jsonl").read_text().splitlines())]
    assert len({row["prediction"] for row in judged}) > 1
    for ours, theirs in zip(labelled, judged, strict=True):
        assert ours["image"] == f"in/{theirs['image']}"
        best = ours["predictions"][0]
        assert best["label"] == theirs["prediction"]
        # Written with six digits; batches of another size may round the last one the other way.
        assert best["probability"] == pytest.approx(float(theirs["probability"]), abs=1e-6)
        shares = [prediction["probability"] for prediction in ours["predictions"]]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert {p["label"] for p in ours["predictions"]} == set("0123456789")
    with Image.open(digits / "made" / "sheet.PNG") as sheet:  # 6 x 5 cards 168 px wide
        assert sheet.width == 6 * 172 + 4
        assert sheet.height > 5 * (128 + 6 * 17)


def test_a_model_and_images_need_no_keys(finished: Path, digits: Path) -> None:
    images = ["in/0/0.png", "in/1/2.png"]
    by_key = run(
        "predict", f"checkpoint={finished}", f"images=[{','.join(images)}]", "top=1", cwd=digits
    )
    by_order = run("predict", str(finished), *images, "top=1", cwd=digits)
    assert by_order.returncode == 0, by_order.stderr
    assert by_order.stdout == by_key.stdout
    assert len(by_order.stdout.splitlines()) == 3


def test_only_labels_go_to_standard_output_and_bad_images_are_named(
    finished: Path, tmp_path: Path
) -> None:
    name = HOSTILE.replace("\udcff", "ü")  # this process's own decoding of the output must work
    save(tmp_path / "x" / "y" / name, RED)
    save(tmp_path / "x" / "z.jpg", RED)
    save(tmp_path / "x" / "not asked for.png", RED)
    write(tmp_path / "x" / "text.jpg", b"hello")
    where = [f"checkpoint={finished}", "batch_size=2"]
    done = run("predict", *where, "images=x/**/[!n]*", "top=2", "sheet=s.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = list(csv.reader(io.StringIO(done.stdout, newline="")))
    assert rows[0] == ["image", "label", "probability", "label2", "probability2"]
    # subprocess's text mode makes \n of \r
    assert [row[0] for row in rows[1:]] == [f"x/y/{name}".replace("\r", "\n"), "x/z.jpg"]
    assert all(len(row) == 5 and row[1] in "0123456789" for row in rows[1:])
    assert "warning: x/text.jpg cannot be decoded (the content is not" in done.stderr
    assert "warning: 1 of 3 images are damaged" in done.stderr
    assert "2 images labelled\n  s.png" in done.stderr

    alone = ["images=[x/text.jpg]", "output=none.csv"]
    done = run("predict", *where, *alone, cwd=tmp_path)
    assert done.returncode == 2
    assert "x/text.jpg cannot be decoded" in done.stderr
    assert all(line.startswith("vit-predict: ") for line in done.stderr.splitlines())
    assert not list(tmp_path.glob("none.csv*"))


def test_errors_are_one_line(finished: Path, tmp_path: Path) -> None:
    save(tmp_path / "x.png")
    for args, code, words in (
        (["checkpoint=nowhere", "images=x.png"], 3, "nowhere does not exist"),
        ([f"checkpoint={finished}", "image=x.png"], 2, "did you mean images?"),
        ([f"checkpoint={finished}", "images=y.png"], 2, "images=y.png does not exist"),
        ([f"checkpoint={finished}", "images=x.png", "output=x.png/l.csv"], 2, "choose another"),
    ):
        done = run("predict", *args, cwd=tmp_path)
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr
        assert all(line.startswith("vit-predict: ") for line in done.stderr.splitlines())
        assert done.stdout == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"output": "labels.txt"}, "output=labels.txt must end in .csv or .jsonl"),
        ({"sheet": "sheet.jpg"}, "sheet=sheet.jpg must end in .png"),
        ({"top": 0}, "top=0 must be 1 or more"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"images": ""}, "images="),
        ({"images": [""]}, "images="),
        ({"data": {"workers": "many"}}, "data.workers=many"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, object], words: str) -> None:
    checked(PredictConfig, settings())
    with pytest.raises(ConfigError, match=words):
        checked(PredictConfig, settings(**changes))


# What the user names


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    for name in ("b.PNG", "a.jpg", "in/c.webp", "in/.d.png", ".in/e.png", "notes.txt", "[x].png"):
        write(tmp_path / "p" / name, b"")
    (tmp_path / "p" / "folder.png").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("p", ["p/[x].png", "p/a.jpg", "p/b.PNG", "p/in/c.webp"]),
        ("p/in/", ["p/in/c.webp"]),
        ("p/a.jpg", ["p/a.jpg"]),
        ("p/notes.txt", ["p/notes.txt"]),  # the decoder will judge
        ("p/in/.d.png", ["p/in/.d.png"]),
        ("p/[x].png", ["p/[x].png"]),  # a file that is there is no pattern
        ("p/*", ["p/[x].png", "p/a.jpg", "p/b.PNG"]),
        ("p/**/*.??[gb]*", ["p/[x].png", "p/a.jpg", "p/in/c.webp"]),
        (["p/in", "p/b.PNG", "p/in/c*"], ["p/b.PNG", "p/in/c.webp"]),
    ],
)
def test_files_folders_patterns_and_lists(
    given: str | list[str], found: list[str], tree: Path
) -> None:
    assert list_images(given) == found


def test_home_and_absolute_paths(tree: Path) -> None:
    assert list_images("~/p/in") == list_images(str(tree / "p" / "in"))
    assert list_images("~/p/i*/*") == [str(tree / "p" / "in" / "c.webp")]


@pytest.mark.parametrize("given", ["p", "p/**", ["p/in", "p/*"]])
def test_what_is_left_out_is_said_once(given: str | list[str], tree: Path) -> None:
    os.mkfifo(tree / "p" / "pipe.jpg")
    write(tree / "p" / "in" / "x.heic", b"")
    write(tree / "p" / "in" / "__MACOSX" / "x.jpg", b"")
    save(tree / "p" / "photo.png").rename(tree / "p" / "photo")
    (tree / "p" / "gone.jpg").symlink_to("gone")  # which the decoder names
    said: list[str] = []
    found = list_images(given, said.append)
    assert found == [f"p/{name}" for name in
                     ("[x].png", "a.jpg", "b.PNG", "gone.jpg", "in/c.webp", "photo")]  # fmt: skip
    assert said == ["left out: 1 .heic, 1 .txt, 1 special (a pipe, device or the like)"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("q", "q does not exist; give a file, a folder, or a pattern"),
        ("p/*.gif", "matches nothing; images are JPEG, PNG"),
        ("p/*.txt", "matches 1 files and folders, no image"),
        ("p/folder.png", r"holds no image \(it is empty\)"),
        ("pipe.jpg", "images=pipe.jpg is a pipe, a device or the like"),
        ("link.jpg", "images=link.jpg is a pipe, a device or the like"),
        ("/dev/null", "images=/dev/null is a pipe, a device or the like"),
        ("circle.jpg", "circle.jpg does not exist"),
        ("gone.jpg", "gone.jpg does not exist"),
        ("pi*", "matches 1 files and folders, no image"),
        (["p/a.jpg", "q"], "q does not exist"),
        ([], "names nothing"),
    ],
)
def test_nothing_found_is_an_error(given: str | list[str], words: str, tree: Path) -> None:
    os.mkfifo("pipe.jpg")
    for name, to in (("link.jpg", "pipe.jpg"), ("circle.jpg", "circle.jpg"), ("gone.jpg", "no")):
        Path(name).symlink_to(to)
    with pytest.raises(DataError, match=words):
        list_images(given)


# What is written


def test_hostile_names_survive_both_formats(tmp_path: Path) -> None:
    images = [
        Labelled(HOSTILE, [(HOSTILE, 0.75), ("plain", 0.25)]),
        Labelled("b.png", [("ü", 1.0), ("\u2028", 0)]),
    ]
    write_labels(tmp_path / "x.csv", images, 2)
    with open(tmp_path / "x.csv", newline="", errors="surrogateescape") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["image", "label", "probability", "label2", "probability2"],
        [HOSTILE, HOSTILE, "0.750000", "plain", "0.250000"],
        ["b.png", "ü", "1.000000", "\u2028", "0.000000"],
    ]
    assert os.fsencode(HOSTILE.split("\r")[1]) in (tmp_path / "x.csv").read_bytes()
    write_labels(tmp_path / "x.JSONL", images, 2)
    lines = (tmp_path / "x.JSONL").read_text().splitlines()
    assert json.loads(lines[0]) == {
        "image": HOSTILE,
        "predictions": [
            {"label": HOSTILE, "probability": 0.75},
            {"label": "plain", "probability": 0.25},
        ],
    }
    assert len(lines) == 2


def test_labels_come_one_by_one() -> None:
    """Nothing is gathered: a line is there when its image is."""
    for form, head in ((as_csv, 1), (as_json_lines, 0)):
        endless = (Labelled("x", [("y", 0.5)]) for _ in iter(int, 1))
        lines = form(endless, 1)
        assert len([next(lines) for _ in range(head + 3)]) == head + 3


def test_an_output_that_cannot_be_is_refused_before_the_work(tmp_path: Path) -> None:
    prepare_file("output", tmp_path / "new" / "x.csv")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "is.csv").mkdir()
    write(tmp_path / "file", b"")
    for path in (tmp_path / "is.csv", tmp_path / "file" / "x.csv"):
        with pytest.raises(ConfigError, match=f"output={path} cannot be written"):
            prepare_file("output", path)


def test_at_most_ten_damaged_images_are_named() -> None:
    assert damaged({}, 5) == []
    lines = damaged({f"{i}\n.png": "why" for i in range(13)}, 1300)
    assert len(lines) == 11
    assert lines[9] == "9\\n.png cannot be decoded (why)"
    assert lines[10].startswith("13 of 1,300 images are damaged")


def test_printable_names() -> None:
    assert printable("größe 日本.png") == "größe 日本.png"
    assert printable("a\n\x1b[1m\udcff") == "a\\n\\x1b[1m\\udcff"


# Pixels


@pytest.mark.parametrize("kind", ["jpeg", "uint8"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_run_with_a_cache_sees_the_same_pixels_without_one(
    kind: str, channels: int, tmp_path: Path
) -> None:
    paths = [str(save(tmp_path / f"{i}.jpg", noise(90 + i, 61, seed=i))) for i in range(3)]
    paths.append(str(write(tmp_path / "bad.jpg", b"?")))
    recipe, pool, transform = (
        CacheSpec(kind, 32, channels),
        WorkerPool(0, 60),
        Transform(24, 24, channels),
    )
    names = [Path(path).name for path in paths]
    kept = CachedImages(FileImages(str(tmp_path), names), tmp_path / "cache", recipe, pool)
    samples = Samples(np.zeros(4, np.int64), names, kept, np.arange(4))
    expected, bad = decode_all(samples, transform, pool)
    found, also_bad = decode_all(unlabelled(paths, recipe), transform, pool)
    plain, _ = decode_all(unlabelled(paths), transform, pool)
    np.testing.assert_array_equal(found, expected)
    assert also_bad == bad
    assert list(bad) == [3]
    assert (plain != expected).any()
