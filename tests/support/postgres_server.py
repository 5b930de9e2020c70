"""A PostgreSQL server of the test's own: Debian's binaries, a temporary folder, gone afterwards."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PASSWORD = "pass:wörd/@ 1"
USER = "tester"


def missing() -> str:
    """Why there can be no server here, or ''."""
    if _binaries() is None:
        return "needs PostgreSQL's server: apt-get install postgresql"
    if os.geteuid() == 0 and (_account() is None or shutil.which("setpriv") is None):
        return "PostgreSQL refuses to run as root, and there is no user postgres or no setpriv"
    return ""


def _binaries() -> Path | None:
    on_path = shutil.which("initdb")
    known = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[4]))
    return Path(on_path).parent if on_path else known[-1].parent if known else None


def _account() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return None


@dataclass(frozen=True)
class Server:
    folder: Path
    port: int

    def url(self, database: str) -> str:
        """By its socket, trusted."""
        return f"postgresql://{USER}@/{database}?host={self.folder}&port={self.port}"

    def with_password(self, database: str, quoted: str) -> str:
        """By TCP, with a password."""
        return f"postgresql://{USER}:{quoted}@127.0.0.1:{self.port}/{database}"

    def run(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """Start a server on a free port of the loopback and a socket in its folder; stop it at the end."""
    binaries = _binaries()
    assert binaries is not None
    folder = Path(tempfile.mkdtemp(prefix="qsae-postgres-"))
    as_user: list[str] = []
    try:
        (folder / "password").write_text(PASSWORD)
        if os.geteuid() == 0:
            account = _account()
            assert account is not None
            ids = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
            as_user = ["setpriv", *ids]
            for path in (folder, folder / "password"):
                os.chown(path, account.pw_uid, account.pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        data = folder / "data"

        def call(name: str, *arguments: object) -> None:
            command = [*as_user, str(binaries / name), *map(str, arguments)]
            done = subprocess.run(
                command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr

        call(
            "initdb", "--pgdata", data, "--username", USER, "--pwfile", folder / "password", "--no-sync",
            "--encoding", "UTF8", "--auth-local", "trust", "--auth-host", "scram-sha-256",
        )  # fmt: skip
        options = f"-k {folder} -p {port} -c listen_addresses=127.0.0.1 -c fsync=off"
        log = folder / "log"
        call("pg_ctl", "--pgdata", data, "--wait", "--options", options, "--log", log, "start")
        try:
            yield Server(folder, port)
        finally:
            call("pg_ctl", "--pgdata", data, "--wait", "--mode", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
