"""The page of `vit-eval` in a real browser: it sorts, opens, and runs nothing hostile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import Page, driven, needs_browser
from reports import HOSTILE, against, index, made_up, pictures_of

from vit.report.page import report_page

DRIVER = """
  const found = {}, $ = s => document.querySelector(s), texts = () =>
    [...document.querySelectorAll("#classes tbody tr")].map(row => row.cells[2].textContent);
  const recall = document.querySelectorAll("#classes th button")[2];
  recall.focus();
  found.focused = document.activeElement === recall;
  recall.click();
  found.falling = [recall.parentNode.getAttribute("aria-sort"), texts()];
  recall.click();
  found.rising = [recall.parentNode.getAttribute("aria-sort"), texts()];
  document.querySelectorAll("#classes th button")[0].click();
  found.names = [...document.querySelectorAll("#classes tbody td.text")].map(x => x.textContent);
  found.sorted = document.querySelectorAll("#classes th[aria-sort]").length;
  found.cells = [...document.querySelectorAll("button[data-cell]")].map(button => {
    button.click();
    return [button.dataset.cell, document.querySelectorAll("#opened img").length,
            $("#opened h3").textContent, document.querySelectorAll("[aria-pressed=true]").length];
  });
  await Promise.all([...document.images].map(image => image.decode()));
  found.images = [...document.images].every(image => image.naturalWidth > 0);
  found.wide = document.documentElement.scrollWidth;
  found.view = innerWidth;
  found.hacked = "hacked" in document.body.dataset;
  return found;
"""


def opened(page: str, folder: Path, width: int = 390) -> dict[str, Any]:
    """What a browser finds after clicking through the page."""
    found: dict[str, Any] = driven(page, DRIVER, folder, width)
    return found


@needs_browser
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_sorts_and_opens(evaluated: Path, tmp_path: Path, width: int) -> None:
    page = Page(index(evaluated))
    found = opened(index(evaluated), tmp_path, width)
    assert found["focused"]
    order, recalls = found["falling"]
    assert (order, recalls) == ("descending", sorted(recalls, key=float, reverse=True))
    order, recalls = found["rising"]
    assert (order, recalls) == ("ascending", sorted(recalls, key=float))
    assert found["names"] == [str(k) for k in range(10)]
    assert found["sorted"] == 1
    assert found["images"]
    assert found["wide"] <= found["view"]
    for cell, images, title, pressed in found["cells"]:
        assert images == len(page.data["cells"][cell]) > 0
        assert cell[0] in title
        assert pressed == 1


@needs_browser
def test_a_browser_runs_nothing_hostile(tmp_path: Path) -> None:
    attack = '<img src=x onerror="document.body.dataset.hacked=1">' + HOSTILE
    report = replace(made_up(80, 3, lambda k: f"{attack}{k}"), title=attack)
    found = opened(report_page(report, pictures_of(report), {}), tmp_path)
    assert found["images"]
    assert not found["hacked"]
    assert all(attack in title for _, _, title, _ in found["cells"])


@needs_browser
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_a_comparison_and_corruptions(tmp_path: Path, width: int) -> None:
    report = made_up(200, 4)
    scores = {name: {1: 90.0, 3: 60.0, 5: 7.5} for name in ("gaussian_noise", "contrast")}
    report = replace(report, versus=against(report, "a/long/path/" * 9), corruptions=scores)
    text = report_page(report, pictures_of(report), {})
    found = opened(text, tmp_path, width)
    assert found["images"]
    assert found["wide"] <= found["view"]
    shown = {words.strip() for words in Page(text).texts}
    assert {"Gaussian noise", "contrast", "52.50", "severity 5", "7.50"} <= shown


@needs_browser
def test_a_browser_opens_pairs_of_many_classes(tmp_path: Path) -> None:
    report = made_up(2000, 60, "long-name-of-a-class-{}".format)
    found = opened(report_page(report, pictures_of(report), {}), tmp_path)
    assert len(found["cells"]) == 60
    assert all(images > 0 for _, images, _, _ in found["cells"])
    assert found["names"] == [f"long-name-of-a-class-{k}" for k in range(60)]  # 2 before 10
