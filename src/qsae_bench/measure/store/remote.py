"""The reference store at a URL: an object store, or whatever else fsspec writes to.

Nothing there can be renamed, so an entry exists if and only if its manifest does, which is put last::

    <key>/manifest.json                     names the files below, with their sizes and checksums
    <key>/<time>-<random>-rows-00000.safetensors, -weights.safetensors
    <key>/used-<time>                       when it was last read or written, to an hour
    heads/<sha256>.safetensors              once a content: 2 GB for Gemma 3
    heads/<sha256>.used-<time>              when a writer last counted on it

Each writer has names of its own, so two writers of one entry never mix: the last manifest wins, and what it
doesn't name is removed days later. Times are in names because every store lists names, and each has a date
of its own kind or none. Files are fetched when they are needed, see :mod:`qsae_bench.measure.store.cache`.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import QsaeError
from qsae_bench.measure.store.cache import CheckedCache, WrongContent
from qsae_bench.measure.store.entry import (
    HEAD_FILE,
    MANIFEST,
    WEIGHTS_FILE,
    DamagedEntry,
    Manifest,
    StoredReference,
)
from qsae_bench.measure.store.entry_writing import write_entry
from qsae_bench.measure.store.remote_files import Missing, RemoteFiles
from qsae_bench.models.taps import Activations, Head

if TYPE_CHECKING:
    import torch

HEADS = "heads"
USED_SECONDS = 3600
"""between two marks of one entry"""
IN_USE_SECONDS = 2 * USED_SECONDS
"""an entry that was marked so recently is not evicted: another worker may be at it"""
ABANDONED_SECONDS = 3 * 86_400
"""after which a file that no manifest names is removed: longer than a pass, or a run that reads"""

ENTRY = re.compile(rf"([^/]+)/{re.escape(MANIFEST)}")
FILE = re.compile(r"[^/]+/(\d+)-[0-9a-f]{16}-(?:rows-\d+|weights)\.safetensors")
HEAD = re.compile(rf"({HEADS}/[0-9a-f]{{64}}\.)safetensors")
USED = re.compile(r"([^/]+/|[^/]+/[0-9a-f]{64}\.)used-(\d+)")
"""all that is ever removed has one of these names: what others keep below the URL stays"""


@dataclass(frozen=True)
class RemoteEntry:
    """Where a file of an entry is."""

    object: str
    """its name below the store's URL"""
    bytes: int


def _placed(manifest: Manifest, where: str) -> dict[str, RemoteEntry]:
    """By the entry's file."""
    try:
        found = {file: RemoteEntry(**placed) for file, placed in manifest.values["objects"].items()}
        if found.keys() == manifest.checksums().keys():
            return found
    except (KeyError, TypeError, AttributeError):  # one of a local store, which somebody copied there
        pass
    raise DamagedEntry(f"reference store: {where} is damaged (not a manifest)")


class RemoteStore:
    """Entries below a URL, bounded in bytes: the least recently used go first."""

    def __init__(self, url: str, cache: CheckedCache, limit_bytes: int) -> None:
        self.files = RemoteFiles(url)
        self.cache = cache
        self.limit_bytes = limit_bytes
        self._wrong: set[str] = set()

    def open(self, key: str, device: str) -> StoredReference | None:
        """The entry, or None if there is none; rows and the head are fetched when they are read.

        Raises:
            DamagedEntry: there is one, and a file is missing or has another size, or its manifest is wrong.
            QsaeError: the store can't be read.
        """
        found = self._manifest(key)
        if found is None:
            return None
        manifest, placed = found
        checksums, there = manifest.checksums(), self.files.sizes(key)
        there |= {placed[HEAD_FILE].object: self.files.size(placed[HEAD_FILE].object) or 0}
        for one in placed.values():
            if there.get(one.object, 0) != one.bytes:
                what = f"{there[one.object]} of {one.bytes} bytes" if there.get(one.object) else "missing"
                raise DamagedEntry(f"reference store: {self.files.shown}/{one.object}: {what}")

        marked = time.monotonic()

        def path_of(file: str) -> Path:
            nonlocal marked
            if time.monotonic() - marked > USED_SECONDS:  # it is still in use
                marked = time.monotonic()
                with contextlib.suppress(QsaeError):
                    self._mark(f"{key}/", self.files.sizes(key))
            return self._fetched(placed[file], checksums[file])

        path_of(WEIGHTS_FILE)  # small: what is wrong with it shows now
        with contextlib.suppress(QsaeError):  # who may only read can use it all the same
            self._mark(f"{key}/", there)
        return StoredReference(manifest, device, path_of)

    def close(self) -> None:
        """Nothing is to be done."""

    def discard(self, key: str) -> None:
        """Remove an entry: its manifest first, then what that names.

        Raises:
            QsaeError: the store can't be written.
        """
        placed: Mapping[str, RemoteEntry] = {}
        with contextlib.suppress(DamagedEntry):
            placed = (self._manifest(key) or (None, placed))[1]
        there = self.files.sizes(key)
        named = {one.object for one in placed.values()}
        self.files.remove([f"{key}/{MANIFEST}"])
        # a writer's that is at work, or an older manifest's that may still be read, stay
        self.files.remove(n for n in there if (FILE.fullmatch(n) and n in named) or USED.fullmatch(n))

    def write(
        self,
        key: str,
        batches: Iterable[Activations],
        valid: torch.Tensor,
        head: Head,
        described: Mapping[str, Any],
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Write one entry from consecutive batches, each file as soon as it is whole, the manifest last.

        Raises:
            QsaeError: the store can't be written, or the disk is full.
        """
        self._mark(f"{key}/", {})  # first: a store that can't be written is known before the pass
        writer, placed, own = secrets.token_hex(8), dict[str, dict[str, Any]](), list[str]()

        def written(path: Path, sha256: str) -> None:
            size = path.stat().st_size
            if path.name == HEAD_FILE:
                name = f"{HEADS}/{sha256}.safetensors"
                self._put_head(path, name, size)
            else:
                name = f"{key}/{int(time.time())}-{writer}-{path.name}"
                own.append(name)
                self.files.put(path, name)
            placed[path.name] = {"object": name, "bytes": size}
            self.cache.adopt(path, sha256)  # a quantized cell on this machine reads it next

        try:
            with self.cache.scratch() as folder:
                values = write_entry(
                    folder, batches, valid, head, described, weights or {}, written=written
                )
            manifest = Manifest.sealed(values | {"objects": placed})
            self.files.put_content(manifest.content(), f"{key}/{MANIFEST}")
            own.clear()
        except OSError as error:
            raise QsaeError(
                f"reference store {self.files.shown}: can't be written: {error.strerror or error}; "
                f"files are made in {self.cache.folder} first: free space or name another --qsae-dir"
            ) from None
        finally:
            with contextlib.suppress(QsaeError):
                self.files.remove(own)
        with contextlib.suppress(QsaeError):  # who may not remove can write all the same
            self._evict(keep=key)

    def _manifest(self, key: str) -> tuple[Manifest, dict[str, RemoteEntry]] | None:
        content = self.files.content(f"{key}/{MANIFEST}")
        if content is None:
            return None
        where = f"{self.files.shown}/{key}/{MANIFEST}"
        manifest = Manifest.read(content, where)
        return manifest, _placed(manifest, where)

    def _fetched(self, placed: RemoteEntry, sha256: str) -> Path:
        try:
            return self.cache.path(sha256, lambda part: self.files.fetch(placed.object, part))
        except Missing as error:
            raise DamagedEntry(f"reference store: {error}") from None
        except WrongContent as error:
            self._wrong.add(placed.object)
            where = f"{self.files.shown}/{placed.object}"
            raise DamagedEntry(f"reference store: {where} is damaged ({error})") from None

    def _put_head(self, path: Path, name: str, size: int) -> None:
        """Unless it is there. The mark keeps it from being removed until our manifest names it."""
        self._mark(name.removesuffix("safetensors"), self.files.sizes(HEADS))
        if self.files.size(name) != size or name in self._wrong:
            self.files.put(path, name)
            self._wrong.discard(name)

    def _mark(self, prefix: str, there: Iterable[str]) -> None:
        """Note that something is used, once an hour: a write for every reader would be many."""
        marks, now = _marks(there).get(prefix, {}), int(time.time())
        if max(marks.values(), default=0) <= now - USED_SECONDS:
            self.files.put_content(b"used\n", f"{prefix}used-{now}")
            self.files.remove(marks)

    def _evict(self, keep: str) -> None:
        there = self.files.sizes()
        marks, old = _marks(there), time.time() - ABANDONED_SECONDS
        newest = {prefix: max(times.values()) for prefix, times in marks.items()}
        keys = [found[1] for name in there if (found := ENTRY.fullmatch(name))]
        named: set[str] = set()
        total = 0
        in_use = {k for k in keys if k == keep or newest.get(f"{k}/", 0) > time.time() - IN_USE_SECONDS}
        for key in sorted(keys, key=lambda k: (k in in_use, newest.get(f"{k}/", 0)), reverse=True):
            objects: set[str] = set()
            with contextlib.suppress(DamagedEntry):  # what it named is found by its age
                found_now = self._manifest(key)
                objects = {one.object for one in found_now[1].values()} if found_now else set()
            total += sum(there.get(name, 0) for name in objects - named)
            if total > self.limit_bytes and key not in in_use:
                self.discard(key)
            else:
                named |= objects
        for name in there.keys() - named:
            if (file := FILE.fullmatch(name)) and int(file[1]) < old:
                self.files.remove([name])
            elif (head := HEAD.fullmatch(name)) and newest.get(head[1], 0) < old:
                self.files.remove([name, *marks.get(head[1], {})])
            elif (used := USED.fullmatch(name)) and int(used[2]) < old:
                marked = used[1] + (MANIFEST if used[1].endswith("/") else "safetensors")
                if marked not in there:  # its writer was killed
                    self.files.remove([name])


def _marks(names: Iterable[str]) -> dict[str, dict[str, int]]:
    """What was used -> its marks and their times, in seconds since 1970."""
    found: dict[str, dict[str, int]] = {}
    for name in names:
        if mark := USED.fullmatch(name):
            found.setdefault(mark[1], {})[name] = int(mark[2])
    return found
