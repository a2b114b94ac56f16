"""Workers that hang, are killed, or whose parent is killed: told by file, and gone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from commands import SMALL
from pictures import noise, save
from streamed import BATCH, SIZE, draw, in_order

from vit.data.reading import workers
from vit.data.reading.workers import WorkerPool
from vit.data.types import Samples
from vit.errors import DataError


@pytest.fixture
def stuck(tmp_path: Path) -> Samples:
    """Images of which reading one never ends: a pipe that nobody writes to."""
    samples = draw(tmp_path, [SIZE])
    (tmp_path / "b" / "05.png").unlink()
    os.mkfifo(tmp_path / "b" / "05.png")
    return samples


def mended(samples: Samples) -> None:
    path = Path(samples.images.path(25))
    path.unlink()
    save(path, noise(SIZE[1], SIZE[0]))


def warm(pool: WorkerPool, samples: Samples) -> None:
    """Start all workers, so that the timeouts of a test count no start."""
    pool.timeout, timeout = 120, pool.timeout
    in_order(samples, pool).batch(5)
    pool.timeout = timeout


def test_a_worker_that_hangs_is_told_by_the_file(stuck):
    pool = WorkerPool(2, timeout=2)
    warm(pool, stuck)
    load = in_order(stuck, pool)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"said nothing for 2 s.*b/05\.png.*data\.timeout"):
        list(map(load.batch, range(6)))
    assert time.monotonic() - start < 30
    mended(stuck)
    pool.timeout = 120
    again = in_order(stuck, pool)  # with new workers
    assert [len(again.batch(k)[1]) for k in range(6)] == [BATCH] * 6
    pool.stop()


def test_a_worker_that_is_killed_is_told_by_the_file(stuck):
    pool = WorkerPool(2, timeout=120)
    warm(pool, stuck)
    load = in_order(stuck, pool)
    victims = list(pool._pool._processes.values())
    threading.Timer(2, lambda: [os.kill(v.pid, signal.SIGKILL) for v in victims]).start()
    with pytest.raises(DataError, match=r"was killed.*b/05\.png.*data\.workers"):
        list(map(load.batch, range(6)))
    assert not any(victim.is_alive() for victim in victims)
    mended(stuck)
    again = in_order(stuck, pool)
    assert [len(again.batch(k)[1]) for k in range(6)] == [BATCH] * 6
    pool.stop()


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from pictures import reader
from streamed import SIZE, in_order, listed
from vit.data.reading.workers import WorkerPool

if __name__ == "__main__":
    pool = WorkerPool(2, 120)
    load = in_order(listed(Path({root!r})), pool)
    load.batch(0)
    pids = [str(process.pid) for process in pool._pool._processes.values()]
    print(load.store._memory.name, *pids, flush=True)
    time.sleep(600)
"""


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie that nobody asked after."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_no_worker_and_no_memory_outlives_a_killed_parent(tmp_path):
    photos = draw(tmp_path / "photos", [SIZE])
    script = tmp_path / "script.py"
    tests = str(Path(__file__).parents[2] / "helpers")
    script.write_text(SCRIPT.format(tests=tests, root=photos.images.root))
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    name, *pids = parent.stdout.readline().split()
    memory = Path("/dev/shm") / name
    assert len(pids) == 2
    assert all(is_running(int(pid)) for pid in pids)
    assert memory.exists()
    parent.kill()
    parent.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while any(is_running(int(pid)) for pid in pids) or memory.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def bit_lengths(numbers: list[int]) -> list[int]:
    pool = WorkerPool(1, 60.0)
    try:
        return list(pool.map(int.bit_length, numbers))
    finally:
        pool.stop()


def test_workers_start_in_a_job_of_joblib():
    """As those of a sweep with hydra/launcher=joblib."""
    from joblib import Parallel, delayed

    jobs = Parallel(n_jobs=2, backend="loky")(delayed(bit_lengths)([1, 2, 4]) for _ in range(2))
    assert jobs == [[1, 2, 3]] * 2


def test_a_process_that_starts_workers_and_is_stopped_is_waited_for_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = draw(tmp_path, [SIZE])
    pool = WorkerPool(2, timeout=120)
    in_order(samples, pool).batch(0)
    pool.stop()
    (maker,) = makers(os.getsid(0), os.getpid())
    os.kill(int(maker.name), signal.SIGSTOP)
    monkeypatch.setattr(workers, "_STARTING", 2.0)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"starts data workers said nothing for 2 s; .*workers=0"):
        in_order(samples, pool).batch(0)
    assert time.monotonic() - start < 30
    monkeypatch.setattr(workers, "_STARTING", 120.0)
    assert len(in_order(samples, pool).batch(0)[1]) == BATCH  # by another one
    pool.stop()


@pytest.mark.parametrize("moment", ["makes workers", "imports torch"])
@pytest.mark.parametrize("cache", ["none", "jpeg"])
def test_an_early_interrupt_is_the_main_processs_alone(
    tmp_path: Path, cache: str, moment: str
) -> None:
    """Ctrl-C, which goes to the whole group, while the process that makes workers imports."""
    for i in range(40):
        save(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png", noise(20, 20, seed=i))
    args = [*SMALL, "data=folder", f"data.root={tmp_path / 'photos'}", "data.memory=stream"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vit.cli.train", *args, "data.workers=2", "trainer.batch_size=8",
         f"data.cache={cache}", "data.cache_dir=cache", "data.image_size=16"],
        cwd=tmp_path, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    maps = Path(f"/proc/{process.pid}/maps")
    while not (
        makers(process.pid) if moment == "makes workers" else "libtorch" in maps.read_text()
    ):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("vit-train: ")


def makers(session: int, parent: int | None = None) -> list[Path]:
    """The processes of a session, or of a process in it, that others are forked from."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_one = b"multiprocessing.forkserver" in (place / "cmdline").read_bytes()
            of_parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            is_one &= os.getsid(int(place.name)) == session
            if is_one and parent in (None, of_parent):
                found.append(place)
    return found
