"""What a device is taken to be able to do, by what it says of itself."""

from __future__ import annotations

import pytest
import torch

from vit.errors import ConfigError
from vit.runtime.device import (
    allow_tf32,
    autocast,
    best_precision,
    select_device,
)


@pytest.mark.parametrize(
    ("capability", "precision", "cudnn"),
    [
        ((6, 1), "fp32", True),  # GTX 1080
        ((7, 0), "fp16", True),  # V100
        ((7, 5), "fp16", True),  # T4
        ((8, 0), "bf16", True),  # A100
        ((8, 9), "bf16", True),  # RTX 4090
        ((9, 0), "bf16", False),  # H100
        ((10, 0), "bf16", False),  # B200
        ((12, 0), "bf16", False),  # RTX 5090
    ],
)
def test_precision_and_attention_follow_the_architecture(
    capability: tuple[int, int], precision: str, cudnn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", trusted.append)
    assert best_precision(select_device("cuda")) == precision
    assert trusted == [cudnn]


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32),
     ("tf32", torch.float32)],
)  # fmt: skip
def test_products_are_in_the_precision_that_was_asked_for(
    precision: str, dtype: torch.dtype
) -> None:
    with autocast(torch.device("cpu"), precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_a_cpu_is_left_as_it_is() -> None:
    before = torch.get_float32_matmul_precision()
    allow_tf32("tf32", torch.device("cpu"))
    assert torch.get_float32_matmul_precision() == before
    assert best_precision(torch.device("cpu")) in ("bf16", "fp32")


def test_apples_gpu_is_for_one_process_that_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert select_device("mps").type == "mps"
    assert select_device("auto").type == "cpu"  # it was never run
    with pytest.raises(ConfigError, match="no MPS device; try"):
        select_device("mps", local_rank=0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no MPS device; try"):
        select_device("mps")


@pytest.mark.parametrize(
    ("name", "built", "told"),
    [
        ("cuda", "13.0", "it is built for CUDA 13.0, and finds no GPU or driver (does nvidia-smi "),
        ("gpu", "13.0", "no CUDA device: it is built for CUDA 13.0"),
        ("cuda", None, "is built for the CPU alone"),
    ],
)
def test_a_missing_gpu_is_explained(name, built, told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    with pytest.raises(ConfigError) as raised:
        select_device(name, key="trainer.device")
    assert told in str(raised.value)
    assert str(raised.value).endswith("; try trainer.device=cpu")
