"""What several test modules share: small runs that already happened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commands import SMALL, WARM, run

# One thread, before torch is imported: two busy processes on two cores slow each other down a lot.
os.environ.setdefault("OMP_NUM_THREADS", "1")


STARTERS = {"run", "start", "subprocess", "multiprocessing", "together", "forked", "WorkerPool"}
"""Names by which a module of tests has what starts processes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts processes is slow."""
    for item in items:
        assert isinstance(item, pytest.Function)
        starts = STARTERS & vars(item.module).keys()
        if starts or {"finished", "evaluated"} & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)


def pytest_sessionfinish() -> None:
    """End the process that commands are children of."""
    WARM.close()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that ended by itself: `<folder>/outputs/done`."""
    folder = tmp_path_factory.mktemp("finished")
    done = run("train", *SMALL, "trainer.epochs=3", "name=done", "trainer.ema=1", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "outputs" / "done"


@pytest.fixture(scope="session")
def evaluated(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation of `finished`."""
    folder = tmp_path_factory.mktemp("report")
    done = run("eval", f"checkpoint={finished}", f"output={folder}", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert str(folder / "report" / "index.html") in done.stdout
    return folder
