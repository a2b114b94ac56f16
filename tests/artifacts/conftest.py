"""Run folders to compare."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_folders import Make

from vit.artifacts.run_dir import RunDir


@pytest.fixture
def make(finished: Path, tmp_path: Path) -> Make:
    """A function that leaves a run folder like those of real runs, with some settings changed."""
    plain = yaml.safe_load((finished / "config.yaml").read_text())
    summary = json.loads((finished / "summary.json").read_text())

    def one(
        name: str, top1: float | None = 50.0, state: str = "finished", **changes: Any
    ) -> RunDir:
        folder = RunDir(tmp_path / "runs" / name)
        folder.checkpoints.mkdir(parents=True)
        config = json.loads(json.dumps({**plain, "name": name}))
        for key, value in changes.items():
            section, _, last = key.rpartition("__")
            (config[section] if section else config)[last] = value
        folder.write_config(yaml.safe_dump(config, sort_keys=False))
        folder.write_summary({**summary, "state": state, "val_top1": top1, "step": 40})
        shutil.copy(finished / "metrics.jsonl", folder.metrics)
        shutil.copy(finished / "images.json.gz", folder.images)
        return folder

    return one
