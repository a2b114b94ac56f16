"""Two models on the same images: McNemar's test, what is compared, and what the report shows."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from base64 import b64decode
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import SMALL, run
from pictures import noise, save
from PIL import Image
from scipy.stats import binomtest, chi2

from vit.api import load_run
from vit.config.commands import EvalConfig
from vit.config.validate import checked, to_config
from vit.config.yaml_files import config_dir, load_yaml
from vit.data.sources.registry import load_data_set
from vit.errors import ConfigError
from vit.report.metrics import EXACT_BELOW, mcnemar


@pytest.mark.parametrize("second", [0, 1, 2, 7, 12, 13, 30, 400])
@pytest.mark.parametrize("first", [0, 1, 3, 11, 12, 24, 25, 380])
def test_mcnemars_test_is_scipys(first, second):
    p, test = mcnemar(first, second)
    count = first + second
    if count < EXACT_BELOW:
        expected = binomtest(first, count).pvalue if count else 1.0
    else:
        expected = chi2.sf(max(abs(first - second) - 1, 0) ** 2 / count, df=1)
    assert test == ("exact" if count < EXACT_BELOW else "chi-square")
    assert p == pytest.approx(expected, rel=1e-9)
    assert mcnemar(second, first) == (p, test)


def test_mcnemars_test_of_the_literature():
    p, test = mcnemar(121, 59)  # (|121 - 59| - 1)^2 / 180 = 20.67
    assert (p, test) == (pytest.approx(5.45e-6, rel=0.01), "chi-square")
    assert mcnemar(9, 14) == (pytest.approx(0.405, abs=5e-4), "exact")


def settings(**changes: Any) -> dict[str, Any]:
    """The defaults of vit-eval with `changes`, for its checks."""
    plain = load_yaml((config_dir() / "eval.yaml").read_text(), "eval.yaml")
    del plain["defaults"]
    return {**plain, **changes}


def test_one_checkpoint_or_two():
    assert checked(EvalConfig, settings(checkpoint="a")).checkpoints == ["a"]
    assert checked(EvalConfig, settings(checkpoint=["a", "b"])).checkpoints == ["a", "b"]
    for wrong in ([], ["a"], ["a", "b", "c"], ["a", ""], 3):
        with pytest.raises(ConfigError, match="checkpoint"):
            checked(EvalConfig, settings(checkpoint=wrong))


@pytest.fixture(scope="module")
def runs(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs on the same digits; the second one has another mean and longer training."""
    folder = tmp_path_factory.mktemp("runs")
    args = [*SMALL, "trainer.epochs=6", "seed=1", "data.mean=[0.5]", "name=other"]
    done = run("train", *args, cwd=folder)
    assert done.returncode == 0, done.stderr
    return finished, folder / "outputs" / "other"


def answers(folder: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labels, predictions and names of an evaluation."""
    with open(folder / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    labels, said = (np.array([int(row[key]) for row in rows]) for key in ("label", "prediction"))
    return labels, said, [row["image"] for row in rows]


@pytest.fixture(scope="module")
def compared(runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with evaluations of each run by itself (`0` and `1`) and of both (`both`)."""
    folder = tmp_path_factory.mktemp("compared")
    for name, checkpoint in (("0", runs[0]), ("1", runs[1]), ("both", f"[{runs[0]},{runs[1]}]")):
        done = run("eval", f"checkpoint={checkpoint}", f"output={name}", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert f"report, for a browser: {name}/report/index.html" in done.stdout
        (folder / name / "said.txt").write_text(done.stdout)
    return folder


def test_both_are_judged_on_the_same_images(runs: tuple[Path, Path], compared: Path) -> None:
    alone, other, both = (
        json.loads((compared / name / "metrics.json").read_text()) for name in ("0", "1", "both")
    )
    found = both.pop("compared_with")
    assert both == alone
    labels, said, _ = answers(compared / "0")
    _, theirs, _ = answers(compared / "1")
    a, b = said == labels, theirs == labels
    counts = [int(x.sum()) for x in (a & b, a & ~b, b & ~a, ~a & ~b)]
    keys = ("both_right", "only_first_right", "only_second_right", "both_wrong")
    assert [found[key] for key in keys] == counts
    assert min(counts) > 0
    assert (found["top1"], found["step"]) == (other["top1"], other["step"])
    assert found["checkpoint"] == str(runs[1] / "checkpoints" / "best.pt")
    assert (found["p"], found["test"]) == mcnemar(counts[1], counts[2])
    line = (compared / "both" / "said.txt").read_text().splitlines()[1].strip()
    assert line.startswith(f"other is right on {counts[2]} images where done is wrong, done on ")


def test_the_page_shows_where_they_differ(runs: tuple[Path, Path], compared: Path) -> None:
    text = (compared / "both" / "report" / "index.html").read_text()
    section = text.split("<h2>Comparison</h2>")[1].split("<h2>")[0]
    line = (compared / "both" / "said.txt").read_text().splitlines()[1].strip()
    assert escape(line) in section
    labels, said, names = answers(compared / "0")
    _, theirs, _ = answers(compared / "1")
    samples = load_data_set(to_config(load_run(runs[0]).config).data).splits["test"]
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    parts = dict(re.findall(r"<h3>Only (\w+) is right(.*?)</div>", section, re.DOTALL))
    for name, right, wrong in (("done", said, theirs), ("other", theirs, said)):
        shown = [int(i) for i in re.findall(r'data-image="(\d+)"', parts[name])]
        different = (right == labels) & (wrong != labels)
        assert len(set(shown)) == min(12, different.sum()) > 0
        assert different[shown].all()
        assert re.findall(r"taken for <b class=\"bad\">(\d)</b>", parts[name]) == [
            str(k) for k in wrong[shown]
        ]
        for i in shown:
            assert f'title="{names[i]}"' in parts[name]
            encoded = data["images"][str(i)]["picture"].partition("base64,")[2]
            pixels = np.asarray(Image.open(io.BytesIO(b64decode(encoded))))
            assert (pixels == samples.images[samples.index[i]].transpose(1, 2, 0)).all()
    assert "Comparison" not in (compared / "0" / "report" / "index.html").read_text()


def test_a_model_is_as_good_as_itself(finished: Path, tmp_path: Path) -> None:
    twin = Path(shutil.copytree(finished, tmp_path / "elsewhere" / finished.name))
    args = (f"checkpoint=[{finished},{twin}]", "output=o", "tta=flip", "corruptions=true")
    done = run("eval", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "o" / "metrics.json").read_text())
    other = found["compared_with"]
    assert other["top1"] == found["top1"] != found["without_tta"]["top1"]
    assert (other["only_first_right"], other["only_second_right"], other["p"]) == (0, 0, 1.0)
    said = f"{twin / 'checkpoints' / 'best.pt'} is right on 0 images where"  # of one name: paths
    assert said in done.stdout
    assert "p = 1.00, no evidence of a difference at this size." in done.stdout


def test_each_model_sees_images_its_own_way(tmp_path: Path) -> None:
    for label, side in (("a", 30), ("b", 60)):
        for i in range(20):
            save(tmp_path / "in" / label / f"{i}.png", noise(side, side, seed=i))
    common = [*SMALL, "data=folder", "data.root=in", "trainer.batch_size=8"]
    for name, args in (
        ("small", ["data.image_size=16"]),
        ("large", ["data.image_size=[32,24]", "data.mean=[0.1,0.2,0.3]", "model.patch_size=8"]),
        ("resplit", ["data.image_size=16", "data.split_seed=1"]),
    ):
        cut = ["data.test_fraction=0.3", "trainer.steps=3", f"name={name}"]
        done = run("train", *common, *args, *cut, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    done = run("eval", "checkpoint=[outputs/small,outputs/large]", "output=both", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "both" / "metrics.json").read_text())
    assert found["image_size"] == [16, 16]
    assert found["compared_with"]["image_size"] == [32, 24]
    done = run("eval", "checkpoint=outputs/large", "output=large", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    alone = json.loads((tmp_path / "large" / "metrics.json").read_text())
    assert found["compared_with"]["top1"] == alone["top1"]
    assert "top-5" not in done.stdout  # of two classes it is always 100 ...
    assert alone["top5"] == 100  # ... and in the file

    done = run("eval", "checkpoint=[outputs/small,outputs/resplit]", cwd=tmp_path)
    assert done.returncode == 2
    assert "test of outputs/resplit/checkpoints/best.pt holds other images" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = run("eval", "checkpoint=[outputs/small,outputs/resplit]", "images=in", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_models_of_other_classes_are_not_compared(finished: Path, tmp_path: Path) -> None:
    for label in "xy":
        for i in range(10):
            save(tmp_path / "in" / label / f"{i}.png", noise(16, 16, seed=i))
    args = [*SMALL, "data=folder", "data.root=in", "data.image_size=16", "trainer.batch_size=8"]
    done = run("train", *args, "trainer.steps=2", "name=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run("eval", f"checkpoint=[{finished},outputs/r]", cwd=tmp_path)
    assert done.returncode == 2
    assert "(not in both: 0, 1, 2, 3, 4, ...); compare models of the same classes" in done.stderr
    assert len(done.stderr.splitlines()) == 1
