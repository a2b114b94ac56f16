"""Checkpoints: atomic, checked, harmless."""

from __future__ import annotations

import errno
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from vit.artifacts import checkpoint
from vit.artifacts.checkpoint import BadCheckpointError
from vit.artifacts.run_dir import RunDir
from vit.config.model import ViTConfig
from vit.config.resume import migrate, migrate_spec
from vit.errors import DiskFullError, NoCheckpointError
from vit.runtime import files


def content(value: float = 1.0) -> dict[str, Any]:
    """The least that is a checkpoint."""
    return {
        "spec": ViTConfig(dim=4, heads=2, depth=1, num_classes=2).plain(), "classes": ["a", "b"],
        "preprocessing": {"image_size": [224, 224], "channels": 3, "mean": [0.5], "std": [0.5]},
        "evaluation": {"batch_size": 2, "precision": "fp32"},
        "config": {"seed": 0}, "step": 3, "weights": {"w": torch.full((64, 64), value)},
        "images": "0",
        "training": None,
    }  # fmt: skip


def flat(value: Any) -> Any:
    """Nested values with tensors as bytes, comparable."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.numpy().tobytes())
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items()}
    return [flat(item) for item in value] if isinstance(value, list) else value


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.pt", content())
    loaded = checkpoint.load(tmp_path / "c.pt")
    assert loaded.pop("format_version") == checkpoint.FORMAT_VERSION
    saved = content()
    assert flat(loaded) == flat(
        {**saved, "config": migrate(saved["config"]), "spec": migrate_spec(saved["spec"])}
    )


def test_what_earlier_versions_left_out_of_a_spec_is_what_they_did() -> None:
    """So the defaults of `ModelOptions` may not change."""
    full = {**ViTConfig(dim=48, mlp_dim=96).plain(), "qk_norm": True}
    assert migrate_spec(full) == full
    first = {"dim": 48, "mlp_ratio": 2.0, "heads": 4}
    assert migrate_spec(first) == {
        "dim": 48, "mlp_dim": 96, "heads": 4, "registers": 0, "norm": "layernorm", "mlp": "gelu",
        "norm_eps": 1e-6, "pre_norm": False, "pooled_norm": False,
        "layer_scale": None, "qkv_bias": True, "qk_norm": False, "attention": "scaled_dot",
        "patch_dropout": 0.0, "zero_branches": False, "distillation_token": False, "options": {},
        "positions": "learned", "pool": "cls", "dropout": 0.0, "drop_path": 0.0,
    }  # fmt: skip


def test_every_bit_flip_is_detected_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    checkpoint.save(path, content())
    good, expected = path.read_bytes(), flat(checkpoint.load(path))
    rng = random.Random(0)
    detected = 0
    for _ in range(200):
        bit = rng.randrange(8 * len(good))
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert flat(checkpoint.load(path)) == expected, f"bit {bit} was silent"
        except BadCheckpointError:
            detected += 1
    assert detected > 150


def test_every_truncation_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    checkpoint.save(path, content())
    good = path.read_bytes()
    rng = random.Random(1)
    for length in [0, len(good) - 1, *(rng.randrange(len(good)) for _ in range(18))]:
        path.write_bytes(good[:length])
        with pytest.raises(BadCheckpointError):
            checkpoint.load(path)
    path.write_bytes(bytes(len(good)))
    with pytest.raises(BadCheckpointError):
        checkpoint.load(path)


def test_file_is_durable_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, r=real: (calls.append(n), r(*a))[1])
    files.write_atomic(tmp_path / "c.pt", b"x")
    assert calls == ["fsync", "replace", "fsync"]  # file, name, folder
    assert (tmp_path / "c.pt").read_bytes() == b"x"


def test_what_a_killed_writer_left_goes_with_a_later_one(tmp_path: Path) -> None:
    """After a day, and nothing else; names may be as long as the disk allows."""
    name = "n" * 255
    names = [f"{name[:56]}.0123456{i}.tmp" for i in range(2)] + ["c.pt.tmp", f"{name[:56]}.tmp"]
    for each in names:
        (tmp_path / each).write_bytes(b"x")
        os.utime(tmp_path / each, (0, time.time() - (0 if each == names[1] else 25 * 3600)))
    files.write_atomic(tmp_path / name, b"x")
    files.remove_stale(tmp_path, name[:56])
    assert set(os.listdir(tmp_path)) == {name, *names[1:]}


@pytest.mark.parametrize("victim", ["open", "fsync", "replace", "sync_folder"])
def test_dying_anywhere_in_a_save_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    """The process exits at the k-th system call of the save; what is on disk is old or new."""
    path = tmp_path / "c.pt"
    checkpoint.save(path, content(1.0))
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        where = files if victim == "sync_folder" else os
        name = "open" if victim == "open" else victim
        setattr(where, name, lambda *a, **k: os._exit(9))
        if victim == "open":
            files.open = lambda *a, **k: os._exit(9)  # type: ignore[attr-defined]
        checkpoint.save(path, content(2.0))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    value = checkpoint.load(path)["weights"]["w"][0, 0].item()
    assert value == (2.0 if victim == "sync_folder" else 1.0)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_leaves_the_old_checkpoint_and_no_torn_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "c.pt"
    checkpoint.save(path, content(1.0))

    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"c\.pt"):
        checkpoint.save(path, content(2.0))
    assert os.listdir(tmp_path) == ["c.pt"]
    assert checkpoint.load(path)["weights"]["w"][0, 0] == 1.0


class Payload:
    """Would run code when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


def test_a_hostile_checkpoint_executes_nothing(tmp_path: Path) -> None:
    torch.save({**content(), "format_version": 1, "x": Payload(tmp_path / "m")}, tmp_path / "c.pt")
    with pytest.raises(BadCheckpointError, match="refused"):
        checkpoint.load(tmp_path / "c.pt")
    assert not (tmp_path / "m").exists()


def test_versions_and_strangers(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save({**content(), "format_version": checkpoint.FORMAT_VERSION + 1}, path)
    with pytest.raises(BadCheckpointError, match="upgrade"):
        checkpoint.load(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(BadCheckpointError, match="no checkpoint of vit-train"):
        checkpoint.load(path)
    torch.save({"format_version": 1, "spec": {}}, path)
    with pytest.raises(BadCheckpointError, match=r"spec\.dim is missing, .* and 11 more"):
        checkpoint.load(path)
    with pytest.raises(BadCheckpointError, match="does not exist"):
        checkpoint.load(tmp_path / "none.pt")


def test_falls_back_to_the_one_before_and_says_so(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.checkpoints.mkdir()
    for step in (9, 10, 1000000000 - 1):
        checkpoint.save(run.step_file(step), {**content(), "step": step})
    said: list[str] = []
    run.step_file(1000000000 - 1).write_bytes(b"torn")
    path, loaded = checkpoint.newest(run, said.append)
    assert (path, loaded["step"]) == (run.step_file(10), 10)
    assert "falling back" in said[0]
    for file in run.step_files():
        file.write_bytes(b"torn")
    with pytest.raises(NoCheckpointError, match="all 3 checkpoints"):
        checkpoint.newest(run, said.append)


def test_pruning_keeps_the_newest_by_number(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.checkpoints.mkdir()
    for step in (8, 9, 10, 11):
        run.step_file(step).write_bytes(b"")
    run.best.write_bytes(b"")
    run.prune(2)
    assert sorted(os.listdir(run.checkpoints)) == [
        "best.pt",
        "step-000000010.pt",
        "step-000000011.pt",
    ]
