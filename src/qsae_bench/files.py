"""Writing files: all or nothing, and one kind of error."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def os_errors() -> Iterator[None]:
    """safetensors has an exception of its own for a full disk: here it is an OSError like others."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        first = (str(error).strip() or "can't be written").splitlines()[0]
        number = errno.ENOSPC if "No space left" in first else errno.EIO
        raise OSError(number, first) from None


def put(path: Path, content: bytes) -> None:
    """Put a whole file in its place: a reader finds the old one or the new one, after a power cut too.

    Raises:
        OSError: it can't be written; what was there before is untouched.
    """
    part = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with part.open("xb") as file:
            file.write(content)
        put_file(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def put_file(part: Path, path: Path) -> None:
    """Put a file that is written into its place, see :func:`put`. Both lie on one file system.

    Raises:
        OSError: it can't.
    """
    _sync(part)
    os.replace(part, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Onto the disk: without it a rename can outlive a power cut that its file's content does not."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Let processes of this user on this machine do the body one after another.

    What dies lets go of it. Where no lock can be had they do it at once: that costs time, and nothing else.
    """
    digest = hashlib.sha256(name.encode()).hexdigest()[:24]
    place = Path(tempfile.gettempdir(), f"qsae-bench-{os.getuid()}-{digest}.lock")
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            handle = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
