"""The cache of listings: right after every change, or ignored."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import write
from trees import FIRST_BYTES, NAMES, OLD, assert_right, settle, tree

from vit.data.sources import scan as scan_module
from vit.data.sources.scan import scan

pytestmark = pytest.mark.usefixtures("cache")


def cache_file(cache: Path) -> Path:
    (file,) = (cache / "vit-train").iterdir()
    return file


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
