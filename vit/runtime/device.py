"""The device: which one, what it can do, and how fast it multiplies matrices."""

from __future__ import annotations

import contextlib
import os
import time
from contextlib import AbstractContextManager

import torch

from vit.errors import ConfigError


def select_device(name: str, local_rank: int | None = None) -> torch.device:
    """`auto` takes the GPU where there is one.

    Args:
        name: `auto`, `cpu` or `cuda`.
        local_rank: number of the GPU, where several processes share the machine.

    Raises:
        ConfigError: `cuda` was asked for and there is none.
    """
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise ConfigError(
            "trainer.device=cuda, but torch sees no CUDA device; try trainer.device=cpu"
        )
    if not has_cuda or name == "cpu":
        return torch.device("cpu")
    return torch.device("cuda") if local_rank is None else torch.device("cuda", local_rank)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the processor itself multiplies bfloat16 matrices (some emulate it, slowly)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def describe(device: torch.device) -> str:
    """The device's name, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(torch.cpu.get_capabilities().get("cpu_name") or "CPU")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Matrix products in bf16 when `precision` is bf16; weights stay fp32."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def make_deterministic() -> None:
    """Only kernels that give the same bits every time; what has none raises."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, precision: str) -> float:
    """Floating-point operations per second of large matrix products here and now, measured.

    The best of a few products: the ceiling that model FLOPs utilisation (MFU) is a share of.
    """
    size = 4096 if device.type == "cuda" else 768
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        synchronize(device)
        start = time.perf_counter()
        a @ a
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def fingerprint(device: torch.device, processes: int) -> dict[str, str | int]:
    """What the bits of a result depend on besides the config: compared on resume."""
    return {
        "processes": processes,
        "device": describe(device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
