"""The pages that commands write, parsed, and in a real browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Self

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)  # fmt: skip
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


class Page(HTMLParser):
    """Elements and texts of a page, and what its script reads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.text = text

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str, key: str) -> list[str]:
        """The values of an attribute of elements."""
        return [str(given[key]) for name, given in self.tags if name == tag and key in given]

    @cached_property
    def data(self) -> dict[str, Any]:
        """The JSON that the page holds for its script."""
        inside = self.text.split('<script type="application/json" id="data">')[1]
        found: dict[str, Any] = json.loads(inside.split("</script>")[0])
        return found


def driven(page: str, script: str, folder: Path, width: int = 390) -> Any:
    """What a script answers in a page that writes nothing to the console.

    Args:
        page: HTML.
        script: JavaScript, run when the page has been loaded; the body of an asynchronous function.
        folder: for files of the browser.
        width: of the window in pixels.
    """
    file = folder / "page.html"
    file.write_bytes(page.encode("utf-8", "replace"))
    with Chromium(folder / "browser") as browser:
        blank = browser.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.ask("Target.attachToTarget", targetId=blank, flatten=True)
        browser.session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            browser.ask(f"{domain}.enable")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.ask("Emulation.setDeviceMetricsOverride", **size)
        browser.ask("Page.navigate", url=file.as_uri())
        while "Page.loadEventFired" not in [event["method"] for event in browser.events]:
            browser.hear()
        call = f"(async () => {{{script}}})()"
        done = browser.ask(
            "Runtime.evaluate", expression=call, awaitPromise=True, returnByValue=True
        )
    said = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}
    assert not [event for event in browser.events if event["method"] in said]
    assert "exceptionDetails" not in done, done
    return done["result"]["value"]


class Chromium:
    """A headless browser, driven by the DevTools protocol over a pair of pipes.

    https://chromedevtools.github.io/devtools-protocol/
    """

    def __init__(self, profile: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self.session: dict[str, str] = {}
        self._asked = 0
        self._left = b""
        reads, self._out = os.pipe()
        self._in, writes = os.pipe()
        options = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={profile}", "--hide-scrollbars", "--remote-debugging-pipe",
        ]  # fmt: skip
        # it reads from descriptor 3 and writes to 4
        handed = [
            "bash",
            "-c",
            f'exec "$@" 3<&{reads} 4>&{writes}',
            "bash",
            str(CHROMIUM),
            *options,
        ]
        self._process = subprocess.Popen(
            handed, pass_fds=(reads, writes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(reads)
        os.close(writes)
        self._alarm = threading.Timer(120, self._process.kill)
        self._alarm.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._alarm.cancel()
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def ask(self, method: str, **params: object) -> dict[str, Any]:
        """The answer to a command; events that come first are kept."""
        self._asked += 1
        asked = {"id": self._asked, "method": method, "params": params, **self.session}
        os.write(self._out, json.dumps(asked).encode() + b"\0")
        while (heard := self.hear()).get("id") != self._asked:
            pass
        answer: dict[str, Any] = heard["result"]
        return answer

    def hear(self) -> dict[str, Any]:
        """The next message; events are kept."""
        while b"\0" not in self._left:
            more = os.read(self._in, 1 << 16)
            assert more, "the browser has ended, or did not answer for two minutes"
            self._left += more
        message, _, self._left = self._left.partition(b"\0")
        heard: dict[str, Any] = json.loads(message)
        if "method" in heard:
            self.events.append(heard)
        return heard
