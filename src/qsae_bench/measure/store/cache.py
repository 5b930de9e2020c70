"""Local copies of remote files, named by their checksum, checked before they are first read."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from qsae_bench.errors import QsaeError
from qsae_bench.files import one_at_a_time, put_file, sha256_of

ABANDONED_SECONDS = 86_400.0
FETCHES = 2
"""a connection that breaks can leave a short file and no error: damage is what is wrong twice"""


class WrongContent(QsaeError):
    """What was fetched is not what its checksum says."""


class CheckedCache:
    """A folder of files, bounded in bytes: the least recently used go first.

    Processes share it: a file is put in place in one rename, one of them fetches it while the others wait,
    and one that another process removes is fetched again. Each method raises:
        QsaeError: the disk is full or the folder can't be written.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._sound: set[str] = set()

    def path(self, sha256: str, fetch: Callable[[Path], None]) -> Path:
        """The file with this checksum, fetched if there is none, or one that is damaged.

        Raises:
            WrongContent: what is fetched has another checksum.
        """
        path = self._path(sha256)
        with self._writing():
            if not self._is_sound(path, sha256):
                with one_at_a_time(str(path.absolute())):
                    if not self._is_sound(path, sha256):  # another process may have been first
                        with self.scratch() as folder:
                            self.adopt(self._fetched(folder / path.name, sha256, fetch), sha256)
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)  # last use, for eviction
        return path

    def adopt(self, path: Path, sha256: str) -> None:
        """Put a file in its place that was written in this cache's :meth:`scratch`."""
        with self._writing():
            put_file(path, self._path(sha256))
            self._sound.add(sha256)
            self._evict(keep=self._path(sha256))

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on the same file system, for what is not whole yet."""
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=".part-", dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.safetensors"

    def _is_sound(self, path: Path, sha256: str) -> bool:
        """Read whole once a process."""
        with contextlib.suppress(FileNotFoundError):  # there is none, or another process removed it
            if sha256 in self._sound:
                return path.is_file()
            if sha256_of(path) == sha256:
                self._sound.add(sha256)
                return True
        return False

    def _fetched(self, part: Path, sha256: str, fetch: Callable[[Path], None]) -> Path:
        for _ in range(FETCHES):
            fetch(part)
            if sha256_of(part) == sha256:
                return part
        raise WrongContent("checksum differs")

    def _evict(self, keep: Path) -> None:
        found = []
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):  # another process may have removed it
                about = path.stat()
                if not path.name.startswith("."):
                    found.append((path == keep, about.st_mtime, path, about.st_size))
                elif time.time() - about.st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)  # of a run that was killed
        total = 0
        for kept, _, path, size in sorted(found, reverse=True):
            total += size
            if total > self.limit_bytes and not kept:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise QsaeError(
                f"cache of references {self.folder}: can't be written: {error.strerror or error}; "
                "free space or name another place with --qsae-dir"
            ) from None
