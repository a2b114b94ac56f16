"""What `vit-train` shows on a terminal."""

from __future__ import annotations

import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path

from commands import SMALL, lines

COLUMNS = 100


def on_terminal(*args: str, cwd: Path) -> list[str]:
    """What a command shows on a terminal of 100 columns: lines, and the bar's frames."""
    screen, its_end = pty.openpty()
    ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "vit.cli.train", *args]
    child = subprocess.Popen(command, cwd=cwd, stdin=its_end, stdout=its_end, stderr=its_end)
    os.close(its_end)
    seen = b""
    while chunk := _read(screen):
        seen += chunk
    os.close(screen)
    assert child.wait() == 0, seen
    return [text.rstrip() for text in re.split(r"[\r\n]+", seen.decode()) if text.strip()]


def _read(screen: int) -> bytes:
    try:
        return os.read(screen, 1 << 16)
    except OSError:  # what Linux says of a terminal whose child has ended
        return b""


def test_a_bar_shows_the_whole_run_and_never_more(tmp_path: Path) -> None:
    args = [*SMALL, "trainer.epochs=40", "name=r"]
    folder = tmp_path / "outputs" / "r"
    first = on_terminal(*args, cwd=tmp_path)
    again = on_terminal("resume=outputs/r", "trainer.epochs=50", cwd=tmp_path)
    for seen, least in ((first, 0), (again, 80)):
        assert max(map(len, seen)) <= COLUMNS
        shares = [int(found[1]) for text in seen if (found := re.search(r"\| +(\d+) %", text))]
        assert shares == sorted(shares)
        assert (shares[0], shares[-1]) == (least, 100)
    assert any(re.search(r"%, \d:\d\d left, [\d,]+ img/s, loss \d\.\d{3}", text) for text in first)
    assert len([text for text in first if text.startswith("time ")]) == 1
    told = (folder / "train.log").read_text().splitlines()
    epochs = [line for line in told if line.startswith("epoch ")]
    assert len(epochs) == 50
    validations = [line for line in lines(folder / "metrics.jsonl") if line["event"] == "val"]
    best = max(validations, key=lambda line: (line["top1"], -line["loss"]))
    shown = [text for text in first + again if text in epochs]
    assert epochs[39] in shown
    assert epochs[49] in shown
    assert [line for line in epochs if "*" in line][-1] in shown
    assert f"val {best['top1']:5.2f} *" in [line for line in epochs if "*" in line][-1]
    assert "resumed  at step 790" in told
    assert len([line for line in told if line.startswith("plan ")]) == 2
    assert len([line for line in told if "vit-eval outputs" in line]) == 2
