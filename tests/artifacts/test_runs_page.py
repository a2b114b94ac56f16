"""The page of `vit-runs`: what it shows, links and escapes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from browser import Page, driven, needs_browser
from commands import run
from run_folders import Make

from vit.artifacts.runs import read_runs
from vit.artifacts.runs_page import runs_page

HOSTILE = "<script>alert(1)</script>"  # a folder in a folder


def page_of(folder: Path) -> str:
    file = folder.parent / "deep" / "page.html"
    done = run("runs", str(folder), "--html", str(file), cwd=folder.parent)
    assert (done.returncode, done.stderr) == (0, "")
    return file.read_text()


def test_the_page_shows_everything_and_needs_nothing(make: Make) -> None:
    for i in range(6):
        last = make(f"r{i}", 50.0 + i, optim__lr=10.0**-i, model__pool=("cls", "mean")[i % 2])
    text = page_of(last.path.parent)
    assert "parallel coordinates" in text
    assert "validation top-1 over epochs" in text
    page = Page(text)
    assert sum(tag == "polyline" for tag, _ in page.tags) == 12
    assert sum(tag == "svg" for tag, _ in page.tags) == 2
    assert {f"r{i}: {50 + i:.2f}" for i in range(6)} <= set(page.texts)
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert name not in ("src", "action", "data"), attributes
            assert name != "href" or str(value).startswith("../runs/r"), attributes
            assert "://" not in (value or "") or name.startswith("xmlns")
    assert not re.search(r"https?://|url\(|@import|//cdn", text)


def test_runs_and_their_reports_are_linked(make: Make, tmp_path: Path) -> None:
    names = ("plain", "javascript:alert(1)", 'a b?#%"<i>', "\udcff")
    for name in names:
        last = make(name)
        for split in ("test", "val#1"):
            report = last.eval_dir(split) / "report" / "index.html"
            report.parent.mkdir(parents=True)
            report.touch()
    links = Page(page_of(last.path.parent)).all("a", "href")
    place = tmp_path / "deep"
    found = {Path(os.path.normpath(place / os.fsdecode(unquote_to_bytes(a)))) for a in links}
    runs = {tmp_path / "runs" / name for name in names}
    reports = [Path("eval") / split / "report" / "index.html" for split in ("test", "val#1")]
    assert found == runs | {run / report for report in reports for run in runs}
    assert all(re.fullmatch(r"\.\./runs/[\w./%~-]+", link) for link in links)
    (link,) = Page(runs_page("one", read_runs(last.path), last.path)).all("a", "href")[:1]
    assert link == "./"


def test_hostile_names_are_text(make: Make, tmp_path: Path) -> None:
    for i, name in enumerate((HOSTILE, '"\'&"><img>')):
        make(name, 50.0 + i, model__name=f"{HOSTILE}{i}", optim__lr=10.0**-i)
    (tmp_path / "runs").rename(tmp_path / "<b>runs")
    text = page_of(tmp_path / "<b>runs")
    assert HOSTILE not in text
    page = Page(text)
    assert sum(tag == "script" for tag, _ in page.tags) == 1  # its own
    assert not {"img", "b"} & {tag for tag, _ in page.tags}
    assert any(words.startswith(f"{HOSTILE}: 50") for words in page.texts)
    assert f"{HOSTILE}1" in page.texts


SORT_BY_SCORE = """
  const heads = [...document.querySelectorAll("th[scope=col] > button")];
  const column = heads.findIndex(head => head.textContent === "val top-1");
  const scores = () => [...document.querySelectorAll("table tbody")][0].rows;
  const texts = () => [...scores()].map(row => parseFloat(row.cells[column].textContent));
  const found = {};
  heads[column].click();
  found.falling = texts();
  heads[column].click();
  found.rising = texts();
  found.wide = document.documentElement.scrollWidth;
  found.view = innerWidth;
  return found;
"""


@needs_browser
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_sorts_the_runs(make: Make, tmp_path: Path, width: int) -> None:
    for i, score in enumerate((51.0, 9.5, 88.0)):
        last = make(f"r{i}", score, model__name=f"{HOSTILE}{i}", optim__lr=10.0**-i)
    found = driven(page_of(last.path.parent), SORT_BY_SCORE, tmp_path, width)
    assert found["falling"] == [88.0, 51.0, 9.5]
    assert found["rising"] == [9.5, 51.0, 88.0]
    assert found["wide"] <= found["view"]


@pytest.mark.parametrize("runs", [0, 1])
def test_few_runs_have_a_page_too(make: Make, tmp_path: Path, runs: int) -> None:
    folder = make("only").path if runs else tmp_path / "empty"
    folder.mkdir(exist_ok=True)
    text = page_of(folder)
    assert f"{runs} runs" in text
    assert "parallel coordinates" not in text
    said = run("runs", str(folder), cwd=tmp_path).stdout
    assert ("only" in said) if runs else (said == "no runs here\n")


def test_a_page_that_cannot_be_written_is_told_in_a_line(make: Make, tmp_path: Path) -> None:
    make("one")
    done = run("runs", ".", "--html", "/proc/nowhere/page.html", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("vit-runs: --html=/proc/nowhere/page.html cannot be written")
    assert done.stderr.count("\n") == 1
