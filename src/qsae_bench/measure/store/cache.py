"""Keep local copies of remote files, named by their checksum and checked before they are first read."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from qsae_bench.errors import QsaeError
from qsae_bench.files import (
    evict_least_recently_used,
    one_at_a_time,
    put_file,
    remove_abandoned,
    sha256_of,
)

FETCHES = 2
"""a broken connection can leave a short file and no error: a file counts as damaged after so many tries"""


class ChecksumMismatch(QsaeError):
    """Report that a fetched file's content is not what its checksum says."""


class CheckedCache:
    """Hold files in a folder, bounded in bytes: the least recently used are removed first.

    Processes share it: a file is put in place in one rename, one of them fetches it while the others wait,
    and one that another process removes is fetched again. Each method raises:
        QsaeError: the disk is full or the folder can't be written.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._verified: set[str] = set()

    def path(self, sha256: str, fetch: Callable[[Path], None]) -> Path:
        """Return the file with this checksum, which ``fetch(path)`` copies here if none is intact.

        Raises ChecksumMismatch if what is fetched has another one.
        """
        path = self._path(sha256)
        with self._write_errors():
            if not self._is_sound(path, sha256):
                with one_at_a_time(str(path.absolute())):
                    if not self._is_sound(path, sha256):  # another process may have been first
                        with self.scratch() as folder:
                            self.add(self._fetched(folder / path.name, sha256, fetch), sha256)
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)  # time of last use, for eviction
        return path

    def add(self, path: Path, sha256: str) -> None:
        """Move a file into the cache that was written in its :meth:`scratch`."""
        with self._write_errors():
            put_file(path, self._path(sha256))
            self._verified.add(sha256)
            keep = self._path(sha256)
            files = self.folder.glob("*.safetensors")
            evict_least_recently_used(files, self.limit_bytes, lambda path, used: path == keep)
            remove_abandoned(self.folder)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Make a folder on the same file system, for files that are not complete yet."""
        with self._write_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=".part-", dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.safetensors"

    def _is_sound(self, path: Path, sha256: str) -> bool:
        """Check a file's content, once a process."""
        with contextlib.suppress(FileNotFoundError):  # there is none, or another process removed it
            if sha256 in self._verified:
                return path.is_file()
            if sha256_of(path) == sha256:
                self._verified.add(sha256)
                return True
        return False

    def _fetched(self, part: Path, sha256: str, fetch: Callable[[Path], None]) -> Path:
        for _ in range(FETCHES):
            fetch(part)
            if sha256_of(part) == sha256:
                return part
        raise ChecksumMismatch("checksum differs")

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise QsaeError(
                f"cache of references {self.folder}: can't be written: {error.strerror or error}; "
                "free space or name another place with --qsae-dir"
            ) from None
