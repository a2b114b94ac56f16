"""Randomness as a pure function of (seed, stream, index): nothing to save, nothing to restore."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive(seed: int, stream: str, *index: int) -> int:
    """A 63-bit seed for one use, e.g. `derive(0, "augment", step)`; `stream` is a plain word."""
    text = ":".join([str(seed), stream, *map(str, index)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def numpy_generator(seed: int, stream: str, *index: int) -> np.random.Generator:
    """A fresh generator for `derive(seed, stream, *index)`."""
    return np.random.Generator(np.random.PCG64(derive(seed, stream, *index)))


def reseed(seed: int, stream: str, *index: int) -> None:
    """Seed torch's global generators, which initialisation, dropout and drop-path draw from."""
    drawn = derive(seed, stream, *index)
    # Not torch.manual_seed, which keeps a stack trace a call for each kind of device not there.
    torch.default_generator.manual_seed(drawn)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(drawn)
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(drawn)
