"""Calibration: what is fitted, where it is not used, which answers it reaches, whose it is."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
import serve_onnx
import torch
from commands import run
from pictures import noise, save
from scipy.stats import betabinom

import vit
from vit.artifacts import checkpoint
from vit.config.saved import Calibration
from vit.errors import ConfigError
from vit.inference.calibration import Limits, digest, energy, fitted, keep
from vit.report.metrics import fit_temperature, probability_scores


def drawn(count: int, seed: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, 5), `scale` times those whose probabilities the labels were drawn by."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, 5))
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(5, p=p) for p in chances])
    return (scale * logits).astype(np.float32), labels


# Fitting


@pytest.mark.parametrize("scale", [0.4, 3.0])
def test_the_temperature_is_found_again(scale: float) -> None:
    logits, labels = drawn(4000, seed=1, scale=scale)
    record = fitted(logits, labels)
    assert record.temperature == fit_temperature(logits, labels) == pytest.approx(scale, rel=0.08)
    assert (record.images, record.why, record.weights) == (4000, "", "")
    assert record.told() == f"with temperature {record.temperature:.3f}, fitted on 4,000 images"


def test_what_helps_no_other_image_is_not_used() -> None:
    """Of true probabilities a temperature of few images is noise more often than not."""
    records = {seed: fitted(*drawn(40, seed)) for seed in range(40)}
    unused = {seed: record for seed, record in records.items() if record.temperature is None}
    assert len(unused) > 20
    for seed, record in unused.items():
        logits, labels = drawn(40, seed)
        loss = probability_scores(logits, labels).loss.mean()
        assert f"without {loss:.4f})" in record.why
        assert record.told() == f"as trained: {record.why}"


def test_where_every_image_is_right_there_is_none() -> None:
    record = fitted(np.tile(np.eye(5, dtype=np.float32), (2, 1)), np.arange(10) % 5)
    assert record.temperature is None
    assert record.told() == "as trained: no finite temperature is the best on validation"


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_few_images_are_too_few(count: int) -> None:
    logits, labels = drawn(count, seed=count)
    record = fitted(logits, labels)
    assert record.temperature is None
    assert record.why == f"{count} validation images are too few to fit a temperature on"
    assert len(record.sets) == len(record.unknown) == 50


def test_a_digest_is_of_names_shapes_and_values() -> None:
    weights = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones((), dtype=torch.bfloat16)}
    other = {**weights, "b": weights["b"] + torch.eye(2, 3) * 1e-6}
    assert digest(weights) == digest(dict(reversed(weights.items())))
    others = (
        {**weights, "b": weights["b"].T.contiguous()},
        {**weights, "b": weights["b"].view(3, 2)},
        {"b": weights["b"], "c": weights["a"]},
    )
    found = {digest(weights), digest(other), *map(digest, others)}
    assert len(found) == 5


# Sets, and what is unknown


def test_a_set_is_filled_until_the_others_before_a_label_are_enough() -> None:
    logits = np.log(np.array([[0.2, 0.5, 0.3], [0.05, 0.05, 0.9]], np.float32))
    sizes = {
        most: [own.tolist() for own in Limits(Calibration(sets=[most]), set=50).sets(logits)]
        for most in (0.0, 0.49, 0.51, 0.81, 0.96)
    }
    assert sizes[0.0] == sizes[0.49] == [[1], [2]]
    assert sizes[0.51] == [[1, 2], [2]]
    assert sizes[0.81] == [[1, 2, 0], [2]]
    assert sizes[0.96] == [[1, 2, 0], [2, 0, 1]]


@pytest.mark.parametrize("percent", [80, 90, 95])
def test_sets_hold_the_truth_as_often_as_is_asked_for(percent: int) -> None:
    """By the distribution that split conformal prediction has where scores have no ties."""
    images, new, inside = 400, 2000, []
    allowed = (images + 1) * (100 - percent) // 100
    within = betabinom(new, images + 1 - allowed, allowed).interval(0.95)
    for seed in range(20):
        logits, labels = drawn(images + new, seed, scale=2.0)
        record = fitted(logits[:images], labels[:images])
        sets = Limits(record, set=percent).sets(logits[images:])
        hits = sum(label in own for label, own in zip(labels[images:], sets, strict=True))
        inside.append(within[0] <= hits <= within[1])
    assert sum(inside) >= 17  # 19 of 20 on average; fewer than 17 happen once in 60 times


def test_limits_are_order_statistics_and_need_their_images() -> None:
    logits, labels = drawn(99, seed=5)
    record = fitted(logits, labels)
    scale = record.temperature or 1.0
    chances = (torch.from_numpy(logits).double() / scale).softmax(dim=1).numpy()
    scores = sorted(p[p > p[k]].sum() for p, k in zip(chances, labels, strict=True))
    energies = sorted((scale * torch.from_numpy(logits / scale).logsumexp(dim=1)).tolist())
    assert record.sets[95 - 50] == pytest.approx(scores[94])
    assert record.sets[99 - 50] == pytest.approx(scores[98])
    assert record.unknown[5 - 1] == pytest.approx(energies[4], rel=1e-5)
    assert energy(logits, scale).min() == pytest.approx(energies[0], rel=1e-5)
    assert Limits(record, unknown=5).refused(logits).sum() == 4  # and the fifth is the limit
    few = fitted(logits[:18], labels[:18])
    assert (few.sets[94 - 50] is None, few.sets[95 - 50], few.unknown[5 - 1]) == (False, None, None)
    place = Path("outputs/r")
    for asked, words in (
        (("95%", None), "set=95%: 18 validation images are too few"),
        ((None, "5%"), "try a larger unknown="),
        (("80%", "5%"), "try a larger unknown="),
    ):
        with pytest.raises(ConfigError, match=words):
            Limits.of(few, *asked, place)
    with pytest.raises(ConfigError, match="vit-eval outputs/r calibration=save"):
        Limits.of(None, "95%", None, place)
    assert Limits.of(None, None, None, place) is None


def test_equal_labels_come_in_their_order() -> None:
    logits = np.zeros((40, 4), np.float32)
    record = fitted(logits, np.arange(40) % 4)
    assert record.sets[50 - 50] == 0.5  # of four equal ones the third has two before it
    (own, *_) = Limits(record, set=50).sets(logits)
    assert own.tolist() == [0, 1, 2]


# In a run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is so unsure that a temperature helps, and images to label."""
    folder = tmp_path_factory.mktemp("calibrated")
    shape = ["model.dim=32", "model.depth=2", "model.heads=2", "trainer.precision=fp32"]
    done = run("train", *shape, "trainer.epochs=3", "name=r", cwd=folder)
    assert done.returncode == 0, done.stderr
    record = content_of(folder / "outputs" / "r")["calibration"]
    assert f"answers  probabilities {Calibration(**record).told()}" in done.stderr + done.stdout
    for i in range(12):
        save(folder / "in" / f"{i:02}.png", noise(20 + i, 24, seed=i))
    return folder / "outputs" / "r"


def content_of(folder: Path) -> dict:
    return checkpoint.load(folder / "checkpoints" / "best.pt")


def labelled(where: Path, *args: str, cwd: Path) -> tuple[dict[str, float], str]:
    """{image: probability} by vit-predict, and what it says."""
    done = run("predict", str(where), "in", "top=1", "output=p.csv", *args, cwd=cwd)
    assert done.returncode == 0, done.stderr
    with open(cwd / "p.csv", newline="") as file:
        return {
            row["image"]: float(row["probability"]) for row in csv.DictReader(file)
        }, done.stdout


def test_the_record_is_that_of_the_best_weights_on_validation(run_folder: Path) -> None:
    content = content_of(run_folder)
    record = content["calibration"]
    assert record["weights"] == digest(content["weights"])
    metrics = vit.load_run(run_folder).evaluate("split=val")
    assert (record["images"], record["temperature"]) == (metrics["images"], metrics["temperature"])
    assert metrics["calibrated"]["loss"] < metrics["loss"]
    plain = vit.load_run(run_folder).evaluate("split=val", "calibration=none")
    assert plain["temperature"] is plain["calibrated"] is None
    assert plain["loss"] == metrics["loss"]


def test_every_answer_is_by_the_record(run_folder: Path, tmp_path: Path) -> None:
    folder = run_folder.parent.parent
    temperature = content_of(run_folder)["calibration"]["temperature"]
    sure, told = labelled(run_folder, cwd=folder)
    plain, untold = labelled(run_folder, "calibration=none", cwd=folder)
    assert f"probabilities with temperature {temperature:.3f}, fitted on" in told
    assert "temperature" not in untold
    trained = vit.load_run(run_folder)
    seen = torch.stack([trained.transform(folder / name) for name in sure])
    with torch.no_grad():
        logits = trained.model(seen).double()
    for found, scale in ((sure, temperature), (plain, 1.0)):
        own = (logits / scale).softmax(dim=1).amax(dim=1)
        assert [*found.values()] == pytest.approx(own.tolist(), abs=2e-6)
    assert [p.probability for p in trained.predict(folder / "in")] == pytest.approx(
        [*sure.values()], abs=1e-6
    )
    raw = vit.load_run(run_folder, calibrated=False)
    assert [p.probability for p in raw.predict(folder / "in")] == pytest.approx(
        [*plain.values()], abs=1e-6
    )

    done = run("eval", str(run_folder), "output=e", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    with open(tmp_path / "e" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    shares = [float(row["probability"]) for row in rows]
    right = [row["label"] == row["prediction"] for row in rows]
    assert np.mean(shares) > np.mean([*plain.values()])
    assert abs(np.mean(shares) - np.mean(right)) < 0.15
    assert (
        f"divides the logits by {metrics['temperature']:.3f}"
        in (tmp_path / "e" / "report" / "index.html").read_text()
    )


def test_an_export_says_the_record(run_folder: Path, tmp_path: Path) -> None:
    record = content_of(run_folder)["calibration"]
    for how in ("auto", "none"):
        args = ("output=m.onnx", "limit=20", f"calibration={how}")
        done = run("export", str(run_folder), *args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        told = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
        assert json.loads(told.get("calibration", "null")) == (record if how == "auto" else None)
        assert ("with temperature" in done.stdout) == (how == "auto")
        if how == "auto":
            shutil.move(tmp_path / "m.onnx", tmp_path / "own.onnx")
    folder = run_folder.parent.parent
    for file, args in (("own.onnx", ()), ("m.onnx", ("calibration=none",))):
        model = serve_onnx.Classifier(str(tmp_path / file))
        for name, share in labelled(run_folder, *args, cwd=folder)[0].items():
            ((_, served),), _ = model.best(str(folder / name), 1)
            assert served == pytest.approx(share, abs=2e-6)


def test_sets_and_refusals_are_the_same_everywhere(run_folder: Path, tmp_path: Path) -> None:
    folder = run_folder.parent.parent
    asked = ("set=90%", "unknown=50%")
    done = run("predict", str(run_folder), "in", "top=2", *asked, "output=p.csv", cwd=folder)
    assert done.returncode == 0, done.stderr
    told = done.stdout
    with open(folder / "p.csv", newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    done = run(
        "predict", str(run_folder), "in", "top=2", *asked, "output=p.jsonl", "sheet=s.png",
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    listed = [json.loads(line) for line in (folder / "p.jsonl").read_text().splitlines()]
    done = run("export", str(run_folder), f"output={tmp_path}/m.onnx", "limit=20", cwd=folder)
    assert done.returncode == 0, done.stderr
    model = serve_onnx.Classifier(str(tmp_path / "m.onnx"))
    model.hold(90, 50)
    said = vit.load_run(run_folder).predict(folder / "in", 2, set="90%", unknown="50%")
    trained = vit.load_run(run_folder)
    for answer, line in zip(said, listed, strict=True):
        row = rows[str(Path(answer.name).relative_to(folder))]
        with torch.no_grad():
            logits = trained.model(trained.transform(answer.name)[None]).numpy()
        limits = Limits(trained.calibration, 90, 50)
        refused = bool(limits.refused(logits)[0])
        own = [] if refused else [trained.classes[k] for k in limits.sets(logits)[0]]
        assert (answer.unknown, answer.set) == (line["unknown"], line["set"]) == (refused, own)
        assert (row["unknown"], row["set"]) == (("no", "yes")[refused], ";".join(own))
        assert bool(answer.labels) == bool(line["predictions"]) == bool(row["label"]) != refused
        assert (answer.label is None, answer.probability is None) == (refused, refused)
        served, more = model.best(answer.name, 2)
        assert more == {"set": own, "unknown": refused}
        assert [label for label, _ in served] == answer.labels
    assert {answer.unknown for answer in said} == {True, False}
    known = [len(answer.set or []) for answer in said if not answer.unknown]
    assert f"sets for 90%: {np.mean(known):.1f} labels on average" in told
    assert f"unknown, without a label: {12 - len(known)} of 12" in told
    assert max(len(answer.set or []) for answer in said) > 1
    with pytest.raises(ConfigError, match="set=95 must be a share in whole percent"):
        trained.predict(folder / "in", set="95")
    with pytest.raises(ValueError, match="says nothing of sets at 30 %"):
        model.hold(30, None)


def test_the_report_says_what_sets_and_refusals_come_to(run_folder: Path, tmp_path: Path) -> None:
    done = run("eval", str(run_folder), "output=e", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    sets, unknown = metrics["sets"], metrics["unknown"]
    assert [*sets] == ["90%", "95%", "99%"]
    for key in ("holds", "labels"):
        assert [own[key] for own in sets.values()] == sorted(own[key] for own in sets.values())
    assert 0 <= unknown["1%"]["refused"] <= unknown["10%"]["refused"] < 25
    page = (tmp_path / "e" / "report" / "index.html").read_text()
    holds, labels = sets["95%"]["holds"], sets["95%"]["labels"]
    assert f"95%</th><td>{holds:.1f} %</td><td>{labels:.2f}</td>" in page


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["set=95"], "set=95 must be a share in whole percent from 50% to 99%"),
        (["set=49%"], "from 50% to 99%"),
        (["unknown=0.05"], "unknown=0.05 must be a share in whole percent from 1% to 50%"),
        (["set=95%", "calibration=none"], "leave calibration=none out"),
    ],
)
def test_shares_that_are_none_are_answered(given: list[str], told: str, tmp_path: Path) -> None:
    save(tmp_path / "x.png", noise(8, 8))
    done = run("predict", "r", "x.png", *given, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_record_is_of_its_weights_alone(run_folder: Path, tmp_path: Path) -> None:
    """One without it answers as before; so do other weights, another size and merged patches."""
    content = content_of(run_folder)
    own = vit.load_run(run_folder)
    assert own.calibration == Calibration(**content["calibration"])
    without = {key: value for key, value in content.items() if key != "calibration"}
    weights = {**content["weights"], "head.bias": content["weights"]["head.bias"] + 1e-3}
    for name, other in (("old", without), ("other", {**content, "weights": weights})):
        checkpoint.save(tmp_path / f"{name}.pt", other)
        trained = vit.load_run(tmp_path / f"{name}.pt")
        assert trained.calibration is None
        assert trained.temperature == 1.0
    larger = own.evaluate("data.image_size=16", "split=val")
    assert larger["temperature"] not in (None, own.temperature)  # fitted anew
    assert own.evaluate("tta=flip", "split=val")["temperature"] != own.temperature


def test_a_record_is_kept_on_request(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "r")
    content = content_of(run_folder)
    kept = tmp_path / "r" / "checkpoints" / "best.pt"
    checkpoint.save(kept, {**content, "calibration": None})
    for how, found in (("auto", None), ("save", content["calibration"])):
        done = run("eval", "r", f"calibration={how}", "report=false", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert checkpoint.load(kept)["calibration"] == found
    assert checkpoint.load(kept).keys() == content.keys()
    assert str(kept.relative_to(tmp_path)) in done.stdout
    done = run("eval", "r", "calibration=save", "merge=1", "tta=flip", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "leave tta, merge out" in done.stderr


def test_a_record_that_is_none_is_refused(run_folder: Path, tmp_path: Path) -> None:
    content = content_of(run_folder)
    bad = {**content["calibration"], "temperature": -1.0}
    checkpoint.save(tmp_path / "c.pt", {**content, "calibration": bad})
    with pytest.raises(checkpoint.BadCheckpointError, match=r"calibration.temperature must"):
        checkpoint.load(tmp_path / "c.pt")
    short = {**content["calibration"], "sets": [0.5]}
    checkpoint.save(tmp_path / "c.pt", {**content, "calibration": short})
    with pytest.raises(checkpoint.BadCheckpointError, match=r"calibration.sets must have 50"):
        checkpoint.load(tmp_path / "c.pt")
    checkpoint.save(tmp_path / "c.pt", {**content, "calibration": None})
    keep(tmp_path / "c.pt", Calibration(images=7, temperature=2.0))
    assert checkpoint.load(tmp_path / "c.pt")["calibration"] == asdict(
        Calibration(weights=digest(content["weights"]), images=7, temperature=2.0)
    )
