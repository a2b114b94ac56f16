"""Train on two hosts, kill a process of one of them, and compare with an unbroken run.

    sudo python scripts/two_hosts.py

The hosts are two network namespaces of this machine with addresses of their own, joined by a
virtual cable; torchrun in each of them meets the other through a c10d rendezvous. Exits 0 only when
weights, average, optimiser, counters and metrics.jsonl are equal to the bit. Needs root, iproute2.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from kill_resume import differences

from vit.artifacts.run_dir import RunDir

# names of this process alone: a script that is killed leaves its hosts behind
FIRST, SECOND = (f"vit-{os.getpid()}-{letter}" for letter in "ab")
HOSTS = {FIRST: "10.77.0.1", SECOND: "10.77.0.2"}
PORT = 29417
SETTINGS = [
    "trainer.epochs=12", "trainer.precision=fp32", "trainer.log_every=5", "trainer.save_every=10",
    "trainer.ema=1", "model.depth=2", "model.dropout=0.1", "augment=strong", "resume=auto",
]  # fmt: skip


def main() -> int:
    """Run both; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    folder = parser.parse_args().folder or Path(tempfile.mkdtemp(prefix="two-hosts-"))
    whole, broken = RunDir(folder / "unbroken"), RunDir(folder / "killed")
    with two_hosts():
        if wait(start(whole)) != 0:
            print("FAILED: the unbroken run did not end by itself")
            return 1
        agents = start(broken)
        victim = kill_one(broken)
        if wait(agents) != 0:
            print("FAILED: the killed run did not end by itself")
            return 1
    different = differences(whole, broken)
    for line in different:
        print(f"DIFFERENT: {line}")
    if not different:
        print(f"process {victim} of the second host killed: equal to the bit ({folder})")
    return int(bool(different))


@contextlib.contextmanager
def two_hosts() -> Iterator[None]:
    """Two namespaces with a cable between them."""
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        ip("link", "add", "cable", "netns", FIRST, "type", "veth", "peer", "name", "cable",
           "netns", SECOND)  # fmt: skip
        for host, address in HOSTS.items():
            ip("-n", host, "addr", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", host, "link", "set", device, "up")
        yield
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", host], check=False, stderr=subprocess.DEVNULL)


def ip(*args: str) -> None:
    """Call `ip`; raises CalledProcessError where that is not allowed."""
    subprocess.run(["ip", *args], check=True, stderr=subprocess.DEVNULL)


def start(run: RunDir) -> list[subprocess.Popen[bytes]]:
    """torchrun with one process on each host."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }  # fmt: skip
    return [
        subprocess.Popen(
            ["ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run",
             "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3",
             "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{HOSTS[FIRST]}:{PORT}",
             "--rdzv-id", run.path.name, "--local-addr", address,
             "--rdzv-conf", f"is_host={int(host == FIRST)}",
             "-m", "vit.cli.train", f"outputs={run.path.parent}", f"name={run.path.name}",
             *SETTINGS],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
        )
        for host, address in HOSTS.items()
    ]  # fmt: skip


def kill_one(run: RunDir) -> int:
    """SIGKILL the training process of the second host after a checkpoint; returns its number."""
    while not run.step_files():
        time.sleep(0.05)
    time.sleep(random.uniform(0, 1))
    listed = subprocess.run(
        ["ip", "netns", "pids", SECOND], capture_output=True, text=True, check=True
    )
    for number in map(int, listed.stdout.split()):
        command = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
        if b"vit.cli.train" in command and b"torch.distributed.run" not in command:
            os.kill(number, signal.SIGKILL)
            return number
    raise SystemExit("FAILED: no training process on the second host")


def wait(agents: list[subprocess.Popen[bytes]]) -> int:
    """The worst exit code of both hosts."""
    return max(abs(agent.wait()) for agent in agents)


if __name__ == "__main__":
    sys.exit(main())
