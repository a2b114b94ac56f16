"""Runs on a table of labels: as on a folder, with weights, with labels that changed."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import SMALL, lines, run
from composing import composed
from pictures import data_config, noise, reader, save

from vit.config.validate import to_config
from vit.data.augment.batch import Draws, mix_weighted
from vit.data.loader import TrainLoader
from vit.data.manifest import Manifest, restore
from vit.data.sources.registry import load_data_set
from vit.runtime.dist import ALONE
from vit.training.loss import Loss


def config_of(path, **changes):
    return data_config("table", root=str(path), image_size=16, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes in a folder, and the same as a table in another order."""
    root = tmp_path_factory.mktemp("both")
    rows = []
    for label, name in enumerate(("b", "a b", "C")):
        for i in range(20):
            path = f"{name}/{'x/' * (i % 2)}{i:02}.png"
            save(root / path, noise(8, 8, seed=100 * label + i))
            rows.append((path, name))
    order = np.random.default_rng(0).permutation(len(rows))
    with open(root / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "class"), *(rows[i] for i in order)])
    return root


def test_the_table_of_a_folder_is_the_folder(folder):
    as_folder = load_data_set(data_config("folder", root=str(folder), image_size=16))
    as_table = load_data_set(config_of(folder / "labels.csv"))
    assert as_table.classes == as_folder.classes
    assert Manifest.of(as_table).digest() == Manifest.of(as_folder).digest()


def test_runs_on_both_are_the_same_to_the_bit_and_evaluate_alike(folder, tmp_path):
    kept = {}
    for name, root in (("folder", folder), ("table", folder / "labels.csv")):
        args = [
            f"data={name}", f"data.root={root}", "data.image_size=8", "model.patch_size=4",
            f"name={name}", "trainer.epochs=2", "trainer.batch_size=16", *SMALL[:3], *SMALL[4:],
        ]  # fmt: skip
        done = run("train", *args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        place = tmp_path / "outputs" / name
        volatile = ("time", "seconds", "images_per_second", "mfu", "data_share")
        kept[name] = [
            {k: v for k, v in line.items() if k not in volatile}
            for line in lines(place / "metrics.jsonl")
        ]
        done = run("eval", f"checkpoint={place}", "report=false", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "columns" not in done.stderr
        kept[name].append((place / "eval" / "test" / "predictions.csv").read_text())
    assert kept["folder"] == kept["table"]
    labels = folder / "labels.csv"
    done = run("eval", "checkpoint=outputs/table", f"images={labels}", "report=false", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "(60 images" in done.stdout
    other = tmp_path / "other.csv"
    other.write_text(f"file;what\n{folder}/b/00.png;b\n{folder}/C/00.png;dog\n")
    done = run("eval", "checkpoint=outputs/table", f"images={other}", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "labels that the model does not know: dog; it knows C, a b, b" in done.stderr


def test_a_label_that_changed_is_told_and_the_run_keeps_its_own(folder):
    data = load_data_set(config_of(folder / "labels.csv"))
    manifest = Manifest.from_bytes(Manifest.of(data).to_bytes())
    assert restore(manifest, data).relabelled == []
    text = (folder / "labels.csv").read_text()
    name = data.splits["train"].names[0]
    other = folder / "other.csv"
    other.write_text(text.replace(f"{name},C", f"{name},b"))
    now = restore(manifest, load_data_set(config_of(other)))
    assert now.relabelled == [name]
    assert now.data.splits["train"].labels.tolist() == data.splits["train"].labels.tolist()
    assert now.added == []


def test_weights_are_kept_with_the_run(folder):
    rows = (folder / "labels.csv").read_text().splitlines()
    weighted = folder / "weighted.csv"
    lines = [f"{row},{i % 3}" for i, row in enumerate(rows[1:])]
    weighted.write_text("\n".join([f"{rows[0]},sample_weight", *lines]))
    data = load_data_set(config_of(weighted))
    manifest = Manifest.from_bytes(Manifest.of(data).to_bytes())
    own = restore(manifest, data)
    assert own.relabelled == []
    for split, samples in data.splits.items():
        assert own.data.splits[split].weights.tolist() == samples.weights.tolist()
    weighted.write_text("\n".join([f"{rows[0]},sample_weight", *lines[:-1], f"{rows[-1]},7"]))
    now = restore(manifest, load_data_set(config_of(weighted)))
    assert now.relabelled == [rows[-1].split(",")[0]]


def test_a_weight_is_a_factor_of_the_loss(folder):
    rows = (folder / "labels.csv").read_text().splitlines()
    weighted = folder / "factors.csv"
    lines = [f"{row},{i}" for i, row in enumerate(rows[1:])]
    weighted.write_text("\n".join([f"{rows[0]},w", *lines]))
    factor = {row.split(",")[0]: i for i, row in enumerate(rows[1:])}
    samples = load_data_set(config_of(weighted, weight_column="w")).splits["train"]
    config = to_config(composed("augment=none")).augment
    loader = TrainLoader(samples, 3, 8, config, "none", 0, reader((16, 16)), ALONE)
    batch = loader.batch_at(0)
    names = [samples.names[i] for i in loader.indices_at(0)]
    assert batch.weights.tolist() == [factor[name] for name in names]
    assert batch.targets.argmax(dim=1).tolist() == batch.labels.tolist()
    assert batch.targets.sum(dim=1).tolist() == [1.0] * 8
    logits = torch.randn(8, 3)
    trainer = to_config(composed()).trainer
    for kind in ("cross_entropy", "bce"):
        loss = Loss(replace(trainer, loss=kind, label_smoothing=0.1))
        alone = loss(logits, replace(batch, weights=None))
        torch.testing.assert_close(loss(logits, batch), alone * batch.weights)


def test_mixed_images_have_the_part_in_the_target_that_they_weigh():
    images, targets = torch.zeros(2, 1, 4, 4), torch.eye(2)
    draws = batch_draws(keep=[0.75, 0.75])
    weights = torch.tensor([3.0, 1.0])
    _, mixed, summed = mix_weighted(images, targets, weights, draws)
    torch.testing.assert_close(summed, torch.tensor([2.5, 1.5]))
    torch.testing.assert_close(mixed, torch.tensor([[0.9, 0.1], [0.5, 0.5]]))


def batch_draws(keep):
    count = len(keep)
    boxes = torch.zeros(count, 4, dtype=torch.int64)
    shift, flip = torch.zeros(count, 2, dtype=torch.int64), torch.zeros(count, dtype=torch.bool)
    return Draws(shift, flip, boxes, boxes, torch.tensor(keep))
