"""Read and write files below a URL through fsspec, with each failure in one line and no password in it."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from qsae_bench.errors import QsaeError, plain
from qsae_bench.redaction import mask_argument, mask_passwords

PASSWORD = re.compile(r"[a-zA-Z][\w+.-]*://[^:]*:(.*)@", re.DOTALL)
"""all from the first colon to the last @, as :func:`qsae_bench.redaction.mask_argument` has it"""

MAX_REASON_CHARACTERS = 300
"""of a library's message: some repeat everything they were called with"""

MIN_SECRET_CHARACTERS = 3
"""of a part of a password to hide; a shorter one could be a part of any word"""


class MissingFile(QsaeError):
    """Report that there is no such file."""


class RemoteFiles:
    """Reach the files below a URL by their names relative to it, with ``/`` between folders.

    Each method raises:
        QsaeError: the place can't be reached, or does not allow it; the message says why.
    """

    def __init__(self, url: str) -> None:
        self.shown = mask_argument(url).rstrip("/")
        """the URL for messages"""
        found = PASSWORD.match(url)
        self._secrets = _parts_to_hide(found[1]) if found else []
        self._url = url

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return name -> bytes of all files below a folder; none where there is no folder."""
        system, root = self._file_system
        with self._explained("read"):
            system.invalidate_cache()  # others write there: no listing may be an old one
            try:
                found = system.find(f"{root}/{folder}".rstrip("/"), detail=True)
            except FileNotFoundError:
                return {}
            return {
                name.removeprefix(root).lstrip("/"): int(about.get("size") or 0)
                for name, about in found.items()
            }

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes; None where there is no such file."""
        system, root = self._file_system
        with self._explained("read"):
            system.invalidate_cache()
            try:
                return int(system.info(f"{root}/{name}")["size"])
            except FileNotFoundError:
                return None

    def content(self, name: str) -> bytes | None:
        """Return the content of a small file; None where there is none."""
        system, root = self._file_system
        with self._explained("read"):
            try:
                return bytes(system.cat_file(f"{root}/{name}"))
            except FileNotFoundError:
                return None

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file to a local path; raises MissingFile if there is none."""
        system, root = self._file_system
        with self._explained("read"):
            try:
                system.get_file(f"{root}/{name}", str(path))
            except FileNotFoundError:
                raise MissingFile(f"{self.shown}/{name}: missing") from None

    def put(self, path: Path, name: str) -> None:
        """Copy a local file there, replacing what has this name."""
        system, root = self._file_system
        with self._explained("written"):
            # of fsspec's functions for writing only this one makes folders where a system has folders
            system.put_file(str(path), f"{root}/{name}")

    def put_content(self, content: bytes, name: str) -> None:
        """Put a small file there in one piece."""
        with self._explained("written"), tempfile.TemporaryDirectory(prefix="qsae-") as folder:
            path = Path(folder) / "content"
            path.write_bytes(content)
            self.put(path, name)

    def remove(self, names: Iterable[str]) -> None:
        """Remove those of these files that exist."""
        system, root = self._file_system
        with self._explained("written"):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    system.rm_file(f"{root}/{name}")

    @cached_property
    def _file_system(self) -> tuple[Any, str]:
        """fsspec's file system and the root in it, made on first use: it starts threads, which no fork
        survives"""
        from fsspec.core import url_to_fs

        with self._explained("reached"):
            system, root = url_to_fs(self._url)
            return system, root.rstrip("/")

    @contextlib.contextmanager
    def _explained(self, attempt: str) -> Iterator[None]:
        """Turn any exception into a QsaeError: each of fsspec's file systems and libraries has its own."""
        try:
            yield
        except QsaeError:
            raise
        except Exception as error:
            raise QsaeError(
                f"reference store {self.shown}: can't be {attempt}: {self._reason(error)}; "
                "check the address, its credentials and the network, or leave --reference-store out"
            ) from None

    def _reason(self, error: Exception) -> str:
        message = plain(str(error)) or "no message"
        for secret in self._secrets:
            message = message.replace(secret, "***")
        return f"{type(error).__name__}: {mask_passwords(message)[:MAX_REASON_CHARACTERS]}"


def _parts_to_hide(password: str) -> list[str]:
    """Return the parts of a password that a message may repeat, the longest first.

    A library may take a part of it for the host or for the port.
    """
    parts = [part for part in re.split(r"[/?#@:]", password) if len(part) >= MIN_SECRET_CHARACTERS]
    return sorted({password, unquote(password), *parts} - {""}, key=len, reverse=True)
