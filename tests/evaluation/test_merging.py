"""`vit-eval merge=`: what merged patches score, beside the plain scores, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from commands import run
from torch.nn.functional import cross_entropy

from vit.api import load_run
from vit.config.validate import to_config
from vit.data.sources.registry import load_data_set
from vit.model.merging import merged


@pytest.fixture(scope="module")
def run_folder(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a run with its plain evaluation, and beside it another copy."""
    folder = tmp_path_factory.mktemp("merging")
    shutil.copytree(finished, folder / "twin")
    copy = Path(shutil.copytree(finished, folder / "a"))
    done = run("eval", f"checkpoint={copy}", cwd=folder)
    assert done.returncode == 0, done.stderr
    return copy


def test_a_run_is_evaluated_with_merged_patches(run_folder: Path) -> None:
    evaluations, folder = run_folder / "eval", run_folder.parent
    before = (evaluations / "test" / "metrics.json").read_bytes()
    done = run("eval", f"checkpoint=[{run_folder},{folder / 'twin'}]", "merge=3", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("test-merge3: top-1")
    assert (evaluations / "test" / "metrics.json").read_bytes() == before
    own = json.loads(before)
    found = json.loads((evaluations / "test-merge3-vs-twin" / "metrics.json").read_text())
    assert (own["merge"], found["merge"]) == (0, 3)
    assert found["compared_with"]["top1"] == found["top1"]  # both are merged
    assert found["compared_with"]["only_first_right"] == 0

    trained = load_run(run_folder)
    samples = load_data_set(to_config(trained.config).data).splits["test"]
    pixels = torch.from_numpy(samples.images[samples.index]) / 255
    mean, std = (trained.preprocessing[key][0] for key in ("mean", "std"))
    with torch.no_grad():
        logits = merged(trained.model, 3)((pixels - mean) / std)
    labels = torch.from_numpy(samples.labels)
    assert found["loss"] == pytest.approx(cross_entropy(logits, labels).item())
    assert found["loss"] != pytest.approx(own["loss"], abs=1e-4)

    page = (evaluations / "test-merge3-vs-twin" / "report" / "index.html").read_text()
    assert "3 patches merged away in each block" in page
    for name, scores in (("test", own), ("test-merge3", found)):
        row = re.search(rf'<th scope="row">{name}</th>(.*)</tr>', page)
        assert row is not None
        assert f"<td>{scores['loss']:.4f}</td>" in row[1]
    plain_page = (evaluations / "test" / "report" / "index.html").read_text()
    assert "merged away" not in plain_page
    overlays = [len(re.findall('"heat": ', text)) for text in (page, plain_page)]
    assert min(overlays) > 0


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("merge=-1", "merge=-1 must be 0 or more"),
        ("merge=four", "merge=four must be a whole number"),
        ("merg=4", "merg is no known key; did you mean merge?"),
        ("merge=9", "a block can merge 0 to 8 of the model's 16 patches, not 9"),
    ],
)
def test_what_cannot_be_merged_is_one_line(finished, tmp_path, setting, words):
    done = run("eval", f"checkpoint={finished}", setting, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
