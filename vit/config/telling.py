"""The settings that tell a run from others, as TensorBoard's HParams show them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from vit.config.schema import RunConfig
from vit.config.validate import flatten, to_plain
from vit.config.yaml_files import config_dir, load_yaml

_TELLING = {
    "data.name", "model.name", "augment.name", "optim.name", "schedule.name", "optim.lr",
    "optim.weight_decay", "trainer.epochs", "trainer.batch_size",
}  # fmt: skip
_PLACES = {"data.root", "data.workers", "data.cache_dir", "data.memory"}


def telling(config: RunConfig, user_keys: Collection[str] = ()) -> dict[str, Any]:
    """The settings that tell a run from others, flat: what the user gave, what was chosen by name,
    a few numbers, and whatever is not as the YAML files of what was chosen have it.
    """
    found: dict[str, Any] = {"seed": config.seed}
    for section, values in to_plain(config).items():
        if not isinstance(values, dict):
            continue
        usual: dict[str, Any] = {}
        for name in ("_base", "default", values.get("name")):
            file = config_dir() / section / f"{name}.yaml"
            if file.is_file():
                usual |= load_yaml(file.read_text(encoding="utf-8"), str(file))
        before = flatten({section: usual})
        for key, value in flatten({section: values}).items():
            differs = key not in _PLACES and value != before.get(key)
            if differs or key in _TELLING or key in user_keys:
                found[key] = value
    return found
