"""Fixtures of what lists folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from vit.data.sources import scan as scan_module


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test, from the first file on."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(scan_module, "CACHE_FROM", 1)
    return folder


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are read, as they are."""
    names: list[str] = []
    read = scan_module.list_folder

    def spy(path: Path, *modified: int) -> scan_module.Folder:
        names.append(str(path))
        return read(path, *modified)

    monkeypatch.setattr(scan_module, "list_folder", spy)
    return names
