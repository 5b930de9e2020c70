"""Files below a URL, whatever fsspec reaches there, and each failure in one line without a password."""

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
"""all from the first colon to the last @, as :func:`qsae_bench.results.history.url.masked` has it"""

MOST_CHARACTERS = 300
"""of what a library says: some say all that they were called with"""

FEWEST_CHARACTERS = 3
"""of a part of a password that could not as well be a part of any word"""


class Missing(QsaeError):
    """There is no such file."""


class RemoteFiles:
    """Named relative to the URL, with ``/`` between folders.

    Each method raises:
        QsaeError: the place can't be reached, or does not allow it; the message says why.
    """

    def __init__(self, url: str) -> None:
        self.shown = mask_argument(url).rstrip("/")
        found = PASSWORD.match(url)
        self._secrets = _pieces(found[1]) if found else []
        self._url = url

    def sizes(self, folder: str = "") -> dict[str, int]:
        """name -> bytes, of all files below a folder; none where there is no folder."""
        system, root = self._place
        with self._asking("read"):
            system.invalidate_cache()  # others write there: a listing is never an old one
            try:
                found = system.find(f"{root}/{folder}".rstrip("/"), detail=True)
            except FileNotFoundError:
                return {}
            return {
                name.removeprefix(root).lstrip("/"): int(about.get("size") or 0)
                for name, about in found.items()
            }

    def size(self, name: str) -> int | None:
        """In bytes; None where there is no such file."""
        system, root = self._place
        with self._asking("read"):
            system.invalidate_cache()
            try:
                return int(system.info(f"{root}/{name}")["size"])
            except FileNotFoundError:
                return None

    def content(self, name: str) -> bytes | None:
        """Of a small file; None where there is none."""
        system, root = self._place
        with self._asking("read"):
            try:
                return bytes(system.cat_file(f"{root}/{name}"))
            except FileNotFoundError:
                return None

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file to a local path.

        Raises:
            Missing: there is none.
        """
        system, root = self._place
        with self._asking("read"):
            try:
                system.get_file(f"{root}/{name}", str(path))
            except FileNotFoundError:
                raise Missing(f"{self.shown}/{name}: missing") from None

    def put(self, path: Path, name: str) -> None:
        """Copy a local file there, over what is there by this name."""
        system, root = self._place
        with self._asking("written"):
            # of all that fsspec has for writing, this alone makes folders where there are folders
            system.put_file(str(path), f"{root}/{name}")

    def put_content(self, content: bytes, name: str) -> None:
        """Put a small file there in one piece."""
        with self._asking("written"), tempfile.TemporaryDirectory(prefix="qsae-") as folder:
            path = Path(folder) / "content"
            path.write_bytes(content)
            self.put(path, name)

    def remove(self, names: Iterable[str]) -> None:
        """Those that are there."""
        system, root = self._place
        with self._asking("written"):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    system.rm_file(f"{root}/{name}")

    @cached_property
    def _place(self) -> tuple[Any, str]:
        """fsspec's file system, made when it is first used: it starts threads, which no fork survives."""
        from fsspec.core import url_to_fs

        with self._asking("reached"):
            system, root = url_to_fs(self._url)
            return system, root.rstrip("/")

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Each of fsspec's file systems has exceptions of its own, and of the libraries below it."""
        try:
            yield
        except QsaeError:
            raise
        except Exception as error:
            raise QsaeError(
                f"reference store {self.shown}: can't be {what}: {self._cause(error)}; "
                "check the address, its credentials and the network, or leave --reference-store out"
            ) from None

    def _cause(self, error: Exception) -> str:
        said = plain(str(error)) or "no message"
        for secret in self._secrets:
            said = said.replace(secret, "***")
        return f"{type(error).__name__}: {mask_passwords(said)[:MOST_CHARACTERS]}"


def _pieces(password: str) -> list[str]:
    """What to hide of it, the longest first: a library takes a part of it for the host, or for the port."""
    parts = [part for part in re.split(r"[/?#@:]", password) if len(part) >= FEWEST_CHARACTERS]
    return sorted({password, unquote(password), *parts} - {""}, key=len, reverse=True)
