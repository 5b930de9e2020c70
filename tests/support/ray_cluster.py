"""Two Ray nodes of one CPU each on this machine, for as long as a test needs them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import killing

RAY = Path(sys.executable).with_name("ray")
START_SECONDS = 120.0


class Cluster:
    """``environment`` is for the driver: RAY_ADDRESS is there."""

    def __init__(self, folder: Path, markers: Path, kinds: tuple[str, str] | None = None) -> None:
        """``kinds``: of the one GPU that each node says that it has."""
        self.folder = folder
        self._gcs, self.client = free_port(), free_port()
        self.address = f"127.0.0.1:{self._gcs}"
        self.environment = {
            "RAY_ADDRESS": self.address, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
            # half a minute otherwise, for a process that imports Ray beside other tests
            "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "180",
            # a token that another cluster left in the home folder would be asked for by some nodes only
            "RAY_AUTH_MODE": "disabled",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(killing.FAULTS), os.environ.get("PYTHONPATH")))), "QSAE_MARKERS": str(markers), "QSAE_HANG_SECONDS": "0",
        }  # fmt: skip
        # a temporary folder whose path is short: sockets lie in it
        self._temporary = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
        self.nodes: list[subprocess.Popen[bytes]] = []
        self._of_node = [_gpu(kind) for kind in kinds] if kinds else [(), ()]

    def start(self) -> None:
        self.nodes.append(
            self._start(
                *self._of_node[0], "--head", f"--port={self._gcs}", f"--ray-client-server-port={self.client}", "--include-dashboard=false",
                f"--temp-dir={self._temporary.name}",
            )
        )  # fmt: skip
        self._wait(1)
        self.nodes.append(self._start(*self._of_node[1], f"--address={self.address}"))
        self._wait(2)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"node{len(os.listdir(self.folder))}.log").open("wb")
        command = [str(RAY), "start", "--block", "--num-cpus=1", "--disable-usage-stats", *arguments]
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        ours = {k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"}
        return subprocess.Popen(
            command,
            env=environment | ours,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def _wait(self, nodes: int) -> None:
        """Until the cluster counts so many nodes: ``ray start`` says that one runs before it can be used."""
        from ray._raylet import GcsClient

        until = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(Exception):  # the head does not answer yet
                if len(GcsClient(address=self.address).get_all_node_info(timeout=5)) == nodes:
                    return
            assert all(node.poll() is None for node in self.nodes), self.said()
            assert time.monotonic() < until, self.said()
            time.sleep(0.5)

    def said(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def raylets(self, node: subprocess.Popen[bytes]) -> list[int]:
        return [pid for pid in members(node.pid) if "raylet/raylet" in command_of(pid)]

    def stop(self) -> None:
        for node in reversed(self.nodes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGTERM)
        for node in self.nodes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(10)
            for pid in members(node.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            node.wait()
        self._temporary.cleanup()


@contextlib.contextmanager
def cluster(folder: Path, markers: Path, kinds: tuple[str, str] | None = None) -> Iterator[Cluster]:
    folder.mkdir()
    found = Cluster(folder, markers, kinds)
    try:
        found.start()
        yield found
    finally:
        found.stop()


def _gpu(kind: str) -> tuple[str, ...]:
    return ("--num-gpus=1", "--resources=" + json.dumps({f"accelerator_type:{kind}": 1}))


def free_port() -> int:
    """Above those that Ray gives to its workers."""
    while True:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        if port > 20000:
            return port


def members(session: int) -> list[int]:
    """Processes of a session: they keep it whatever their group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(path.parent.name))
    return found


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""
