"""The device: which one, what it can do, and how fast it multiplies matrices."""

from __future__ import annotations

import contextlib
import os
import timeit
from contextlib import AbstractContextManager
from typing import Literal

import torch

from vit.errors import ConfigError

Native = Literal["bf16", "fp16", "fp32"]
_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def select_device(name: str, local_rank: int | None = None, key: str = "device") -> torch.device:
    """`auto` takes a CUDA GPU where there is one; Apple's, for one process alone, is asked for.

    Args:
        name: `auto`, `cpu`, `cuda` (also called `gpu`) or `mps`.
        local_rank: number of the GPU, where several processes share the machine.
        key: the setting that asks.

    Raises:
        ConfigError: a GPU was asked for and there is none of its kind.
    """
    name = "cuda" if name == "gpu" else name
    has_mps = local_rank is None and torch.backends.mps.is_available()
    there = {"cpu": True, "mps": has_mps, "cuda": torch.cuda.is_available()}
    best = "cuda" if there["cuda"] else "cpu"
    if name != "auto" and not there[name]:
        raise ConfigError(
            f"{key}={name}, but torch sees no {name.upper()} device{_why(name)}; try {key}={best}"
        )
    if (kind := best if name == "auto" else name) != "cuda":
        return torch.device(kind)
    device = torch.device("cuda") if local_rank is None else torch.device("cuda", local_rank)
    # Not from Hopper on, where cuDNN's attention was seen to give gradients that are NaN
    # (https://github.com/pytorch/pytorch/issues/196678): flash attention takes its place.
    torch.backends.cuda.enable_cudnn_sdp(torch.cuda.get_device_capability(device) < (9, 0))
    return device


def _why(name: str) -> str:
    """What to look at where there should be a device."""
    if name != "cuda":
        return ""
    if torch.version.cuda is None and torch.version.hip is None:
        return f": torch {torch.__version__} is built for the CPU alone (pytorch.org has others)"
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    return f": it is built for {built}, and finds no GPU or driver (does nvidia-smi list one?)"


def best_precision(device: torch.device) -> Native:
    """What the processor itself multiplies matrices in, not by emulation: bf16, fp16 or fp32."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)  # T4: 7.5, A100: 8.0
        return "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "fp32"
    capabilities = torch.cpu.get_capabilities()
    has_bf16 = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bf16" if has_bf16 else "fp32"


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on Apple's GPUs, which have no wider one."""
    return torch.float32 if device.type == "mps" else torch.float64


def allow_tf32(precision: str, device: torch.device) -> None:
    """Let a GPU round the factors of fp32 products to 10 bits where `precision` is tf32."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def describe(device: torch.device) -> str:
    """The device's name, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple's GPU"
    return str(torch.cpu.get_capabilities().get("cpu_name") or "CPU")


def product_dtype(precision: str) -> torch.dtype:
    """What the factors of matrix products are rounded to."""
    return _HALVES.get(precision, torch.float32)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Matrix products in bf16 or fp16 where `precision` is that; weights stay fp32."""
    dtype = _HALVES.get(precision)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def make_deterministic() -> None:
    """Only kernels that give the same bits every time; what has none raises."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def matrix_rate(device: torch.device, precision: str) -> float:
    """Floating-point operations per second of large matrix products here and now, measured.

    The best of thirty products: the ceiling that model FLOPs utilisation (MFU) is a share of.
    """
    size = 4096 if device.type == "cuda" else 768
    a = torch.ones(size, size, device=device, dtype=product_dtype(precision))

    def multiply() -> None:
        a @ a
        synchronize(device)

    synchronize(device)
    return 2 * size**3 / min(timeit.repeat(multiply, repeat=30, number=1))


def fingerprint(device: torch.device, processes: int) -> dict[str, str | int]:
    """What the bits of a result depend on besides the config: compared on resume."""
    return {
        "processes": processes,
        "device": describe(device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
