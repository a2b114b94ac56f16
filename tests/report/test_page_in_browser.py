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
  const found = {}, $ = s => document.querySelector(s);
  const all = s => [...document.querySelectorAll(s)];
  const texts = () => all("#classes tbody tr").map(row => row.cells[2].textContent);
  const recall = all("#classes th button")[2];
  recall.focus();
  found.focused = document.activeElement === recall;
  recall.click();
  found.falling = [recall.parentNode.getAttribute("aria-sort"), texts()];
  recall.click();
  found.rising = [recall.parentNode.getAttribute("aria-sort"), texts()];
  all("#classes th button")[0].click();
  found.names = all("#classes tbody td.text").map(x => x.textContent);
  found.sorted = all("#classes th[aria-sort]").length;
  found.cells = all("button[data-cell]").map(button => {
    button.click();
    return [button.dataset.cell, all("#tiles figure").length, $("#cell").textContent,
            all("[data-cell][aria-pressed=true]").length];
  });
  if (!$("#cell").hidden) $("#cell").click();
  const pick = (id, value) => {
    $(id).value = value;
    $(id).dispatchEvent(new Event("change"));
    return Number(parseInt($("#count").textContent));
  };
  found.which = {};
  for (const which of ["all", "wrong", "right"]) found.which[which] = pick("#which", which);
  pick("#which", "all");
  found.ofClass = pick("#class", "1");
  pick("#class", "");
  found.sure = pick("#least", "60");
  pick("#least", "0");
  pick("#order", "name");
  found.byName = all("#tiles .name").slice(0, 3).map(x => x.textContent);
  const press = key => $("#viewer").dispatchEvent(new KeyboardEvent("keydown", { key }));
  $("#tiles button").click();
  found.open = $("#viewer").open;
  const told = () => [$("#viewer-name").textContent, $("#place").textContent];
  found.first = told();
  press("ArrowRight");
  found.second = told();
  press("ArrowLeft");
  found.again = told();
  found.top = all("#top tr").map(row => row.textContent);
  $("#opacity").value = 100;
  $("#opacity").dispatchEvent(new Event("input"));
  found.heat = $(".photo").style.getPropertyValue("--heat");
  found.wideOpen = document.documentElement.scrollWidth;
  $("#close").click();
  found.closed = !$("#viewer").open;
  const visible = [...document.images].filter(image => image.offsetParent);
  await Promise.all(visible.map(image => image.decode()));
  found.images = visible.every(image => image.naturalWidth > 0);
  found.wide = document.documentElement.scrollWidth;
  const beside = x => !x.closest(".wide") && x.getBoundingClientRect().right > innerWidth + 1;
  found.outside = all("main *").filter(beside).length;
  found.view = innerWidth;
  found.hacked = "hacked" in document.body.dataset;
  return found;
"""


def opened(page: str, folder: Path, width: int = 390) -> dict[str, Any]:
    """What a browser finds after clicking through the page."""
    found: dict[str, Any] = driven(page, DRIVER, folder, width)
    return found


def fits(found: dict[str, Any]) -> None:
    """Whether nothing lies beside the page."""
    assert max(found["wide"], found["wideOpen"]) <= found["view"]
    assert found["outside"] == 0


@needs_browser
@pytest.mark.parametrize("width", [390, 768, 1280])
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
    fits(found)
    images = list(page.data["images"].values())
    for cell, count, title, pressed in found["cells"]:
        label, said = map(int, cell.split(","))
        inside = [i for i in images if (i["label"], i["said"]) == ([label], [said])]
        assert count == min(len(inside), 48) > 0
        assert title.startswith(f"{label}, taken for {said}")
        assert pressed == 1
    right = sum(image["label"] == image["said"] for image in images)
    assert found["which"] == {"all": len(images), "right": right, "wrong": len(images) - right}
    assert found["ofClass"] == sum(1 in image["label"] + image["said"] for image in images)
    assert found["sure"] == sum(image["sure"] >= 60 for image in images)
    names = sorted((image["name"] for image in images), key=int)
    assert found["byName"] == names[:3]
    assert found["open"]
    assert found["closed"]
    assert found["first"] == found["again"] == [names[0], f"1 of {len(images)}"]
    assert found["second"] == [names[1], f"2 of {len(images)}"]
    assert len(found["top"]) in (5, 6)
    assert found["heat"] in ("0", "1")
    assert any("(true)" in row for row in found["top"])


@needs_browser
def test_a_browser_runs_nothing_hostile(tmp_path: Path) -> None:
    attack = '<img src=x onerror="document.body.dataset.hacked=1">' + HOSTILE
    report = replace(made_up(80, 3, lambda k: f"{attack}{k}"), title=attack)
    found = opened(report_page(report, pictures_of(report), {}), tmp_path)
    assert found["images"]
    fits(found)
    assert not found["hacked"]
    assert all(attack in title for _, _, title, _ in found["cells"])


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_a_comparison_and_corruptions(tmp_path: Path, width: int) -> None:
    report = made_up(200, 4)
    scores = {name: {1: 90.0, 3: 60.0, 5: 7.5} for name in ("gaussian_noise", "contrast")}
    report = replace(report, versus=against(report, "a/long/path/" * 9), corruptions=scores)
    text = report_page(report, pictures_of(report), {})
    found = opened(text, tmp_path, width)
    assert found["images"]
    fits(found)
    shown = {words.strip() for words in Page(text).texts}
    assert {"Gaussian noise", "contrast", "52.50", "severity 5", "7.50"} <= shown


@needs_browser
def test_a_browser_opens_pairs_of_many_classes(tmp_path: Path) -> None:
    report = made_up(2000, 60, "long-name-of-a-class-{}".format)
    found = opened(report_page(report, pictures_of(report), {}), tmp_path)
    fits(found)
    assert len(found["cells"]) == 60
    assert all(images > 0 for _, images, _, _ in found["cells"])
    assert found["names"] == [f"long-name-of-a-class-{k}" for k in range(60)]  # 2 before 10
