"""`vit-data`: what it says is what a training sees, and the data stays as it is."""

import pytest
from browser import Page, driven, needs_browser
from commands import SMALL, run
from pictures import encoded, noise, save, write

from vit.artifacts.run_dir import RunDir
from vit.data.manifest import Manifest

HOSTILE = "<script>alert(1)<"


@pytest.fixture
def photos(tmp_path):
    for i in range(60):
        save(tmp_path / "photos" / ("a", "b", HOSTILE)[i % 3] / f"{i}.png", noise(24, 24, seed=i))
    return tmp_path / "photos"


def table_of(stdout):
    """{class: counts} of the lines before the first that is empty."""
    rows = stdout.split("\n\n")[0].splitlines()[1:]
    return {(cells := row.rsplit(maxsplit=5))[0]: [*map(int, cells[1:5])] for row in rows}


def state(folder):
    """All that is in a folder: times of change, and contents."""
    return {
        file: (file.stat().st_mtime_ns, file.read_bytes() if file.is_file() else b"")
        for file in folder.rglob("*")
    }


def test_it_says_what_a_training_has_and_changes_nothing(photos, tmp_path):
    write(photos / "a" / "copy.png", (photos / "b" / "1.png").read_bytes())
    before = state(photos)
    settings = ["data.val_fraction=0.2", "data.split_seed=3"]
    done = run("data", "photos", *settings, "output=page.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert state(photos) == before
    args = ["data=folder", "data.root=photos", "data.image_size=8", "model.patch_size=4", "name=a",
            "trainer.epochs=1", "trainer.batch_size=16", *SMALL[:3], *SMALL[4:]]  # fmt: skip
    trained = run("train", *args, *settings, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    manifest = Manifest.from_bytes(RunDir(tmp_path / "outputs" / "a").images.read_bytes())
    assert list(manifest.splits) == ["train", "val", "test"]
    wanted = {
        name: [int((own.labels == label).sum()) for own in manifest.splits.values()]
        for label, name in enumerate(manifest.classes)
    }
    assert {name: row[:3] for name, row in table_of(done.stdout).items()} == wanted
    where = {name: split for split, own in manifest.splits.items() for name in own.names}
    pair = f"{where['a/copy.png']} a: a/copy.png = {where['b/1.png']} b: b/1.png"
    assert pair in " ".join(done.stdout.split())
    assert all(len(line) < 100 for line in done.stdout.splitlines())
    page = Page((tmp_path / "page.html").read_text())
    assert [tag for tag, _ in page.tags].count("script") == 1  # its own, which sorts
    assert [name for name in page.all("img", "alt") if name.startswith(f"{HOSTILE}/")]
    assert all(src.startswith("data:image/") for src in page.all("img", "src"))


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_its_window(width, photos, tmp_path):
    write(photos / "a" / ("long" * 40 + ".png"), (photos / "b" / "1.png").read_bytes())
    assert run("data", "photos", "output=page.html", cwd=tmp_path).returncode == 0
    page = (tmp_path / "page.html").read_text()
    script = (
        "return [document.documentElement.scrollWidth, [...document.images].every(i => i.width)]"
    )
    assert driven(page, script, tmp_path, width) == [width, True]


def test_damage_is_answered_as_a_training_would(photos, tmp_path):
    write(photos / "a" / "cut.jpg", encoded(noise(90, 60), "JPEG")[:-300])
    done = run("data", "photos", "output=page.html", cwd=tmp_path)
    assert done.returncode == 2
    assert "damaged  1 of 61: a/cut.jpg (Premature end of JPEG file)" in done.stdout
    assert (tmp_path / "page.html").is_file()
    trained = run("train", "data=folder", "data.root=photos", *SMALL, cwd=tmp_path)
    assert done.stderr.replace("vit-data", "vit-train") == trained.stderr
    assert run("data", "photos", "data.on_bad_image=skip", cwd=tmp_path).returncode == 0


def test_tables_and_other_sources(photos, tmp_path):
    rows = [f"{file.relative_to(photos)},{file.parent.name}" for file in photos.rglob("*.png")]
    (photos / "labels.csv").write_text("\n".join(["path,label", *rows]))
    by_table = run("data", "photos/labels.csv", cwd=tmp_path)
    by_folder = run("data", "photos", cwd=tmp_path)
    assert table_of(by_table.stdout) == table_of(by_folder.stdout)
    assert "note     columns: images from path, labels from label" in by_table.stdout
    digits = run("data", "data=digits", cwd=tmp_path)
    assert (digits.returncode, len(table_of(digits.stdout))) == (0, 10)


def test_parquet_with_images_inside(photos, tmp_path, monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = sorted(photos.rglob("*.png"))
    rows = {
        "image": [{"bytes": f.read_bytes(), "path": str(f.relative_to(photos))} for f in files],
        "label": [f.parent.name for f in files],
    }
    (tmp_path / "hub" / "data").mkdir(parents=True)
    pq.write_table(pa.table(rows), tmp_path / "hub" / "data" / "all.parquet")
    inside = run("data", "hub", f"data.cache_dir={tmp_path}/cache", cwd=tmp_path)
    assert inside.returncode == 0, inside.stderr
    assert table_of(inside.stdout) == table_of(run("data", "photos", cwd=tmp_path).stdout)


WRONG = {
    "nothing": ([], "a folder of classes or a table"),
    "two": (["photos", "other"], "a folder of classes or a table"),
    "no such folder": (["nowhere"], "is no folder; check the path"),
    "no such table": (["nowhere.csv"], "does not exist"),
    "no such setting": (["photos", "data.val_fractoin=0.1"], "data.val_fraction"),
    "no value that it takes": (["photos", "data.val_fraction=2"], "must lie in [0, 1)"),
    "an option": (["photos", "--fast"], "there are a folder of classes or a table"),
    "no place to write": (["photos", "output=/proc/x/page.html"], "cannot be written"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_it_cannot_do_is_answered(what, photos, tmp_path):
    given, told = WRONG[what]
    done = run("data", *given, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_many_classes_are_the_largest_and_the_smallest(tmp_path):
    for i in range(50):
        for k in range(2 + i % 5):
            save(tmp_path / "many" / f"{i:02}" / f"{k}.png", noise(16, 16, seed=10 * i + k))
    done = run("data", "many", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "(10 classes between)" in done.stdout
    assert len(done.stdout.split("\n\n")[0].splitlines()) == 42


def test_help(tmp_path):
    done = run("data", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "output=<page>" in done.stdout
