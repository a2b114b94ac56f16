"""A real browser for the pages that commands write."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)  # fmt: skip
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def driven(page: str, script: str, folder: Path, width: int = 390) -> dict[str, Any]:
    """What a script finds that clicks through a page, which writes nothing to the console.

    Args:
        page: HTML.
        script: added at its end; puts what it finds into `document.body.dataset.found`, as JSON.
        folder: for files of the browser.
        width: of the window in pixels.
    """
    assert CHROMIUM is not None
    file = folder / "driven.html"
    file.write_bytes((page + script).encode("utf-8", "replace"))
    for attempt in range(3):  # on a busy machine its clock may run out before the images are there
        done = _dump(file, folder / f"browser{attempt}", width)
        found = re.findall(r'<body[^>]* data-found="([^"]*)"', done.stdout)
        if found:
            break
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line], done.stderr
    answer: dict[str, Any] = json.loads(unescape(found[0]))
    return answer


def _dump(file: Path, profile: Path, width: int) -> subprocess.CompletedProcess[str]:
    """The page after its scripts have run, as HTML, and what the browser logged."""
    return subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={profile}", "--hide-scrollbars",
            f"--window-size={width},900", "--enable-logging=stderr", "--v=0",
            "--virtual-time-budget=20000", "--dump-dom", file.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
