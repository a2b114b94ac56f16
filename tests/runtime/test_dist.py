"""Several processes: what one process computes, and what one leaves, however they are stopped."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import SMALL, run
from kill_resume import differences, metrics
from pictures import data_config, reader, settings_of
from together import experiments, largest_difference, run_together, torchrun, wait_until, watched

from vit.artifacts import checkpoint
from vit.artifacts.run_dir import RunDir
from vit.config.schema import AugmentConfig
from vit.data.loader import TrainLoader
from vit.data.sources.registry import load_data_set
from vit.runtime.dist import World

# 185 validation and 348 test images in 7 and 13 batches: no number of processes divides any.
ARGS = [
    "schedule.mix_end=100%",
    *SMALL, "augment=strong", "trainer.ema=1", "trainer.eval_batch_size=28", "model.dropout=0",
    "schedule=constant", "schedule.warmup=5", "trainer.epochs=3", "trainer.save_every=10",
]  # fmt: skip
WITHIN = 1e-5
"""Relative difference of losses; seen: 2.4e-7 in two processes, 5.4e-7 in four."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torchrun")


def outputs(folder: Path, name: str) -> RunDir:
    return RunDir(folder / "outputs" / name)


@pytest.fixture(scope="module")
def one(folder: Path) -> RunDir:
    done = run_together(1, *ARGS, "name=one", cwd=folder)
    assert done.returncode == 0, done.stdout
    return outputs(folder, "one")


@pytest.fixture(scope="module")
def two(folder: Path) -> RunDir:
    with torchrun(2, *ARGS, "name=two", cwd=folder) as job:
        done = job.finish()
    assert done.returncode == 0, done.stdout
    return outputs(folder, "two")


@pytest.fixture(scope="module")
def told(folder: Path, one: RunDir) -> list[dict[str, Any]]:
    """What small experiments in three processes and fewer gave, by rank."""
    (folder / "experiments").mkdir()
    return experiments(3, folder / "experiments", one.best)


# The same training


@pytest.mark.parametrize("size", [2, 4])
def test_processes_share_the_images_of_one(size: int) -> None:
    digits = load_data_set(data_config("digits")).splits["train"]
    plain = {**settings_of("augment", "strong"), "crop": "padded", "flip": 0.0}

    def loader(world: World) -> TrainLoader:
        config, read = AugmentConfig(**plain), reader((8, 8), 1)
        return TrainLoader(digits, 10, 64, config, "none", 0, read, world)

    alone, ranks = loader(World()), [loader(World(rank, size)) for rank in range(size)]
    for step in (0, 1, 19, 40):  # the third epoch begins in step 39
        whole, shares = alone.batch_at(step), [load.batch_at(step) for load in ranks]
        for name in ("images", "labels", "targets"):
            together = torch.cat([getattr(share, name) for share in shares])
            assert torch.equal(together, getattr(whole, name)), name
        index = alone.indices_at(step)
        assert all(np.array_equal(load.indices_at(step), index) for load in ranks)
        assert np.array_equal(np.concatenate([r.request_at(step).positions for r in ranks]), index)


def test_two_processes_compile_and_train_as_one(folder: Path) -> None:
    args = [*(arg for arg in SMALL if "depth" not in arg), "model.depth=1", "trainer.steps=6",
            "trainer.log_every=1"]  # fmt: skip
    with torchrun(2, *args, "trainer.compile=true", "name=compiled", cwd=folder) as job:
        done = job.finish()
    assert done.returncode == 0, done.stdout
    done = run_together(1, *args, "name=eager", cwd=folder)
    assert done.returncode == 0, done.stdout
    compiled, eager = outputs(folder, "compiled"), outputs(folder, "eager")
    assert 0 < largest_difference(compiled, eager) < 1e-4
    assert not any("_orig_mod" in key for key in checkpoint.load(compiled.step_file(6))["weights"])


def test_two_processes_train_as_one(one: RunDir, two: RunDir) -> None:
    assert largest_difference(one, two) < WITHIN
    assert {line["event"] for line in metrics(two)} == {"train", "val", "test"}


def test_four_processes_train_as_one(folder: Path, one: RunDir) -> None:
    done = run_together(4, *ARGS, "name=four", cwd=folder)
    assert done.returncode == 0, done.stdout
    assert "4 x " in done.stdout
    assert largest_difference(one, outputs(folder, "four")) < WITHIN


def test_every_number_of_processes_evaluates_to_the_last_digit(told: list[dict[str, Any]]) -> None:
    alone = told[0]["predictions 1"]
    assert alone.index.tolist() == list(range(179))
    for size in (2, 3):
        for rank in range(size):
            shared = told[rank][f"predictions {size}"]
            assert shared.scores() == alone.scores()
            for name in ("losses", "top", "probability", "labels", "index"):
                assert np.array_equal(getattr(shared, name), getattr(alone, name)), name


def test_gradients_are_averaged_once_per_step(told: list[dict[str, Any]]) -> None:
    for rank in (0, 1):
        whole, in_parts = (told[rank]["steps"][parts] for parts in (1, 2))
        for steps in (whole, in_parts):
            averaged = ("allreduce_", torch.float32, len(steps["weights"]))
            first, second, *others = steps["exchanged"]
            assert first == [averaged]
            assert second[-1:] == [averaged]  # DDP agrees on its buckets before
            assert others == [[averaged]] * 2
            assert np.array_equal(steps["weights"], told[0]["steps"][1]["weights"]) == (
                steps is whole
            )
        np.testing.assert_allclose(in_parts["weights"], whole["weights"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(in_parts["odometer"], whole["odometer"], rtol=WITHIN)


def test_a_loss_that_one_process_finds_not_finite_spoils_the_step_of_all(
    told: list[dict[str, Any]],
) -> None:
    """It changes neither weights, which are those of four steps above, nor sums."""
    for rank in (0, 1):
        for steps in (*told[rank]["steps"].values(), *told[rank]["shards"].values()):
            assert steps["bad"] == [1, 1, 1, 4]
            assert steps["odometer"][[2, 4]].tolist() == [4 * 16, 4]
            assert np.isfinite(steps["weights"]).all()


def test_between_log_lines_processes_exchange_gradients_and_whether_to_stop(folder: Path) -> None:
    args = ["trainer.steps=12", "trainer.log_every=4", "trainer.eval_every=12"]
    args += ["trainer.epochs=null", "trainer.save_every=12", "name=watched"]
    done = run_together(2, *ARGS, *args, cwd=folder, target=watched)
    assert done.returncode == 0, done.stdout
    stop = ("allreduce_", torch.int64, 1)
    for rank in (0, 1):
        steps = pickle.loads((folder / f"seen-{rank}").read_bytes())
        alone = [step[1:] == [stop] for step in steps[2:]]  # before, DDP agrees on its buckets
        assert alone == [number % 4 != 3 for number in range(2, 12)]


@pytest.mark.parametrize("shard", ["none", "fsdp"])
def test_parts_of_a_batch_train_as_the_whole(folder: Path, two: RunDir, shard: str) -> None:
    name = f"parts-{shard}"
    args = ["trainer.accumulate=2", f"trainer.shard={shard}", "trainer.epochs=1", f"name={name}"]
    done = run_together(2, *ARGS, *args, cwd=folder)
    assert done.returncode == 0, done.stdout
    found = [line for line in metrics(outputs(folder, name)) if line["event"] == "train"]
    for line, whole in zip(found, metrics(two), strict=False):
        assert line["loss"] == pytest.approx(whole["loss"], rel=WITHIN)
        assert line["grad_norm"] == pytest.approx(whole["grad_norm"], rel=10 * WITHIN)
    assert len(found) == 4


def test_all_processes_stop_at_the_same_step(told: list[dict[str, Any]]) -> None:
    assert told[0]["agreement"] == told[1]["agreement"] == [0, 0, 0, 0, 15, 15]


# Sharding


@pytest.fixture(scope="module")
def sharded(folder: Path, two: RunDir) -> RunDir:
    """An epoch in two processes that share the weights, one alone, and one more in two."""
    first = run_together(
        2, *ARGS, "trainer.shard=fsdp", "trainer.epochs=1", "name=fsdp", cwd=folder
    )
    assert first.returncode == 0, first.stdout
    assert "Warning" not in first.stdout
    found = outputs(folder, "fsdp")
    shutil.copytree(found.path, folder / "outputs" / "first")
    again = ["resume=outputs/fsdp", "trainer.epochs=2"]
    refused = run_together(1, *again, cwd=folder)
    assert (refused.returncode, "needs several processes" in refused.stdout) == (2, True)
    alone = run_together(1, *again, "trainer.shard=none", cwd=folder)
    assert alone.returncode == 0, alone.stdout
    assert "not bit-exact: processes 1, before 2" in alone.stdout
    again = ["resume=outputs/fsdp", "trainer.epochs=3", "trainer.shard=fsdp"]
    back = run_together(2, *again, cwd=folder)
    assert back.returncode == 0, back.stdout
    return found


def test_sharded_weights_train_alike(sharded: RunDir, two: RunDir) -> None:
    """Through a resume by one process and back again."""
    expected = [line for line in metrics(two) if line["event"] != "test"]
    found = [line for line in metrics(sharded) if line["event"] != "test"]
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            if key in ("loss", "grad_norm"):
                assert b[key] == pytest.approx(a[key], rel=10 * WITHIN if key != "loss" else WITHIN)
            else:
                assert a[key] == b[key]


def test_shards_are_gathered_in_the_precision_of_products(told: list[dict[str, Any]]) -> None:
    """The rest of the weights, and gradients, in fp32: what is computed is the same."""
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        whole, spread = (told[0]["shards"][precision, how] for how in ("none", "fsdp"))
        for step in spread["exchanged"]:
            gathered = [sent for name, *sent in step if name == "_allgather_base_"]
            of_block = [dtype, 12 * 16**2 + 9 * 16]  # the products of dim 16, with biases
            assert gathered.count(of_block) == 2 * 2 * 2  # blocks, forward and backward, parts
            assert [kind for kind, n in gathered if n != of_block[1]] == [torch.float32] * 2
            reduced = {kind for name, kind, _ in step if name == "_reduce_scatter_base_"}
            assert reduced == {torch.float32}
        np.testing.assert_allclose(spread["weights"], whole["weights"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(spread["losses"], whole["losses"], rtol=WITHIN)
    exact, rounded = (told[0]["shards"][p, "fsdp"]["weights"] for p in ("fp32", "bf16"))
    assert 1e-4 < np.abs(exact - rounded).max() < 1e-1


def test_a_sharded_checkpoint_is_a_plain_file(folder: Path, sharded: RunDir, two: RunDir) -> None:
    first = outputs(folder, "first")
    assert [p.name for p in first.step_files()] == ["step-000000020.pt", "step-000000010.pt"]
    saved, plain = (checkpoint.load(r.step_files()[0]) for r in (sharded, two))
    for part in ("weights", "training"):
        assert saved[part].keys() == plain[part].keys()
    for name, weight in plain["weights"].items():
        assert type(saved["weights"][name]) is torch.Tensor
        assert saved["weights"][name].shape == weight.shape
    moments = saved["training"]["optimizer"]["state"]
    for number, state in plain["training"]["optimizer"]["state"].items():
        for key, value in state.items():
            assert moments[number][key].shape == value.shape
    done = run("eval", f"checkpoint={first.path}", cwd=folder)
    assert done.returncode == 0, done.stderr
    scored = json.loads((first.path / "eval" / "test" / "metrics.json").read_text())
    assert scored["top1"] == first.read_summary()["test_top1"]
    assert scored["loss"] == pytest.approx(first.read_summary()["test_loss"], rel=1e-6)


# Stopped and gone on


@pytest.fixture(scope="module")
def interrupted(folder: Path) -> RunDir:
    """Two processes that a signal to torchrun has ended."""
    found = outputs(folder, "interrupted")
    with torchrun(2, *ARGS, "name=interrupted", cwd=folder) as job:
        assert wait_until(found.step_files, job.is_over)
        job.process.send_signal(signal.SIGTERM)
        done = job.finish(60)
        assert job.members() == []
    assert done.returncode != 0
    assert done.stdout.count("interrupted and saved at step") == 1
    return found


def test_a_signal_to_torchrun_saves_once(interrupted: RunDir) -> None:
    summary = interrupted.read_summary()
    assert (summary["state"], summary["exit_code"]) == ("interrupted", 128 + signal.SIGTERM)
    saved = checkpoint.load(interrupted.step_files()[0])
    assert saved["step"] == summary["step"] < 59
    assert saved["training"]["environment"]["processes"] == 2


@pytest.mark.parametrize("processes", [1, 4])
def test_another_number_of_processes_goes_on(
    folder: Path, interrupted: RunDir, one: RunDir, processes: int
) -> None:
    name = f"interrupted-{processes}"
    shutil.copytree(interrupted.path, folder / "outputs" / name)
    done = run_together(processes, f"resume=outputs/{name}", cwd=folder)
    assert done.returncode == 0, done.stdout
    assert f"processes {processes}, before 2" in done.stdout
    assert largest_difference(one, outputs(folder, name)) < WITHIN


def test_killed_processes_are_started_again_by_themselves(folder: Path, two: RunDir) -> None:
    found = outputs(folder, "killed")
    args = [*ARGS, "name=killed", "resume=auto"]
    with torchrun(2, *args, cwd=folder, restarts=3) as job:
        assert wait_until(found.step_files, job.is_over)
        (victim,) = job.members("RANK=1", "vit.cli.train")
        os.kill(victim, signal.SIGKILL)
        done = job.finish()
        assert job.members() == []
    assert done.returncode == 0, done.stdout
    assert differences(two, found) == []
    assert metrics(two) == metrics(found)
    assert found.read_summary()["state"] == "finished"
    writers = {file.name.split(".")[-2] for file in found.board("train").glob("events*")}
    assert len(writers) == 2  # one of each start


# Held images


def test_images_are_decoded_once_per_machine(folder: Path, told: list[dict[str, Any]]) -> None:
    assert (folder / "experiments" / "calls").read_text().split() == ["0"]
    for rank in (0, 1):
        array = told[rank]["array"]
        assert np.array_equal(array["seen"], told[0]["array"]["seen"])
        assert (array["seen"].shape, array["value"]) == ((30, 3, 8, 8), "beside it")
        assert (array["written"] == 7).all()
        assert array["empty"] == (0, 3, 8, 8)
        assert not array["file"].exists()


def test_an_error_while_decoding_reaches_all(told: list[dict[str, Any]]) -> None:
    assert [told[rank]["no array"] for rank in (0, 1)] == ["no such images"] * 2


def test_processes_end_with_a_launcher_that_is_killed(folder: Path) -> None:
    """They save and leave their folder: another start goes on at once."""
    args = [*ARGS, "name=orphan", "trainer.epochs=500"]
    with torchrun(2, *args, cwd=folder) as job:
        run_dir = outputs(folder, "orphan")
        wait_until(lambda: len(run_dir.step_files()) > 0)
        launcher = job.process.pid
        ranks = [pid for pid in job.members() if pid != launcher]
        os.kill(launcher, signal.SIGKILL)
        job.process.wait(10)
        start = time.monotonic()
        wait_until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in ranks))
        assert time.monotonic() - start < 20
    assert not run_dir.is_locked()
    assert run_dir.read_summary()["state"] == "interrupted"
