"""The console: which commit it names."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vit.runtime import console


def test_the_commit_of_another_project_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "theirs"], check=True)
    file = Path("vit", "runtime", "console.py")
    monkeypatch.setattr(console, "__file__", str(tmp_path / "site-packages" / file))
    assert console.commit() == ""
    monkeypatch.setattr(console, "__file__", str(tmp_path / file))
    assert len(console.commit()) >= 7
