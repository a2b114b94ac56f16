"""Several labels per image: from a table to the labels that are given, by every command."""

import csv
import io
import json
import re
import sys
from pathlib import Path

import kill_resume
import numpy as np
import pytest
import serve_onnx
import torch
from browser import Page
from commands import SMALL, lines, run
from composing import composed
from kill_resume import metrics
from pictures import save
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, f1_score
from together import torchrun

from vit.api import load_run
from vit.artifacts.run_dir import RunDir
from vit.artifacts.runs import read_runs
from vit.config.validate import to_config
from vit.data.augment.batch import draw
from vit.data.loader import TrainLoader
from vit.data.manifest import Manifest
from vit.data.sampler import positive_weights
from vit.data.sources.registry import load_data_set
from vit.data.task import ONE_LABEL, SEVERAL_LABELS
from vit.errors import DataError
from vit.report.multilabel import average_precision
from vit.runtime.dist import ALONE
from vit.training.loss import Loss

LABELS = ("even", "has a loop", "more than 4")
LOOPS = (0, 6, 8, 9)
SETTINGS = [
    *SMALL, "data=table", "data.image_size=8", "data.mean=[0.5]", "data.std=[0.5]",
    "trainer.batch_size=32", "trainer.epochs=null", "trainer.steps=40", "trainer.eval_every=10",
    "trainer.save_every=10", "data.val_fraction=0.3", "data.test_fraction=0.2",
]  # fmt: skip
BY_SEPARATOR = ["data.root=some.csv", "data.label_separator=';'"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 digits with three labels each, in three tables, and a run on the first."""
    folder = tmp_path_factory.mktemp("several")
    digits = load_digits()
    rows = []
    for i, (pixels, digit) in enumerate(zip(digits.images[:300], digits.target, strict=False)):
        name = f"{i:03}.png"
        save(folder / name, Image.fromarray((pixels * 15.9).astype(np.uint8)))
        rows.append((name, (digit % 2 == 0, digit in LOOPS, digit > 4)))
    named = [(n, [x for x, has in zip(LABELS, row, strict=True) if has]) for n, row in rows]
    texts = {
        "some.csv": [("image", "labels"), *((n, ";".join(own)) for n, own in named)],
        "columns.csv": [("image", *LABELS), *((n, *map(int, row)) for n, row in rows)],
    }
    for name, table in texts.items():
        with open(folder / name, "w", newline="") as file:
            csv.writer(file).writerows(table)
    objects = (json.dumps({"image": name, "labels": own}) for name, own in named)
    (folder / "lines.jsonl").write_text("\n".join(objects))
    done = run("train", *SETTINGS, *BY_SEPARATOR, "name=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


def logits_and_labels(work: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """What the run's best weights say of a split, image by image, and the truth of the table."""
    manifest = Manifest.from_bytes(RunDir(work / "outputs/run").images.read_bytes())
    names = manifest.splits[split].names
    trained = load_run(work / "outputs/run")
    with torch.no_grad():
        seen = torch.stack([trained.transform(work / name) for name in names])
        found = trained.model(seen).double().numpy()
    with open(work / "columns.csv") as file:
        truth = {row["image"]: [int(row[name]) for name in LABELS] for row in csv.DictReader(file)}
    return found, np.array([truth[name] for name in names])


def test_what_was_said_names_labels_and_their_score(work: Path) -> None:
    said = (work / "said.txt").read_text()
    assert "3 labels" in said
    assert "none of them" in said
    assert "mAP val " in said
    summary = json.loads((work / "outputs/run/summary.json").read_text())
    assert summary["test_map"] == pytest.approx(
        lines(work / "outputs/run/metrics.jsonl")[-1]["map"]
    )
    assert f"val mAP {summary['val_map']:.2f}  test mAP {summary['test_map']:.2f}" in said
    assert "top1" not in json.dumps(summary)
    assert "guessing would get" in said


@pytest.mark.parametrize(
    "table", [["data.root=columns.csv", f"data.label_column=[{','.join(LABELS)}]"],
              ["data.root=lines.jsonl"]],
)  # fmt: skip
def test_tables_of_one_content_train_alike(work: Path, table: list[str]) -> None:
    name = table[0].partition("=")[2].partition(".")[0]
    done = run("train", *SETTINGS, *table, f"name={name}", cwd=work)
    assert done.returncode == 0, done.stderr
    assert metrics(RunDir(work / "outputs" / name)) == metrics(RunDir(work / "outputs/run"))


def test_scores_are_those_of_scikit_learn(work: Path) -> None:
    run_folder = work / "outputs/run"
    found = load_run(run_folder).evaluate("split=test", "report=false")
    logits, truth = logits_and_labels(work, "test")
    thresholds = np.array(load_run(run_folder).thresholds)
    given = 1 / (1 + np.exp(-logits)) >= thresholds
    wanted = {
        "map": 100 * average_precision_score(truth, logits, average="macro"),
        "map_micro": 100 * average_precision_score(truth, logits, average="micro"),
        "macro_f1": f1_score(truth, given, average="macro"),
        "micro_f1": f1_score(truth, given, average="micro"),
        "sample_f1": f1_score(truth, given, average="samples", zero_division=1),
    }
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, rel=1e-12), key
        low, high = found["intervals"][key]
        assert low < found[key] < high
    assert [row["class"] for row in found["per_class"]] == sorted(LABELS)
    each = [row["ap"] for row in found["per_class"]]
    assert each == pytest.approx(average_precision(truth, logits).tolist(), rel=1e-12)


def test_thresholds_are_the_best_on_validation_and_lie_with_the_checkpoint(work: Path) -> None:
    logits, truth = logits_and_labels(work, "val")
    chances = 1 / (1 + np.exp(-logits))
    thresholds = load_run(work / "outputs/run").thresholds
    assert thresholds is not None
    for k, threshold in enumerate(thresholds):
        best = max(f1_score(truth[:, k], chances[:, k] >= t) for t in chances[:, k])
        assert f1_score(truth[:, k], chances[:, k] >= threshold) == pytest.approx(best)


def test_the_best_checkpoint_is_that_of_the_highest_map(work: Path) -> None:
    found = lines(work / "outputs/run/metrics.jsonl")
    validations = {line["step"]: line["map"] for line in found if line["event"] == "val"}
    best = load_run(work / "outputs/run").step
    assert validations[best] == max(validations.values())


def test_a_killed_run_goes_on_to_the_bit(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*SETTINGS, f"data.root={work}/some.csv", BY_SEPARATOR[1], "data.balance=loss"]
    own = [s for s in settings if not s.startswith("trainer.")]
    given = ["--kills=1", "--steps=160", f"--folder={tmp_path}", "trainer.epochs=null", *own]
    monkeypatch.setattr(sys, "argv", ["kill_resume", *given])
    assert kill_resume.main() == 0


def test_two_processes_train_as_one(work: Path) -> None:
    with torchrun(2, *SETTINGS, *BY_SEPARATOR, "name=two", cwd=work) as job:
        done = job.finish()
    assert done.returncode == 0, done.stdout
    one, two = (lines(work / f"outputs/{name}/metrics.jsonl") for name in ("run", "two"))
    for ours, theirs in zip(one, two, strict=True):
        for key in {"loss", "map", "exact"} & ours.keys():
            assert theirs[key] == pytest.approx(ours[key], rel=1e-6), key


def test_predictions_of_all_commands_agree(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ["007.png", "010.png", "044.png"]
    trained = load_run(work / "outputs/run")
    said = trained.predict([work / name for name in images], top=3)
    thresholds = dict(zip(trained.classes, trained.thresholds or [], strict=True))
    for answer in said:
        chances = dict(zip(answer.labels, answer.probabilities, strict=True))
        own = [name for name in trained.classes if chances[name] >= thresholds[name]]
        assert answer.given == own
    done = run("predict", "checkpoint=outputs/run", f"images=[{','.join(images)}]", cwd=work)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["labels"].split(";") if row["labels"] else [] for row in rows] == [
        answer.given for answer in said
    ]
    done = run(
        "predict", "checkpoint=outputs/run", "images=007.png", "output=p.jsonl", "sheet=s.png",
        cwd=work,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((work / "p.jsonl").read_text())["labels"] == said[0].given
    done = run("export", "checkpoint=outputs/run", "output=m.onnx", cwd=work)
    assert done.returncode == 0, done.stderr
    assert "every label right" in done.stdout
    served = serve_onnx.Classifier(str(work / "m.onnx"))
    for name, answer in zip(images, said, strict=True):
        best, own = served.best(str(work / name), 3)
        given = own["labels"]
        assert given == answer.given
        assert dict(best) == pytest.approx(
            dict(zip(answer.labels, answer.probabilities, strict=True)), abs=1e-5
        )
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "argv", ["serve_onnx", "m.onnx", "007.png"])
    assert serve_onnx.main() == 0


def test_an_explanation_is_of_the_label_that_is_asked_for(work: Path) -> None:
    trained = load_run(work / "outputs/run")
    (first,) = trained.attention(work / "044.png", "relevance", "even")
    (second,) = trained.attention(work / "044.png", "relevance", "more than 4")
    assert not np.array_equal(first.heats["relevance"], second.heats["relevance"])
    assert "relevance for" in first.caption


def test_an_evaluation_compares_and_draws(work: Path) -> None:
    done = run(
        "train", *SETTINGS, *BY_SEPARATOR, "name=other", "trainer.steps=10", "seed=1", cwd=work
    )
    assert done.returncode == 0, done.stderr
    done = run("eval", "checkpoint=[outputs/run,outputs/other]", "tta=flip", "output=e", cwd=work)
    assert done.returncode == 0, done.stderr
    assert "mAP" in done.stdout
    assert "than that of" in done.stdout
    found = json.loads((work / "e/metrics.json").read_text())
    versus = found["compared_with"]
    low, high = versus["map_difference"]
    assert low <= versus["map"] - found["map"] <= high
    assert found["without_tta"].keys() == found["intervals"].keys()
    rows = list(csv.reader(io.StringIO((work / "e/predictions.csv").read_text())))
    assert rows[0] == ["image", "labels", "given", *sorted(LABELS)]
    assert len(rows) == found["images"] + 1
    page = Page((work / "e/report/index.html").read_text())
    texts = {text.strip() for text in page.texts}
    assert {*LABELS, "missed", "wrongly", "mAP", "sample F1"} <= texts
    for row in found["per_class"]:
        assert {f"{row['ap']:.3f}", f"{row['threshold']:.3f}"} <= texts


def test_other_tables_are_scored_and_folders_are_not(work: Path) -> None:
    one = run("eval", "checkpoint=outputs/run", "images=some.csv", "report=false", cwd=work)
    two = run("eval", "checkpoint=outputs/run", "images=columns.csv", "report=false", cwd=work)
    assert one.returncode == two.returncode == 0, two.stderr
    found = [
        json.loads((work / f"outputs/run/eval/images-{name}/metrics.json").read_text())
        for name in ("some.csv", "columns.csv")
    ]
    assert found[0]["map"] == found[1]["map"]
    for name in ("even", "odd"):
        (work / "folder" / name).mkdir(parents=True, exist_ok=True)
        (work / "folder" / name / "a.png").write_bytes((work / "001.png").read_bytes())
    done = run("eval", "checkpoint=outputs/run", "images=folder", cwd=work)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_runs_are_judged_by_their_map(work: Path) -> None:
    (only,) = read_runs(work / "outputs/run")
    assert only.score() == only.summary["val_map"]
    done = run("runs", "outputs/run", "--html=r.html", cwd=work)
    assert "val mAP" in done.stdout
    assert f"{only.score():.2f}" in done.stdout
    assert "Validation mAP" in (work / "r.html").read_text()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (["trainer.loss=cross_entropy"], "which is of one label"),
        (["data.balance=sampler"], "try data.balance=loss"),
        (["data.limit_per_class=3"], "leave it out"),
        (["distill.teacher=outputs/run"], "leave it out"),
    ],
)
def test_what_is_of_one_label_is_refused(work: Path, settings: list[str], why: str) -> None:
    done = run("train", *SETTINGS, *BY_SEPARATOR, *settings, "name=no", cwd=work)
    assert done.returncode == 2
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_data_has_labels_of_0_and_1(work: Path) -> None:
    config = to_config(
        composed("data=table", f"data.root={work}/some.csv", "data.label_separator=';'")
    ).data
    data = load_data_set(config)
    train = data.splits["train"]
    assert data.classes == sorted(LABELS)
    assert train.labels.shape == (len(train), 3)
    assert list(train.names) == sorted(train.names)
    back = Manifest.from_bytes(Manifest.of(data).to_bytes())
    np.testing.assert_array_equal(back.splits["train"].labels, train.labels)
    assert back.digest() == Manifest.of(data).digest()


@pytest.mark.parametrize(
    ("table", "changes", "why"),
    [
        ("image,a,b\n000.png,1,2\n001.png,0,1\n", {"label_column": ["a", "b"]},
         "line 2 has 2 in column b, not 0 or 1"),
        ("image,a,b\n000.png,1,\n001.png,0,1\n", {"label_column": ["a", "b"]},
         "line 2 has nothing in column b, not 0 or 1"),
        ("image,a\n000.png,1\n001.png,0\n", {"label_column": ["a", "c"]},
         "data.label_column=c is not among the columns"),
        ("image,label\n000.png,\n001.png,\n", {"label_separator": "';'"}, "at least one is needed"),
        ("image,label\n000.png,x;y\n001.png,x\n002.png,y\n003.png,z|y\n000.png,x;y;z\n", {},
         "line 2 names 000.png, as line 6 does"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_used(work: Path, table: str, changes: dict, why: str) -> None:
    (work / "bad.csv").write_text(table)
    sets = [f"data.{key}={value}" for key, value in changes.items()]
    config = to_config(composed("data=table", f"data.root={work}/bad.csv", *sets)).data
    with pytest.raises(DataError) as caught:
        load_data_set(config)
    assert why in str(caught.value)


def test_labels_that_look_like_several_are_said(work: Path) -> None:
    cells = ["a", "b", "a;b", "b;a", "a;c", "c;b"]
    rows = [f"{i:03}.png,{cell}" for i, cell in enumerate(cells)]
    (work / "one.csv").write_text("\n".join(["image,label", *rows]))
    config = to_config(composed("data=table", f"data.root={work}/one.csv")).data
    assert "look like several" in load_data_set(config).notes[-1]


def test_binary_cross_entropy_counts_rare_labels_as_much(work: Path) -> None:
    labels = np.array([[1, 0], [1, 0], [1, 1], [0, 0]], np.uint8)
    positive = torch.from_numpy(positive_weights(labels))
    assert positive.tolist() == pytest.approx([1 / 3, 3])
    trainer = to_config(composed("trainer.loss=bce", "trainer.label_smoothing=0")).trainer
    logits, targets = torch.zeros(4, 2), torch.from_numpy(labels).float()
    batch = type("B", (), {"targets": targets, "weights": None})()
    losses = Loss(trainer, positive=positive)(logits, batch)
    each = np.where(labels, positive.numpy(), 1) * np.log(2)
    assert losses.tolist() == pytest.approx(each.mean(axis=1).tolist())


def test_smoothing_goes_towards_one_half() -> None:
    trainer = to_config(composed("trainer.loss=bce", "trainer.label_smoothing=0.2")).trainer
    batch = type("B", (), {"targets": torch.tensor([[1.0, 0.0]]), "weights": None})()
    logits = torch.tensor([[2.0, -1.0]], requires_grad=True)
    Loss(trainer, positive=torch.ones(2))(logits, batch).sum().backward()
    slope = (logits.sigmoid() - torch.tensor([[0.9, 0.1]])) / 2
    torch.testing.assert_close(logits.grad, slope.detach())


def test_mixed_images_have_the_labels_of_both(work: Path) -> None:
    plain = composed(
        "data=table", f"data.root={work}/some.csv", "data.label_separator=';'", "augment=none",
        "augment.mixup=1", "data.image_size=8", "data.mean=[0.5]", "data.std=[0.5]",
    )  # fmt: skip
    config = to_config(plain)
    from vit.data.reading.reader import Reader

    samples = load_data_set(config.data).splits["train"]
    read = Reader.of(config.data, 4, torch.device("cpu"))
    loader = TrainLoader(samples, 3, 16, config.augment, "none", 0, read, ALONE)
    batch = loader.batch_at(0)
    keep = draw(config.augment, 16, (8, 8), 0, 0).keep
    own = torch.from_numpy(samples.labels[loader.indices_at(0)]).float()
    other = own[torch.arange(16) ^ 1]
    torch.testing.assert_close(batch.targets, torch.lerp(other, own, keep[:, None]))
    loader.close()


def test_the_mean_of_two_probabilities_is_that_of_both_kinds() -> None:
    first, second = torch.randn(4, 3), torch.randn(4, 3)
    for task in (ONE_LABEL, SEVERAL_LABELS):
        mean = (task.probabilities(first) + task.probabilities(second)) / 2
        torch.testing.assert_close(task.probabilities(task.mean(first, second)), mean)


def test_a_survey_counts_every_label(work: Path) -> None:
    done = run("data", "some.csv", "data.label_separator=;", "output=d.html", cwd=work)
    assert done.returncode == 0, done.stderr
    with open(work / "columns.csv") as file:
        rows = list(csv.DictReader(file))
    for name in LABELS:
        count = sum(int(row[name]) for row in rows)
        assert re.search(rf"^{name} .* {count}  #", done.stdout, re.M)
    assert "has a loop" in (work / "d.html").read_text()
