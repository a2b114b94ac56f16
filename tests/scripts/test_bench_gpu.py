"""What is measured on a GPU is written part by part, and not measured again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import bench_gpu
import pytest
import torch
from bench_step import Shape

CPU = torch.device("cpu")


def test_parts_that_are_done_are_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def good(device: torch.device, cifar: str | None) -> dict[str, object]:
        asked.append("good")
        return {"device": device.type, "cifar": cifar}

    def broken(device: torch.device, cifar: str | None) -> dict[str, object]:
        asked.append("broken")
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(bench_gpu, "PARTS", {"good": good, "broken": broken})
    monkeypatch.setattr(bench_gpu, "matrix_rate", lambda device, precision: 1e12)
    out = tmp_path / "gpu.json"
    command = ["bench_gpu.py", "--device", "cpu", "--out", str(out), "--cifar", "c"]
    for more in ([], [], ["--parts", "good"]):
        monkeypatch.setattr(sys, "argv", [*command, *more])
        assert bench_gpu.main() == 0
    assert asked == ["good", "broken", "good"]
    known = json.loads(out.read_text())
    assert known["good"]["found"] == {"device": "cpu", "cifar": "c"}
    assert known["broken"]["found"] == {"failed": "RuntimeError('no such kernel')"}
    assert {"took", "torch", "commit", "matrix rate"} <= known["good"].keys()


def test_the_same_on_the_same_device() -> None:
    assert set(bench_gpu.waits(CPU, None).values()) == {"ok"}
    assert set(bench_gpu.parity(CPU, None).values()) == {0.0}


TINY = Shape("S/16 tiny", 16, 8, 16, 2, 2, 32, 4, 4, 3)


def test_a_step_is_timed_eager_and_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_gpu, "SHAPES", [TINY])
    found = bench_gpu.speed("S/16", CPU, None)
    assert found["batch"] == 4
    for mode in ("eager", "compiled"):
        assert found[mode]["images/s"] > 0
        assert 0 <= found[mode]["MFU"] < 1


def test_processes_of_torchrun_are_timed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_gpu, "SHAPES", [TINY])
    found = bench_gpu.processes(CPU, None)
    assert "failed" not in found, found["failed"]
    assert (found["processes"], found["backend"], found["batch"]) == (2, "gloo", 8)
    assert found["ddp, images/s"] > 0
    assert found["fsdp, images/s"] > 0
