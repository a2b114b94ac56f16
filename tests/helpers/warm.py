"""Commands as children of one warm process: it has imported what they import, and forks for each.

A command that starts from nothing spends five seconds on importing torch, a child of this one a
third of a second on its work. Run as a script it serves requests on its standard input, one in a
line; `Warm` is the other end.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

COMMANDS = ("train", "eval", "predict", "embed", "explain", "export", "data", "runs")


class Warm:
    """The warm process, started when it is first asked."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def run(self, command: str, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """`vit-<command>` to its end, in a process of its own."""
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, __file__], text=True, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            request = [command, list(args), str(cwd), dict(os.environ), str(out), str(err)]
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            code = int(self._server.stdout.readline())
            texts = [file.read_text(errors="surrogateescape") for file in (out, err)]
        return subprocess.CompletedProcess([f"vit-{command}", *args], code, *texts)

    def close(self) -> None:
        """End the warm process."""
        if self._server is not None:
            self._server.communicate()
            self._server = None


def serve() -> None:
    """Fork for each request, and answer with the exit code."""
    import hydra  # noqa: F401
    import timm  # noqa: F401
    import torch  # noqa: F401
    from torch.utils import tensorboard  # noqa: F401

    import vit.evaluation.evaluate
    import vit.export.export
    import vit.training.trainer  # noqa: F401

    for command in COMMANDS:
        __import__(f"vit.cli.{command}")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            become(*json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def become(
    command: str, args: list[str], cwd: str, env: dict[str, str], out: str, err: str
) -> None:
    """Be `python -m vit.cli.<command>`, and end."""
    os.environ.clear()
    os.environ.update({**env, "OMP_NUM_THREADS": "1"})
    os.chdir(cwd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.argv[1:] = args
    sys.modules.pop(f"vit.cli.{command}")  # else runpy warns of it
    code: object = 0
    try:
        runpy.run_module(f"vit.cli.{command}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    with contextlib.suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    serve()
