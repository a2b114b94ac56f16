"""Tables of labels: how they are read, which columns are meant, which rows are refused."""

import codecs
import json
import os
from pathlib import Path

import pytest
from composing import composed
from pictures import BLUE, RED, data_config, save, write

from vit.config.validate import to_config
from vit.data.sources import table
from vit.data.sources.registry import load_data_set
from vit.data.sources.table_file import read_table
from vit.errors import ConfigError, DataError


def config_of(path, **changes):
    return data_config("table", root=str(path), image_size=16, **changes)


def photos(root, names=("1.jpg", "2.jpg", "sub/3.jpg", "4.PNG")):
    for number, name in enumerate(names):
        save(root / name, (RED, BLUE)[number % 2])
    return root


def listed(path, **changes):
    """{name: class} of the training split."""
    data = table.load(config_of(path, **changes))
    train = data.splits["train"]
    return {n: data.classes[k] for n, k in zip(train.names, train.labels, strict=True)}


WANTED = {"1.jpg": "cat", "2.jpg": "dog", "sub/3.jpg": "Käfer"}
FORMS = {
    "comma": "image,label\n1.jpg,cat\n2.jpg,dog\nsub/3.jpg,Käfer\n",
    "semicolon": "image;label\n1.jpg;cat\n2.jpg;dog\nsub/3.jpg;Käfer\n",
    "tab": "image\tlabel\n1.jpg\tcat\n2.jpg\tdog\nsub/3.jpg\tKäfer\n",
    "bar": "image|label\n1.jpg|cat\n2.jpg|dog\nsub/3.jpg|Käfer\n",
    "windows lines": "image,label\r\n1.jpg,cat\r\n2.jpg,dog\r\nsub/3.jpg,Käfer\r\n",
    "quotes": 'image,note,label\n1.jpg,"a, ""b""\nc",cat\n2.jpg,;;;,dog\nsub/3.jpg,,Käfer\n',
    "blank lines": "\nimage,label\n\n1.jpg, cat\n , \n2.jpg ,dog\nsub/3.jpg,Käfer",
    "no names of columns": "1.jpg,cat\n2.jpg,dog\nsub/3.jpg,Käfer\n",
    "a list": "1.jpg cat\n2.jpg dog\nsub/3.jpg Käfer\n",
    "an index": ",class,File Name\n0,cat,1.jpg\n1,dog,2.jpg\n2,Käfer,sub/3.jpg\n",
    "words of others": "Filename,Category,width\n1.jpg,cat,5\n2.jpg,dog,5\nsub/3.jpg,Käfer,5\n",
    "only the images are clear": "x,y_true\n1.jpg,cat\n2.jpg,dog\nsub/3.jpg,Käfer\n",
    "ids without endings": "id,breed\n1,cat\n2,dog\nsub/3,Käfer\n",
    "endings in another case": "id,breed\n1.JPG,cat\n2.jpg,dog\nsub/3.Jpg,Käfer\n",
    "paths of windows": "id,breed\n.\\1.jpg,cat\n2.jpg,dog\nsub\\3.jpg,Käfer\n",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_a_table_is_read_as_people_write_it(form, encoding, tmp_path):
    photos(tmp_path)
    ending = "txt" if form == "a list" else "csv"
    write(tmp_path / f"labels.{ending}", FORMS[form].encode(encoding))
    assert listed(tmp_path / f"labels.{ending}") == WANTED


def test_json_lines_are_a_table(tmp_path):
    photos(tmp_path)
    rows = [{"img": name, "label": label, "box": [1, 2]} for name, label in WANTED.items()]
    text = "\n".join(json.dumps(row) for row in rows) + "\n\n"
    write(tmp_path / "labels.jsonl", text.encode())
    assert listed(tmp_path / "labels.jsonl") == WANTED
    write(tmp_path / "labels.jsonl", (text + "{oops\n[1]\n").encode())
    with pytest.raises(DataError, match=r"line 5 is no JSON object: \{oops") as caught:
        listed(tmp_path / "labels.jsonl")
    assert "2 of the 5 rows" in caught.value.problems[-1]


def test_numbers_and_truth_are_labels(tmp_path):
    photos(tmp_path)
    rows = [{"img": "1.jpg", "label": 3}, {"img": "2.jpg", "label": 10}]
    write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert table.load(config_of(tmp_path / "a.jsonl")).classes == ["10", "3"]  # as folders sort


def test_paths_start_at_the_table_or_at_data_images(tmp_path):
    photos(tmp_path / "pictures")
    write(tmp_path / "tables" / "t.csv", FORMS["comma"].encode())
    with pytest.raises(DataError, match=r"1\.jpg, which is missing"):
        listed(tmp_path / "tables" / "t.csv")
    assert listed(tmp_path / "tables" / "t.csv", images=str(tmp_path / "pictures")) == WANTED
    with pytest.raises(DataError, match=r"data\.images=.*nowhere is no folder"):
        listed(tmp_path / "tables" / "t.csv", images=str(tmp_path / "nowhere"))


def test_paths_may_be_absolute(tmp_path):
    photos(tmp_path)
    elsewhere = photos(tmp_path / "elsewhere", ["5.jpg"]) / "5.jpg"
    inside, outside = tmp_path / "here" / "1.jpg", elsewhere
    save(inside, RED)
    write(tmp_path / "here" / "t.csv", f"image,label\n{inside},a\n{outside},b\n".encode())
    assert listed(tmp_path / "here" / "t.csv") == {"1.jpg": "a", str(outside): "b"}
    train = table.load(config_of(tmp_path / "here" / "t.csv")).splits["train"]
    assert [train.images.path(i) for i in train.index] == [str(inside), str(outside)]


def test_rows_of_a_split_column_are_splits(tmp_path):
    photos(tmp_path)
    write(
        tmp_path / "t.csv", b"image,label,split\n1.jpg,a,Train\n2.jpg,b,training\n4.PNG,a,valid\n"
    )
    data = load_data_set(config_of(tmp_path / "t.csv"))
    assert {name: list(s.names) for name, s in data.splits.items()} == {
        "train": ["1.jpg", "2.jpg"], "test": ["4.PNG"],
    }  # fmt: skip
    assert data.settings["split_column"] == "split"
    assert load_data_set(config_of(tmp_path / "t.csv", split_column=None)).settings == {
        "image_column": "image", "label_column": "label", "split_column": None,
        "weight_column": None, "group_column": None, "label_separator": None,
    }  # fmt: skip


def test_columns_are_told_when_they_were_found(tmp_path):
    photos(tmp_path)
    write(tmp_path / "t.csv", b"path,class,sample_weight,weight\n1.jpg,a,2,70\n2.jpg,b,0.5,80\n")
    data = table.load(config_of(tmp_path / "t.csv"))
    assert data.notes == [
        "columns: images from path, labels from class, weights from sample_weight"
    ]
    assert data.splits["train"].weights.tolist() == [2, 0.5]
    assert table.load(config_of(tmp_path / "t.csv", **data.settings)).notes == []
    given = config_of(tmp_path / "t.csv", weight_column="weight")
    assert table.load(given).splits["train"].weights.tolist() == [70, 80]


ROWS = {
    "a missing file": ("9.jpg,a", "names 9.jpg, which is missing"),
    "no label": ("4.PNG,", "has no label"),
    "no image": (",a", "has no image"),
    "too many cells": ("4.PNG,a,b", "has 3 cells, not 2"),
    "too few cells": ("4.PNG", "has 1 cells, not 2"),
    "twice the same": ("1.jpg,a", "names 1.jpg, as line 2 does"),
    "twice under another name": ("./1.jpg,a", "names 1.jpg, as line 2 does"),
}


@pytest.mark.parametrize("row", ROWS)
def test_rows_with_problems_are_named_or_left_out(row, tmp_path):
    photos(tmp_path)
    text, why = ROWS[row]
    write(tmp_path / "t.csv", f"image,label\n1.jpg,a\n2.jpg,b\n{text}\n".encode())
    with pytest.raises(DataError) as caught:
        listed(tmp_path / "t.csv")
    assert caught.value.problems[0] == f"{tmp_path}/t.csv line 4 {why}"
    assert "1 of the 3 rows" in caught.value.problems[1]
    assert "data.on_bad_image=skip" in caught.value.problems[1]
    config = config_of(tmp_path / "t.csv", on_bad_image="skip")
    data = table.load(config)
    assert list(data.splits["train"].names) == ["1.jpg", "2.jpg"]
    assert data.notes[-1] == "left out: 1 rows that cannot be used"


def test_labels_that_contradict_each_other_are_both_left_out(tmp_path):
    photos(tmp_path)
    write(tmp_path / "t.csv", b"image,label\n1.jpg,a\n2.jpg,b\nsub/3.jpg,a\n2.jpg,a\n4.PNG,b\n")
    with pytest.raises(DataError) as caught:
        listed(tmp_path / "t.csv")
    assert caught.value.problems[0].endswith("line 3 names 2.jpg, as line 5 does")
    assert caught.value.problems[1].endswith(
        "line 5 names 2.jpg, as line 3 does with another label"
    )
    skipped = listed(tmp_path / "t.csv", on_bad_image="skip", bad_image_limit=0.5)
    assert skipped == {"1.jpg": "a", "sub/3.jpg": "a", "4.PNG": "b"}


def test_more_rows_than_the_limit_are_an_error_with_the_limit_that_would_do(tmp_path):
    photos(tmp_path)
    rows = "".join(f"no{i}.jpg,a\n" for i in range(30))
    write(tmp_path / "t.csv", f"image,label\n1.jpg,a\n2.jpg,b\n{rows}".encode())
    with pytest.raises(DataError) as caught:
        listed(tmp_path / "t.csv", on_bad_image="skip")
    assert len(caught.value.problems) == table.MOST_ROWS + 1
    assert caught.value.problems[-1].endswith("data.bad_image_limit=0.94")
    assert len(listed(tmp_path / "t.csv", on_bad_image="skip", bad_image_limit=0.94)) == 2


WRONG = {
    "no such column": (b"image,label\n1.jpg,a\n", {"label_column": "labl"}, "try data.label_"),
    "a column twice": (b"image,label,label\n1.jpg,a,b\n", {"label_column": "label"}, "is twice"),
    "no images to be seen": (b"a,b,c\n1,2,3\n", {}, "with data.image_column="),
    "no labels to be seen": (b"image,b,c\n1.jpg,2,3\n", {}, "with data.label_column="),
    "one class": (b"image,label\n1.jpg,a\n2.jpg,a\n", {}, "has 1 classes to train on"),
    "empty": (b"", {}, "holds no row (it is empty)"),
    "names of columns alone": (b"image,label\n", {}, "holds no row"),
    "an open quote": (b'image,label\n1.jpg,"a\n2.jpg,b\n', {}, "repair the quotes there"),
    "no text": (b"\x81\x8d\x8f", {}, "is no text in UTF-8, UTF-16 or cp1"),
    "an unknown split": (
        b"image,label,split\n1.jpg,a,train\n2.jpg,b,dev\n", {}, "split dev, not of train/val/test",
    ),
    "a class of the test alone": (
        b"image,label,split\n1.jpg,a,train\n2.jpg,b,train\n4.PNG,c,test\n", {}, "image of c",
    ),
    "a weight below zero": (
        b"image,label,sample_weight\n1.jpg,a,1\n2.jpg,b,-1\n", {}, "weight -1, which is no",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_table_that_cannot_be_used_is_answered(what, tmp_path):
    photos(tmp_path)
    content, changes, told = WRONG[what]
    write(tmp_path / "t.csv", content)
    with pytest.raises(DataError) as caught:
        listed(tmp_path / "t.csv", **changes)
    assert told in str(caught.value)
    assert str(tmp_path / "t.csv") in str(caught.value)


def test_an_id_that_may_be_two_files_is_no_guess(tmp_path):
    photos(tmp_path, ["1.jpg", "1.png", "2.jpg"])
    write(tmp_path / "t.csv", b"id,label\n1,a\n2,b\n")
    with pytest.raises(DataError, match=r"names 1, which may be 1.jpg, 1.png"):
        listed(tmp_path / "t.csv")


def test_other_formats_are_told_how(tmp_path):
    write(tmp_path / "t.xlsx", b"PK")
    with pytest.raises(DataError, match="save it as CSV"):
        read_table(tmp_path / "t.xlsx")
    with pytest.raises(DataError, match=r"is a folder, no table; give data.root=.*t\.xlsx"):
        table.load(config_of(tmp_path))
    with pytest.raises(DataError, match="does not exist"):
        table.load(config_of(tmp_path / "none.csv"))


def test_columns_of_a_folder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="try data=table"):
        to_config(composed("data=folder", f"data.root={tmp_path}", "data.label_column=x"))


def test_a_mark_of_utf_16_tells_the_encoding(tmp_path):
    write(tmp_path / "t.csv", codecs.BOM_UTF16_LE + "image,label\n1.jpg,ä\n".encode("utf-16-le"))
    found = read_table(tmp_path / "t.csv")
    assert found.rows == {2: ["1.jpg", "ä"]}
    assert found.encoding == "utf-16"


def test_large_tables_ask_each_folder_once(tmp_path, monkeypatch):
    photos(tmp_path)
    asked: list[str] = []
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: asked.append(str(path)) or listdir(path))
    write(Path(tmp_path / "t.csv"), FORMS["comma"].encode())
    listed(tmp_path / "t.csv")
    assert len(asked) == 2
