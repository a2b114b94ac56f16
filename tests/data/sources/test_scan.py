"""Listing folders: what os.walk finds, from a cache that is right or ignored."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, noise, write

from vit.data import formats
from vit.data.formats import FORMATS, IS_IMAGE
from vit.data.sources import scan as scan_module
from vit.data.sources.scan import SPECIAL, scan, sub_folders
from vit.errors import DataError

OLD = 10**18
"""A modification time long ago, in nanoseconds."""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test, from the first file on."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(scan_module, "CACHE_FROM", 1)
    return folder


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are read, as they are."""
    names: list[str] = []
    read = scan_module.list_folder

    def spy(path: Path) -> tuple[list[str], list[str], dict[str, int], bool]:
        names.append(str(path))
        return read(path)

    monkeypatch.setattr(scan_module, "list_folder", spy)
    return names


def walked(root: Path, tops: list[str]) -> dict[str, list[str]]:
    """What `scan` has to find."""
    found = {}
    for top in tops:
        names = []
        for folder, below, files in os.walk(root / top):
            below[:] = [name for name in below if not name.startswith(".")]
            for name in files:
                path = Path(folder) / name
                if not name.startswith(".") and IS_IMAGE.get(path.suffix.lower()):
                    names.append(os.path.relpath(path, root))
        found[top] = sorted(names)
    return found


def tree(root: Path, *names: str) -> Path:
    for name in names:
        write(root / name, b"x")
    return root


def settle(root: Path) -> None:
    """Make all changes old, each folder's with a time of its own."""
    for number, (folder, _, _) in enumerate(sorted(os.walk(root))):
        os.utime(folder, ns=(OLD + number, OLD + number))


def files_of(root: Path, tops: list[str]) -> dict[str, list[str]]:
    return {top: below.files for top, below in scan(root, tops).items()}


def assert_right(root: Path) -> dict[str, list[str]]:
    tops = sorted(sub_folders(root))
    found = files_of(root, tops)
    assert found == walked(root, tops)
    return found


NAMES = ["a/1.jpg", "a/2.PNG", "a/deep/er/3.webp", "b/4.bmp", "b/x/5.jpeg", "b/y/6.jpg"]


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

FIRST_BYTES = {form: encoded(noise(20, 20), form) for form in (*FORMATS, "MPO")}


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


# The cache


def test_nothing_is_listed_again_without_a_change(tmp_path, listed, cache):
    settle(tree(tmp_path, *NAMES))
    first = assert_right(tmp_path)
    assert len(listed) == 6
    written = cache_file(cache).stat()
    listed.clear()
    assert assert_right(tmp_path) == first
    assert listed == []
    assert cache_file(cache).stat() == written  # nor is it written again


def test_what_is_left_out_is_remembered_too(tmp_path, listed):
    settle(tree(tmp_path, *NAMES, "a/1.txt", "a/deep/2.TXT", "b/x/3.heic"))
    for _ in range(2):
        found = scan(tmp_path, ["a", "b"])
        assert [found[top].left_out for top in "ab"] == [{".txt": 2}, {".heic": 1}]
    assert len(listed) == 6


def test_a_file_that_becomes_an_image_is_seen(tmp_path, listed):
    """Rewriting a file does not change the time of its folder."""
    settle(tree(tmp_path, *NAMES, "a/file"))
    assert assert_right(tmp_path)
    (tmp_path / "a" / "file").write_bytes(FIRST_BYTES["PNG"])
    listed.clear()
    assert scan(tmp_path, ["a", "b"])["a"].files[-1] == "a/file"
    assert listed == [str(tmp_path / "a")]


def test_the_cache_of_another_version_is_ignored(tmp_path, listed, cache):
    settle(tree(tmp_path, *NAMES))
    assert_right(tmp_path)
    old = json.dumps({"a": [OLD, [], ["old.jpg"]]}).encode()
    digest = hashlib.blake2b(old).hexdigest().encode()
    cache_file(cache).write_bytes(digest + b"\n" + old)
    listed.clear()
    assert_right(tmp_path)
    assert len(listed) == 6


def test_small_listings_are_not_remembered(tmp_path, listed, cache, monkeypatch):
    monkeypatch.setattr(scan_module, "CACHE_FROM", 7)
    settle(tree(tmp_path, *NAMES))
    for _ in range(2):
        assert_right(tmp_path)
    assert len(listed) == 12
    assert list(cache.iterdir()) == []


CHANGES = {
    "a file is added": (lambda r: write(r / "b/x/new.jpg", b"x"), ["b/x"]),
    "a file is removed": (lambda r: (r / "a/1.jpg").unlink(), ["a"]),
    "a file is renamed": (lambda r: (r / "a/1.jpg").rename(r / "a/9.jpg"), ["a"]),
    "a file is moved": (lambda r: (r / "a/1.jpg").rename(r / "b/x/1.jpg"), ["a", "b/x"]),
    "a folder is added": (lambda r: write(r / "b/z/new.jpg", b"x"), ["b", "b/z"]),
    "a folder is renamed": (lambda r: (r / "b/x").rename(r / "b/w"), ["b", "b/w"]),
    "a folder is removed": (lambda r: [(r / "b/y/6.jpg").unlink(), (r / "b/y").rmdir()], ["b"]),
    "a class is added": (lambda r: write(r / "c/new.jpg", b"x"), ["c"]),
    "a class is renamed": (lambda r: (r / "a").rename(r / "z"), ["z", "z/deep", "z/deep/er"]),
    "a file's content": (lambda r: (r / "a/1.jpg").write_bytes(b"other"), []),
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_changed_folders_are_listed_again(tmp_path, listed, change):
    settle(tree(tmp_path, *NAMES))
    assert_right(tmp_path)
    listed.clear()
    act, expected = CHANGES[change]
    act(tmp_path)
    assert_right(tmp_path)
    assert sorted(listed) == sorted(str(tmp_path / name) for name in expected)


def test_a_change_within_the_moment_of_the_scan_is_seen(tmp_path):
    """The clock of a file system is coarse: two changes may have the same time."""
    settle(tree(tmp_path, *NAMES))
    os.utime(tmp_path / "a")  # now
    before = os.stat(tmp_path / "a").st_mtime_ns
    assert_right(tmp_path)
    write(tmp_path / "a" / "late.jpg", b"x")
    os.utime(tmp_path / "a", ns=(before, before))
    assert "a/late.jpg" in assert_right(tmp_path)["a"]


def test_a_folder_replaced_by_an_older_one_is_seen(tmp_path):
    settle(tree(tmp_path, *NAMES))
    assert_right(tmp_path)
    tree(tmp_path / "a", "old.jpg")
    os.utime(tmp_path / "a", ns=(OLD - 99, OLD - 99))  # as after `rsync -t`
    assert "a/old.jpg" in assert_right(tmp_path)["a"]


def cache_file(cache: Path) -> Path:
    (file,) = (cache / "vit-train").iterdir()
    return file


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "text", "folder", "other"])
def test_a_damaged_cache_is_ignored_and_replaced(tmp_path, listed, cache, damage):
    settle(tree(tmp_path, *NAMES))
    assert_right(tmp_path)
    file = cache_file(cache)
    whole = file.read_bytes()
    if damage == "folder":
        file.unlink()
        (file / "x").mkdir(parents=True)
    else:
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        file.write_bytes({
            "truncated": whole[:-5], "empty": b"", "flipped": bytes(flipped),
            "text": b"{}", "other": whole.replace(b"1.jpg", b"7.jpg"),
        }[damage])  # fmt: skip
    listed.clear()
    assert_right(tmp_path)
    assert len(listed) == 6
    if damage != "folder":
        assert file.read_bytes() == whole


def test_no_place_for_a_cache_is_no_error(tmp_path, cache, monkeypatch):
    settle(tree(tmp_path, *NAMES))
    write(cache / "file", b"")
    for place in (cache / "file", Path("/proc/no"), cache / "file" / "below"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(place))
        assert_right(tmp_path)


def test_two_roots_have_two_caches(tmp_path, cache):
    for name in "xy":
        settle(tree(tmp_path / name, f"a/{name}.jpg", "b/1.jpg"))
        assert_right(tmp_path / name)
    assert len(list((cache / "vit-train").iterdir())) == 2
    for name in "xy":
        assert_right(tmp_path / name)


KILLED = """
import os, sys
from pathlib import Path
from vit.data.sources import scan
from vit.runtime import files
scan.CACHE_FROM = 1
real = files.os.{where}
files.os.{where} = lambda *arguments: os._exit(9)
root = Path(sys.argv[1])
scan.scan(root, sorted(scan.sub_folders(root)))
"""


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_kill_while_writing_leaves_the_old_cache(tmp_path, listed, cache, where):
    settle(tree(tmp_path, *NAMES))
    assert_right(tmp_path)
    before = cache_file(cache).read_bytes()
    tree(tmp_path, "a/new.jpg")
    settle(tmp_path / "a")
    script = KILLED.format(where=where)
    done = subprocess.run([sys.executable, "-c", script, tmp_path], timeout=60, check=False)
    assert done.returncode == 9
    (file,) = (path for path in (cache / "vit-train").iterdir() if path.suffix == ".json")
    assert file.read_bytes() == before
    listed.clear()
    assert "a/new.jpg" in assert_right(tmp_path)["a"]
    assert len(listed) < 6
    cache_file(cache)  # what the killed one left is gone


STEP = st.tuples(st.sampled_from(["add", "remove", "rename", "touch"]), st.integers(0, 99))


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(STEP, max_size=12))
def test_any_changes_are_seen(tmp_path_factory, steps):
    root = tree(tmp_path_factory.mktemp("tree"), *NAMES)
    settle(root)
    for kind, number in steps:
        files = sorted(path for path in root.rglob("*.*") if path.is_file())
        folders = sorted(path for path in root.rglob("*") if path.is_dir())
        if kind == "add":
            write(folders[number % len(folders)] / f"d{number % 3}" / f"{number}.jpg", b"x")
        elif kind == "remove" and files:
            files[number % len(files)].unlink()
        elif kind == "rename":
            folder = folders[number % len(folders)]
            folder.rename(folder.with_name(f"renamed{number}-{time.monotonic_ns()}"))
        elif kind == "touch" and files:
            files[number % len(files)].touch()
        assert_right(root)
