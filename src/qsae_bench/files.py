"""Write files whole or not at all, hash them, evict old ones, and lock what processes of a machine
share."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from qsae_bench.errors import first_line

SHA256 = re.compile("[0-9a-f]{64}")
"""matches what :func:`sha256_of` returns"""

ABANDONED_SECONDS = 86_400.0
"""after which an unfinished file can only be a killed process's"""


@contextlib.contextmanager
def os_errors() -> Iterator[None]:
    """Turn safetensors' own exception into an OSError, so that a full disk looks the same everywhere."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        first = first_line(error, "can't be written")
        number = errno.ENOSPC if "No space left" in first else errno.EIO
        raise OSError(number, first) from None


def put(path: Path, content: bytes) -> None:
    """Replace a file: a reader finds the old content or the new one, even after a power cut or an error."""
    part = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with part.open("xb") as file:
            file.write(content)
        put_file(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def put_file(part: Path, path: Path) -> None:
    """Rename a finished file into its place, see :func:`put`. Both paths are on one file system."""
    _flush_to_disk(part)
    os.replace(part, path)
    _flush_to_disk(path.parent)


def _flush_to_disk(path: Path) -> None:
    """Call fsync: otherwise the rename may survive a power cut while the content does not."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def evict_least_recently_used(
    entries: Iterable[Path], limit_bytes: int, is_protected: Callable[[Path, float], bool]
) -> None:
    """Remove the least recently used files or folders until the others fit into ``limit_bytes``.

    An entry's time of change is that of its last use. Other processes may remove entries meanwhile.
    ``is_protected(path, used)`` keeps one whatever the limit.
    """
    found = []
    for path in entries:
        with contextlib.suppress(OSError):
            about = path.stat()
            size = sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else about.st_size
            found.append((is_protected(path, about.st_mtime), about.st_mtime, path, size))
    total = 0
    for protected, _, path, size in sorted(found, reverse=True):
        total += size
        if total > limit_bytes and not protected:
            _remove(path)


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left in a folder: names with a leading dot, unchanged for a day."""
    for path in folder.glob(".*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Let processes and threads of this user that name the same work run the body one after another.

    The lock of a process that dies is free again. Where no lock can be taken they run at the same time,
    which costs time and does no harm.
    """
    from filelock import FileLock

    digest = hashlib.sha256(name.encode()).hexdigest()[:24]
    place = Path(tempfile.gettempdir(), f"qsae-bench-{os.getuid()}-{digest}.lock")
    # no soft lock where the file system has no flock: a crash would leave it locked for good
    lock = FileLock(place, mode=0o600, fallback_to_soft=False)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, NotImplementedError):
            stack.enter_context(lock)
        yield
