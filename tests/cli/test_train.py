"""A run from beginning to end: what it leaves, how it goes on, what it refuses."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import SMALL, lines, run
from kill_resume import differences, metrics

from vit.artifacts import checkpoint
from vit.artifacts.run_dir import RunDir
from vit.artifacts.runs import read_runs


def events(folder: Path) -> dict[tuple[str, int], float]:
    """TensorBoard's scalars as {(tag, step): value}; a point that is there twice fails."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    found = {}
    for tag in board.Tags()["scalars"]:
        for event in board.Scalars(tag):
            assert (tag, event.step) not in found, f"{tag} at {event.step} twice"
            found[tag, event.step] = event.value
    return found


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    shares = [
        line["data_share"] for line in lines(finished / "metrics.jsonl") if line["event"] == "train"
    ]
    assert all(0 <= share <= 1 for share in shares)
    wanted = {
        "val_top1",
        "test_top1",
        "best_epoch",
        "params",
        "matrix_tflops",
        "images_per_second",
        "seconds",
    }
    assert wanted | {"versions", "state"} <= summary.keys()
    assert summary["state"] == "finished"
    assert {"config.yaml", "metrics.jsonl", "summary.json", "checkpoints", "train", "val"} <= set(
        os.listdir(finished)
    )
    assert "auto" not in (finished / "config.yaml").read_text().replace("device: auto", "").replace(
        "workers: auto", ""
    ).replace("verify: auto", "").replace("name: auto", "")
    assert sorted(os.listdir(finished / "checkpoints"))[0] == "best.pt"


def test_epochs_fall_due_where_the_stream_says(finished: Path) -> None:
    found = [line["step"] for line in lines(finished / "metrics.jsonl") if line["event"] == "val"]
    assert found == [math.ceil(k * 1264 / 64) for k in (1, 2, 3)]


def test_files_and_evaluation_agree_to_the_last_digit(finished: Path, tmp_path: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    log = lines(finished / "metrics.jsonl")
    vals = [line for line in log if line["event"] == "val"]
    best = max(vals, key=lambda line: (line["top1"], -line["loss"]))
    test = next(line for line in log if line["event"] == "test")
    assert summary["best_epoch"] == best["epoch"]
    for split, line in (("val", best), ("test", test)):
        done = run(
            "eval", f"checkpoint={finished}", f"split={split}", f"output={tmp_path / split}",
            cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        scored = json.loads((tmp_path / split / "metrics.json").read_text())
        for key in ("loss", "top1", "top5"):
            assert scored[key] == line[key] == summary[f"{split}_{key}"]
    boards = {split: events(finished / split) for split in ("train", "val", "final")}
    for line in log:
        for key in set(line) - {"event", "step", "time", "weights"}:
            tag = f"{'curves' if key in ('loss', 'top1') else 'details'}/{key}"
            if line["event"] != "test":
                assert boards[line["event"]][tag, line["step"]] == np.float32(line[key])
            elif key != "epoch":
                assert boards["final"][f"scores/test_{key}", line["step"]] == np.float32(line[key])
    assert boards["final"]["scores/val_top1", log[-1]["step"]] == np.float32(best["top1"])


def test_predictions_name_every_image(finished: Path, tmp_path: Path) -> None:
    done = run("eval", f"checkpoint={finished}", f"output={tmp_path}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    header, *rows = (tmp_path / "predictions.csv").read_text().splitlines()
    assert header == "image,label,prediction,probability"
    assert len(rows) == 348
    right = sum(row.split(",")[1] == row.split(",")[2] for row in rows)
    scored = json.loads((tmp_path / "metrics.json").read_text())
    assert scored["top1"] == pytest.approx(100 * right / 348)


def test_same_seed_same_bits_other_seed_other_bits(finished: Path, tmp_path: Path) -> None:
    for name, seed in (("again", 0), ("other", 1)):
        args = [*SMALL, "trainer.epochs=3", "trainer.ema=1", f"seed={seed}", f"name={name}"]
        assert run("train", *args, cwd=tmp_path).returncode == 0
    again, other = (RunDir(tmp_path / "outputs" / name) for name in ("again", "other"))
    assert differences(RunDir(finished), again) == []
    assert metrics(RunDir(finished)) != metrics(other)


def test_a_killed_run_equals_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two kills, wherever they hit; the campaign of 20 in every phase is the script itself."""
    import kill_resume

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments = ["--kills", "2", "--steps", "200", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["kill_resume", *arguments])
    assert kill_resume.main() == 0


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run to do things to."""
    return Path(shutil.copytree(finished, tmp_path / "outputs" / "copied"))


def test_best_score_survives_a_resume(copied: Path) -> None:
    """Going on with a learning rate that ruins the model leaves best.pt as it was."""
    best = (copied / "checkpoints" / "best.pt").read_bytes()
    state = RunDir(copied)
    newest, content = checkpoint.newest(state, print)
    content["training"]["best"]["top1"] = 101.0
    checkpoint.save(newest, {k: v for k, v in content.items() if k != "format_version"})
    done = run("train", f"resume={copied}", "trainer.epochs=5", cwd=copied.parent.parent)
    assert done.returncode == 0, done.stderr
    assert "learning rate at step 60: 0" in done.stdout
    assert "trainer.epochs: 3.0 -> 5.0" in done.stdout
    assert "weights of epoch 3 of 5, best on validation" in done.stdout
    assert "from before it went on: none since was better" in done.stdout
    assert RunDir(copied).read_summary()["lengths"] == [60, 99]
    (one,) = read_runs(copied)
    assert one.config["lengthened"] == "60 to 99 steps"
    assert (copied / "checkpoints" / "best.pt").read_bytes() == best
    for split in ("train", "val"):
        events(copied / split)  # no point twice
    assert {step for _, step in events(copied / "final")} == {99}  # what was final is not any more


def test_a_finished_run_stays_as_it_is(copied: Path) -> None:
    before = (copied / "metrics.jsonl").read_bytes(), (copied / "summary.json").read_bytes()
    done = run("train", f"resume={copied}", cwd=copied)
    assert (done.returncode, "is finished" in done.stdout) == (0, True)
    assert (
        (copied / "metrics.jsonl").read_bytes(),
        (copied / "summary.json").read_bytes(),
    ) == before


def test_killed_in_the_final_evaluation_it_runs_again(copied: Path) -> None:
    run_dir = RunDir(copied)
    whole = metrics(run_dir)
    summary = run_dir.read_summary()
    text = run_dir.metrics.read_bytes().splitlines(keepends=True)
    run_dir.metrics.write_bytes(b"".join(text[:-1]) + text[-1][:20])  # torn in the last line
    run_dir.write_summary({"state": "running"})
    assert run("train", f"resume={copied}", cwd=copied).returncode == 0
    assert metrics(run_dir) == whole
    again = run_dir.read_summary()
    volatile = ("seconds", "images_per_second", "matrix_tflops")
    assert [again[k] for k in again if k not in volatile] == [
        summary[k] for k in again if k not in volatile
    ]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lr=0.5", "optim.lr=0.5 differs"),
        ("model.dim=32", "model.dim=32 differs"),
        ("seed=5", "seed=5 differs"),
        ("trainer.epochs=2", "shorter"),
        ("trainer.steps=30", "shorter"),
        ("model=small", "picks a group"),
        ("data.val_fraction=0.2", "data.val_fraction=0.2 differs"),
    ],
)
def test_what_would_make_it_another_run_is_refused(copied: Path, override: str, words: str) -> None:
    before = {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()}
    done = run("train", f"resume={copied}", override, cwd=copied)
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert "changed:" not in done.stdout
    assert {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()} == before


def test_resume_without_a_good_checkpoint_is_no_fresh_start(copied: Path) -> None:
    for file in RunDir(copied).step_files():
        file.write_bytes(file.read_bytes()[:1000])
    done = run("train", f"resume={copied}", "trainer.epochs=9", cwd=copied)
    assert done.returncode == 3
    assert "damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert run("train", "resume=nowhere", cwd=copied).returncode == 3


def test_a_taken_name_is_refused_with_the_command_that_resumes(copied: Path) -> None:
    done = run("train", *SMALL, "name=copied", cwd=copied.parent.parent)
    assert done.returncode == 2
    assert "vit-train resume=outputs/copied" in done.stderr


def test_two_processes_cannot_train_in_one_folder(copied: Path) -> None:
    owner = RunDir(copied)
    owner.lock()
    done = run("train", f"resume={copied}", "trainer.epochs=5", cwd=copied)
    owner.unlock()
    assert (done.returncode, "another process" in done.stderr) == (2, True)


def test_other_threads_are_said_not_to_be_exact(copied: Path) -> None:
    newest, content = checkpoint.newest(RunDir(copied), print)
    content["training"]["environment"]["threads"] = 7
    checkpoint.save(newest, {k: v for k, v in content.items() if k != "format_version"})
    done = run("train", f"resume={copied}", "trainer.epochs=4", cwd=copied)
    assert done.returncode == 0, done.stderr
    assert "not bit-exact: threads 1, before 7" in done.stderr


def test_a_full_disk_has_its_own_exit_code(tmp_path: Path) -> None:
    import resource
    import subprocess

    done = subprocess.run(
        [sys.executable, "-m", "vit.cli.train", *SMALL, "trainer.epochs=3", "name=full"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert "no space" in done.stderr
    assert "Traceback" not in done.stderr
    left = RunDir(tmp_path / "outputs" / "full")
    assert left.step_files() == []
    assert [p.name for p in left.checkpoints.iterdir()] == ["best.pt"]  # small enough, and whole
    assert checkpoint.load(left.best)["step"] == 20


def test_divergence_stops_with_its_own_exit_code(tmp_path: Path) -> None:
    args = [*SMALL, "optim.lr=1e12", "optim.clip_norm=null", "name=bad", "trainer.epochs=9"]
    done = run("train", *args, "trainer.max_bad_steps=3", "schedule.warmup=0", cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr
    assert "step" in done.stderr
    for file in RunDir(tmp_path / "outputs" / "bad").step_files():
        weights = checkpoint.load(file)["weights"]
        assert all(bool(torch.isfinite(w).all()) for w in weights.values())


def test_without_validation_the_last_weights_count(tmp_path: Path) -> None:
    args = [*SMALL, "trainer.epochs=2", "data.val_fraction=0", "name=noval"]
    done = run("train", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = RunDir(tmp_path / "outputs" / "noval").read_summary()
    assert summary["val_top1"] is None
    assert summary["test_top1"] is not None
    done = run("eval", "checkpoint=outputs/noval", cwd=tmp_path)
    assert f"top-1 {summary['test_top1']:.2f}" in done.stdout


def test_early_stopping_ends_the_run(tmp_path: Path) -> None:
    args = [*SMALL, "trainer.epochs=30", "trainer.early_stop=1", "optim.lr=0", "name=early"]
    assert run("train", *args, cwd=tmp_path).returncode == 0
    summary = RunDir(tmp_path / "outputs" / "early").read_summary()
    assert (summary["state"], round(summary["epoch"])) == ("finished", 2)


def test_a_failed_start_leaves_the_name_free(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run("train", "data=folder", "data.root=empty", "name=x", cwd=tmp_path)
    assert done.returncode == 2
    assert "empty has 0 class folders" in done.stderr
    assert os.listdir(tmp_path / "outputs") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    done = run("train", *SMALL, f"outputs={tmp_path}/x", cwd=tmp_path)
    assert (done.returncode, str(tmp_path) in done.stderr) == (2, True)


def test_outputs_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("train", *SMALL, "outputs=file", cwd=tmp_path)
    assert (done.returncode, "file" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


def test_a_sweep_goes_on_past_a_failure_and_ends_with_a_table(tmp_path: Path) -> None:
    args = ["-m", *SMALL, "trainer.epochs=1", "model.heads=2,3", "seed=0,1", "name=s"]
    first = run("train", *args, cwd=tmp_path)
    assert first.returncode == 1
    assert first.stderr.count("model.dim=16 is not divisible by model.heads=3") == 2
    folder = tmp_path / "outputs" / "s"
    table = first.stdout.split("at epoch", 1)[1].split("\n\n")[0].splitlines()
    assert len([line for line in table if "finished" in line]) == 2
    assert len([line for line in table if "failed" in line]) == 2
    states = {p.name: RunDir(p).read_summary()["state"] for p in folder.iterdir() if p.is_dir()}
    assert states["model.heads-2_seed-0"] == "finished"
    assert states["model.heads-3_seed-1"] == "failed"
    again = run("train", *args, cwd=tmp_path)
    assert again.stdout.count("is finished") == 2


def test_the_process_writes_nothing_else(tmp_path: Path) -> None:
    assert run("train", *SMALL, "trainer.steps=2", "name=n", cwd=tmp_path).returncode == 0
    assert os.listdir(tmp_path) == ["outputs"]
    assert os.listdir(tmp_path / "outputs") == ["n"]


def test_a_compiled_run_evaluates_to_the_same_digit(tmp_path: Path) -> None:
    """The training step alone is compiled: keys and scores of vit-eval stay what they are."""
    small = [arg for arg in SMALL if "depth" not in arg]
    args = [*small, "model.depth=1", "trainer.steps=4", "trainer.compile=true", "name=c",
            "model.patch_dropout=0.5", "schedule.patch_dropout_end=2"]  # fmt: skip
    done = run("train", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = RunDir(tmp_path / "outputs" / "c").read_summary()
    assert run("eval", "checkpoint=outputs/c", cwd=tmp_path).returncode == 0
    scored = json.loads((tmp_path / "outputs/c/eval/test/metrics.json").read_text())
    assert scored["loss"] == summary["test_loss"]
    saved = checkpoint.load(RunDir(tmp_path / "outputs" / "c").step_file(4))
    assert not any("_orig_mod" in key for key in saved["weights"])
    # Two of the four steps compiled, for half of the patches and for all: they do not count.
    assert saved["training"]["images"] == 2 * saved["config"]["trainer"]["batch_size"]
