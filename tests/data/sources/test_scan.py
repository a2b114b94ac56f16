"""Listing folders: what os.walk finds, and nothing that is no image."""

from __future__ import annotations

import os
import socket

import pytest
from pictures import write
from trees import FIRST_BYTES, NAMES, assert_right, files_of, settle, tree

from vit.data import formats
from vit.data.formats import IS_IMAGE
from vit.data.sources.scan import SPECIAL, scan, sub_folders
from vit.errors import DataError

pytestmark = pytest.mark.usefixtures("cache")


def test_nested_folders_and_hidden_ones(tmp_path):
    tree(tmp_path, *NAMES, "a/.hidden.jpg", "a/.git/7.jpg", ".h/8.jpg", "a/notes.txt", "a/x.heic",
         "b/9.jpg.part", "a/folder.jpg/10.jpg", "a/noending")  # fmt: skip
    assert sub_folders(tmp_path) == {"a", "b"}
    found = assert_right(tmp_path)
    assert found["a"] == ["a/1.jpg", "a/2.PNG", "a/deep/er/3.webp", "a/folder.jpg/10.jpg"]
    assert found["b"] == ["b/4.bmp", "b/x/5.jpeg", "b/y/6.jpg"]
    assert list(scan(tmp_path, ["b", "a"])) == ["b", "a"]


def test_links_to_folders_are_followed_but_never_in_a_circle(tmp_path, listed):
    elsewhere = tree(tmp_path / "elsewhere", "x/1.jpg", "2.jpg")
    root = tree(tmp_path / "root", "a/3.jpg", "a/in/4.jpg", "b/5.jpg")
    for link, to in (
        ("link", elsewhere), ("a/deep", elsewhere), ("a/dir.jpg", elsewhere), ("a/loop", root),
        ("a/up", tmp_path), ("a/in/again", root / "a"), ("b/a", root / "a"),
        ("a/file.jpg", elsewhere / "2.jpg"),
    ):  # fmt: skip
        (root / link).symlink_to(to)
    (elsewhere / "x" / "back").symlink_to(elsewhere)
    of_a = ["a/3.jpg", "a/deep/2.jpg", "a/deep/x/1.jpg", "a/dir.jpg/2.jpg", "a/dir.jpg/x/1.jpg",
            "a/file.jpg", "a/in/4.jpg"]  # fmt: skip
    found = {"a": of_a, "b": ["b/5.jpg", *(f"b/{name}" for name in of_a)],
             "link": ["link/2.jpg", "link/x/1.jpg"]}  # fmt: skip
    for _ in range(2):  # listed, then remembered
        assert files_of(root, ["a", "b", "link"]) == found
    (root / "a" / "deep").unlink()
    assert "b/a/deep/2.jpg" not in files_of(root, ["a", "b"])["b"]


def test_a_link_to_a_folder_that_changes_is_seen(tmp_path):
    root = tree(tmp_path / "root", "a/1.jpg", "b/2.jpg")
    (root / "a" / "later").symlink_to(tmp_path / "later")
    settle(root)
    assert files_of(root, ["a"])["a"] == ["a/1.jpg"]
    tree(tmp_path / "later", "3.jpg")
    assert files_of(root, ["a"])["a"] == ["a/1.jpg", "a/later/3.jpg"]


def test_a_class_link_to_nothing_is_an_error_by_name(tmp_path):
    tree(tmp_path, *NAMES)
    for name in ("readme.txt", "x.jpg", ".hidden"):  # no class
        (tmp_path / name).symlink_to("missing")
    assert sub_folders(tmp_path) == {"a", "b"}
    for target in ("missing", "rose"):  # the second leads in a circle
        (tmp_path / "rose").symlink_to(target)
        with pytest.raises(DataError, match=rf"{tmp_path}/rose is a link to {target}"):
            sub_folders(tmp_path)
        (tmp_path / "rose").unlink()


MADE_BY_SYSTEMS = ["__MACOSX", "@eaDir", ".ipynb_checkpoints", "$RECYCLE.BIN", "lost+found",
                   "System Volume Information"]  # fmt: skip


@pytest.mark.parametrize("name", MADE_BY_SYSTEMS)
def test_folders_that_systems_make_are_as_if_not_there(tmp_path, name):
    tree(tmp_path, *NAMES, f"{name}/1.jpg", f"a/{name}/2.jpg", f"b/x/{name.lower()}/3.txt")
    assert sub_folders(tmp_path) == {"a", "b"}
    found = scan(tmp_path, ["a", "b"])
    assert {top: below.files for top, below in found.items()} == {
        top: [name for name in NAMES if name.startswith(top)] for top in "ab"
    }
    assert found["b"].left_out == {}


# What is an image


@pytest.mark.parametrize("form", FIRST_BYTES)
@pytest.mark.parametrize("name", ["x", "x.xyz", "x.2024", "Dr. X", "x.", "x.jfif", "x.JPE"])
def test_content_decides_under_unknown_and_no_endings(tmp_path, form, name):
    write(tmp_path / "a" / name, FIRST_BYTES[form])
    write(tmp_path / "a" / "other", b"BM is no bitmap, GIF89 no GIF, II no TIFF")
    found = scan(tmp_path, ["a"])["a"]
    assert (found.files, found.left_out) == ([f"a/{name}"], {"": 1})


def test_only_files_of_unknown_endings_are_opened(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(formats, "open", lambda path, *_, **__: opened.append(path), raising=False)
    monkeypatch.setattr(formats, "_FIRST_BYTES", None)
    tree(tmp_path, *NAMES, *(f"a/x{ending}" for ending in IS_IMAGE))
    scan(tmp_path, ["a", "b"])
    assert opened == []


def test_pipes_devices_and_circles_are_no_images_and_never_opened(tmp_path):
    tree(tmp_path, "a/1.jpg", "a/2.heic", "a/3.HEIC")
    for name in ("pipe.jpg", "pipe"):
        os.mkfifo(tmp_path / "a" / name)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "a" / "socket.png"))
    for name, to in (("zero.jpg", "/dev/zero"), ("circle.jpg", "circle.jpg"), ("to.jpg", "pipe")):
        (tmp_path / "a" / name).symlink_to(to)
    (tmp_path / "a" / "gone.jpg").symlink_to("gone")  # is told by name when it is read
    found = scan(tmp_path, ["a"])["a"]
    assert found.files == ["a/1.jpg", "a/gone.jpg"]
    assert found.left_out == {".heic": 2, SPECIAL: 6}


def test_names_of_any_characters(tmp_path):
    odd = os.fsdecode(b"\xff\xfe\x80")
    tree(tmp_path, "größe/写真 1.jpg", "größe/a b=c'd\".png", "größe/new\nline.jpg")
    os.makedirs(tmp_path / odd / odd)
    write(tmp_path / odd / odd / f"{odd}.jpg", b"x")
    for _ in range(2):  # listed, then remembered
        found = assert_right(tmp_path)
        assert found[odd] == [os.path.join(odd, odd, f"{odd}.jpg")]
        assert len(found["größe"]) == 3
        settle(tmp_path)


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path):
    tree(tmp_path, *NAMES)
    with pytest.raises(FileNotFoundError):
        scan(tmp_path, ["a", "missing"])
