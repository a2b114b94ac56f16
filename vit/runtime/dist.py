"""Which process this is. The only place that may use torch.distributed."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vit.config.errors import ConfigError


@dataclass(frozen=True)
class World:
    """One process among `size`; `rank` counts from 0."""

    rank: int = 0
    size: int = 1


def world() -> World:
    """The world that this process belongs to.

    Raises:
        ConfigError: started by torchrun with several processes, which is not supported yet.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1:
        raise ConfigError(
            f"WORLD_SIZE={size}: training on several processes is not supported yet; "
            f"start a single process"
        )
    return World()
