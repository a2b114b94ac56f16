"""Tables in Parquet files: cells as in CSV, images inside, shards, and copies that get lost."""

import csv
import json
import pickle
import sys

import numpy as np
import pytest
from commands import SMALL, lines, run
from pictures import data_config, encoded, noise, pixels_of, save, write

from vit.data.manifest import Manifest, restore
from vit.data.reading.cache import CachedImages, CacheSpec
from vit.data.reading.decode import sizes_of
from vit.data.reading.workers import WorkerPool
from vit.data.sources import table
from vit.data.sources.parquet import read_parquet
from vit.data.sources.registry import load_data_set
from vit.data.sources.table_file import read_table
from vit.errors import ConfigError, DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

CLASSES = ["b", "a b", "C"]
SAME_EVERYWHERE = ["data.image_size=8", "model.patch_size=4", "trainer.epochs=2",
                   "trainer.batch_size=16", *SMALL[:3], *SMALL[4:]]  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def config_of(path, **changes):
    return data_config("table", root=str(path), image_size=16, **changes)


def hub(path, rows, classes=CLASSES, **options):
    """A Parquet file as `datasets` writes it, of (content, path, class number) rows."""
    images = pa.array(
        [{"bytes": content, "path": name} for content, name, _ in rows],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    labels = pa.array([label for *_, label in rows], pa.int64())
    features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    about = json.dumps({"info": {"features": features}}).encode()
    made = pa.table({"image": images, "label": labels}).replace_schema_metadata(
        {"huggingface": about}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path, **{"row_group_size": 7, **options})
    return path


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Three classes in a folder, the same as a CSV table, and inside a Parquet file."""
    root = tmp_path_factory.mktemp("both")
    rows = []
    for label, name in enumerate(CLASSES):
        for i in range(20):
            path = f"{name}/{'x/' * (i % 2)}{i:02}.png"
            save(root / "files" / path, noise(8, 8, seed=100 * label + i))
            rows.append(((root / "files" / path).read_bytes(), path, label))
    order = np.random.default_rng(0).permutation(len(rows))
    rows = [rows[i] for i in order]
    with open(root / "files" / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "class"), *((p, CLASSES[k]) for _, p, k in rows)])
    hub(root / "all.parquet", rows)
    return root, rows


def test_cells_are_those_of_the_csv_file_of_the_same_values(tmp_path):
    values = {
        "path": ["a.png", " b.png", "c, d.png"], "label": [1, 2, None], "w": [0.5, 1.0, 1e-7],
        "who": ["x", None, "ü"], "yes": [True, False, None],
    }  # fmt: skip
    pq.write_table(pa.table(values), tmp_path / "t.parquet")
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([values, *zip(*values.values(), strict=True)])
    found, wanted = read_parquet([tmp_path / "t.parquet"]), read_table(tmp_path / "t.csv")
    assert found.columns == wanted.columns
    assert list(found.rows) == [1, 2, 3]
    assert list(found.rows.values()) == list(wanted.rows.values())


def test_a_table_of_paths_is_read_like_csv(both):
    root, rows = both
    names = {"path": [p for _, p, _ in rows], "class": [CLASSES[k] for *_, k in rows]}
    pq.write_table(pa.table(names), root / "files" / "labels.parquet")
    as_csv = load_data_set(config_of(root / "files" / "labels.csv"))
    as_parquet = load_data_set(config_of(root / "files" / "labels.parquet"))
    assert Manifest.of(as_parquet).digest() == Manifest.of(as_csv).digest()


def test_images_inside_are_the_files_by_name_pixels_content_and_split(both):
    root, _ = both
    as_folder = load_data_set(data_config("folder", root=str(root / "files"), image_size=16))
    inside = load_data_set(config_of(root / "all.parquet"))
    assert "columns: images from image, labels from label" in inside.notes
    assert Manifest.of(inside).digest() == Manifest.of(as_folder).digest()
    for split, samples in as_folder.splits.items():
        assert (pixels_of(inside.splits[split]) == pixels_of(samples)).all()
        assert (sizes_of(inside.splits[split]) == 8).all()
    source = inside.splits["train"].images.source(0)
    assert len(pickle.dumps(source)) < 1000


WAYS = {
    "held": [], "streamed by workers": ["data.memory=stream", "data.workers=2"],
    "cached": ["data.cache=jpeg", "data.cache_size=8", "data.memory=stream"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_runs_on_both_are_the_same_to_the_bit_and_evaluate_alike(way, both, tmp_path):
    root, _ = both
    kept = {}
    for name, data in (("files", "files/labels.csv"), ("inside", "all.parquet")):
        args = [f"data.root={root / data}", f"name={name}", *SAME_EVERYWHERE, *WAYS[way]]
        done = run("train", "data=table", *args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        place = tmp_path / "outputs" / name
        volatile = ("time", "seconds", "images_per_second", "mfu", "data_share")
        kept[name] = [
            {k: v for k, v in line.items() if k not in volatile}
            for line in lines(place / "metrics.jsonl")
        ]
        done = run("eval", f"checkpoint={place}", "report=true", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        kept[name].append((place / "eval" / "test" / "predictions.csv").read_text())
    assert kept["files"] == kept["inside"]


@pytest.mark.slow
def test_a_run_goes_on_and_scores_other_tables(both, tmp_path):
    root, rows = both
    args = ["data=table", f"data.root={root}/all.parquet", "name=a", *SAME_EVERYWHERE]
    assert run("train", *args, cwd=tmp_path).returncode == 0
    moved = hub(tmp_path / "moved.parquet", rows[1:])
    more = ["resume=outputs/a", "trainer.epochs=3", f"data.root={moved}"]
    done = run("train", *more, cwd=tmp_path)
    assert done.returncode == 2
    assert f"1 of the run's images are gone: {rows[0][1]}" in done.stderr
    done = run("train", *more, "data.on_bad_image=skip", "data.bad_image_limit=0.1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run("eval", "checkpoint=outputs/a", f"images={moved}", "report=false", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "(59 images" in done.stdout
    assert "of the 59 images were trained on" in done.stderr
    hub(tmp_path / "new" / "test-00000-of-00001.parquet", rows[:5])
    done = run("eval", "checkpoint=outputs/a", "images=new", "report=false", cwd=tmp_path)
    assert "(5 images" in done.stdout, done.stderr


def shards(folder, rows, names):
    for name, part in zip(names, np.array_split(np.arange(len(rows)), len(names)), strict=True):
        hub(folder / name, [rows[i] for i in part])
    return folder


LAYOUTS = {
    "of the hub": ["data/test-00000-of-00001.parquet", "data/train-00000-of-00002.parquet",
                   "data/train-00001-of-00002.parquet"],
    "converted by the hub": ["default/test/0.parquet", "default/train/0.parquet",
                             "default/train/1.parquet"],
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shards_are_one_table_split_by_their_names(layout, both, tmp_path):
    _, rows = both
    shards(tmp_path / "set", rows, LAYOUTS[layout])
    write(tmp_path / "set" / ".git" / "x.parquet", b"no table")
    data = table.load(config_of(tmp_path / "set"))
    assert {split: sorted(own.names) for split, own in data.splits.items()} == {
        "test": sorted(name for _, name, _ in rows[:20]),
        "train": sorted(name for _, name, _ in rows[20:]),
    }
    pattern = str(tmp_path / "set" / LAYOUTS[layout][1]).replace("0.parquet", "*.parquet")
    alone = table.load(config_of(pattern.replace("-00000-", "-*-")))
    assert set(alone.splits) == {"train"}


def test_a_file_is_of_no_split_for_the_folder_that_it_lies_in(both, tmp_path):
    _, rows = both
    path = hub(tmp_path / "test" / "a.parquet", rows)
    assert set(table.load(config_of(path)).splits) == {"train"}


def test_a_folder_of_them_given_as_a_folder_of_classes_is_told_the_way(both, tmp_path):
    _, rows = both
    shards(tmp_path / "set", rows, LAYOUTS["of the hub"])
    with pytest.raises(DataError, match=r"Parquet files in it, try data=table data.root=.*/set"):
        load_data_set(data_config("folder", root=str(tmp_path / "set"), image_size=16))


def test_shards_that_do_not_belong_together_are_answered(both, tmp_path):
    _, rows = both
    shards(tmp_path / "set", rows, LAYOUTS["of the hub"])
    (tmp_path / "set" / LAYOUTS["of the hub"][2]).unlink()
    with pytest.raises(DataError, match=r"there are 1 of 2 files .*train-\*-of-00002\.parquet"):
        table.load(config_of(tmp_path / "set"))
    pq.write_table(pa.table({"x": [1]}), tmp_path / "set" / "data" / "z.parquet")
    with pytest.raises(DataError, match=r"z\.parquet has the columns x, and .* has image, label"):
        table.load(config_of(tmp_path / "set" / "data" / "*[tz]*.parquet"))


def test_images_without_a_name_of_their_own_are_called_by_their_rows(both, tmp_path):
    _, rows = both
    given = [(rows[0][0], None, 0), (rows[1][0], "x.png", 1), (rows[2][0], "y.png", 0),
             (rows[3][0], "x.png", 1)]  # fmt: skip
    hub(tmp_path / "t.parquet", given)
    train = table.load(config_of(tmp_path / "t.parquet")).splits["train"]
    assert sorted(train.names) == ["row 1", "row 2", "row 4", "y.png"]
    plain = {"jpg": [content for content, *_ in given], "id": [7, 8, 9, 7], "y": [1, 2, 1, 2]}
    pq.write_table(pa.table(plain), tmp_path / "plain.parquet")
    train = table.load(config_of(tmp_path / "plain.parquet")).splits["train"]
    assert sorted(train.names) == ["row 1", "row 2", "row 3", "row 4"]
    assert {train.images.path(i).read() for i in range(4)} == set(plain["jpg"])


def test_rows_with_problems_are_named_by_shard_and_row(both, tmp_path):
    _, rows = both
    names = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    bad = [*rows[:3], (rows[3][0], "new.png", -1), *rows[4:8], (None, "gone.png", 1), *rows[9:12]]
    shards(tmp_path, bad, names)
    with pytest.raises(DataError) as caught:
        table.load(config_of(tmp_path))
    assert caught.value.problems[:2] == [
        f"{tmp_path} row 4 of {names[0]} has no label",
        f"{tmp_path} row 3 of {names[1]} names gone.png, which is missing",
    ]
    skipped = config_of(tmp_path, on_bad_image="skip", bad_image_limit=0.2)
    assert len(table.load(skipped).splits["train"]) == 10


@pytest.mark.slow
def test_a_damaged_image_is_named_or_skipped(both, tmp_path):
    _, rows = both
    broken = encoded(noise(64, 64), "JPEG")[:-300]
    hub(tmp_path / "t.parquet", [*rows, (broken, "cut.jpg", 0)])
    args = ["data=table", "data.root=t.parquet", "data.test_fraction=0", *SAME_EVERYWHERE]
    done = run("train", *args, "data.val_fraction=0", cwd=tmp_path)
    assert done.returncode == 2
    assert "cut.jpg (Premature end of JPEG file)" in done.stderr
    skip = ["data.val_fraction=0.1", "data.on_bad_image=skip"]
    assert run("train", *args, *skip, cwd=tmp_path).returncode == 0


def test_groups_weights_and_splits_are_columns_as_of_any_table(both, tmp_path):
    root, _ = both
    data = pq.read_table(root / "all.parquet")
    for name, values in (("patient", [f"p{i % 9}" for i in range(60)]),
                         ("sample_weight", [i / 4 for i in range(60)])):  # fmt: skip
        data = data.append_column(name, pa.array(values))
    pq.write_table(data, tmp_path / "t.parquet")
    listed = load_data_set(config_of(tmp_path / "t.parquet", group_column="patient"))
    groups = [set(own.groups) for own in listed.splits.values()]
    assert sum(map(len, groups)) == 9
    row = {
        name: i for i, name in enumerate(data["image"].combine_chunks().field("path").to_pylist())
    }
    train = listed.splits["train"]
    assert train.weights.tolist() == [row[name] / 4 for name in train.names]


def packs(folder):
    return sorted(folder.glob("cache/vit-train/images/*.pack"))


def test_a_copy_is_made_once_and_what_it_loses_is_read_from_the_table(both, tmp_path):
    root, rows = both
    images = table.load(config_of(root / "all.parquet")).splits["train"].images
    wanted = {name: content for content, name, _ in rows}
    (pack,) = packs(tmp_path)
    before = pack.stat().st_mtime_ns
    table.load(config_of(root / "all.parquet"))
    assert pack.stat().st_mtime_ns == before
    content = bytearray(pack.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    pack.write_bytes(content)
    assert all(images.path(i).read() == wanted[name] for i, name in enumerate(images.names))
    pack.write_bytes(content[:-40])  # seen at the next start
    images = table.load(config_of(root / "all.parquet")).splits["train"].images
    assert pack.stat().st_size == len(content)
    pack.unlink()
    assert str(images.path(0)) == f"{images.names[0]} in {root}/all.parquet"
    assert all(images.path(i).read() == wanted[name] for i, name in enumerate(images.names))


def test_a_changed_table_is_copied_anew(both, tmp_path):
    _, rows = both
    path = hub(tmp_path / "t.parquet", rows)
    manifest = Manifest.of(load_data_set(config_of(path)))
    hub(path, [(rows[1][0], *rows[0][1:]), *rows[1:-1]])
    now = restore(manifest, load_data_set(config_of(path)))
    assert len(packs(tmp_path)) == 2
    gone = [now.data.splits[s].names[i] for s, at in now.gone.items() for i in at]
    assert gone == [rows[-1][1]]
    for pack in packs(tmp_path):
        pack.unlink()
    hub(path, [rows[-1][:1] + rows[0][1:], *rows[1:-1]])
    train = now.data.splits["train"]
    read = {
        name: train.images.path(int(at)).read
        for name, at in zip(train.names, train.index, strict=True)
    }
    with pytest.raises(ValueError, match="the Parquet file has changed"):
        read.pop(rows[0][1])()
    read.pop(rows[-1][1], None)  # gone, as told
    assert {name: one() for name, one in read.items()} == {
        name: content for content, name, _ in rows if name in read
    }
    lost = next(s for s, at in now.gone.items() if len(at))
    with pytest.raises(FileNotFoundError):
        now.data.splits[lost].images.path(
            int(now.data.splits[lost].index[now.gone[lost][0]])
        ).read()


def test_small_versions_are_kept_of_images_inside(both, tmp_path):
    root, _ = both
    images = table.load(config_of(root / "all.parquet")).splits["train"].images
    spec = CacheSpec("uint8", 4, 3)
    kept = CachedImages(images, tmp_path / "small", spec, WorkerPool(0, 60))
    assert kept.source(0).open().shape == (4, 4, 3)
    (shard,) = (tmp_path / "small").glob("*.shard")
    before = shard.stat().st_mtime_ns
    CachedImages(images, tmp_path / "small", spec, WorkerPool(0, 60))
    assert shard.stat().st_mtime_ns == before


def test_what_cannot_be_read_is_answered(both, tmp_path, monkeypatch):
    root, _ = both
    with pytest.raises(DataError, match=r"cut\.parquet cannot be read as Parquet .*get it again"):
        table.load(
            config_of(write(tmp_path / "cut.parquet", (root / "all.parquet").read_bytes()[:99]))
        )
    with pytest.raises(DataError, match="holds no row"):
        table.load(config_of(hub(tmp_path / "none.parquet", [])))
    with pytest.raises(ConfigError, match=r"data\.cache_dir=.* cannot be written"):
        table.load(config_of(root / "all.parquet", cache_dir=str(tmp_path / "cut.parquet" / "x")))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"needs pyarrow to be read; pip install 'vit-train\[parq"):
        table.load(config_of(root / "all.parquet"))


@pytest.mark.parametrize("told", [{"feature": {"names": CLASSES}, "_type": "List"},
                                  [{"names": CLASSES}]])  # fmt: skip
def test_lists_of_class_numbers_are_several_labels(tmp_path, told):
    images = [{"bytes": encoded(noise(8, 8), "PNG"), "path": f"{i}.png"} for i in range(4)]
    labels = pa.array([[0, 2], [1], [], [2]], pa.list_(pa.int64()))
    about = {"info": {"features": {"image": {"_type": "Image"}, "labels": told}}}
    made = pa.table({"image": images, "labels": labels}).replace_schema_metadata(
        {"huggingface": json.dumps(about).encode()}
    )
    pq.write_table(made, tmp_path / "some.parquet")
    config = data_config(
        "table", root=str(tmp_path / "some.parquet"), cache_dir=str(tmp_path / "cache"),
        image_size=8,
    )  # fmt: skip
    data = table.load(config)
    assert data.classes == sorted(CLASSES)
    order = [data.classes.index(name) for name in CLASSES]
    wanted = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(data.splits["train"].labels[:, order], wanted)
