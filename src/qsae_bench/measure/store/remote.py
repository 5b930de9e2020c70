"""Keep references at a URL: an object store, or whatever else fsspec writes to.

Nothing there can be renamed, so an entry exists if and only if its manifest does, which is put last::

    <key>/manifest.json                     names the files below, with their sizes and checksums
    <key>/<time>-<random>-rows-00000.safetensors, -weights.safetensors
    heads/<sha256>.safetensors              once for each content: 2 GB for Gemma 3

Each writer's files have names of their own, so two writers of one entry never mix: the last manifest wins.
Nothing is ever evicted from here: a lifecycle rule of the bucket removes what is old (docs/scale.md), and
an entry that lost a file is damaged, so it is built again. Buckets filled before that rule hold marks
``…used-<time>``, which nothing reads. Files are fetched when they are needed, see
:mod:`qsae_bench.measure.store.cache`.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from qsae_bench.errors import QsaeError
from qsae_bench.measure.store.cache import CheckedCache, ChecksumMismatch
from qsae_bench.measure.store.entry import (
    HEAD_FILE,
    MANIFEST,
    WEIGHTS_FILE,
    DamagedEntry,
    Manifest,
    StoredReference,
)
from qsae_bench.measure.store.entry_writing import ReferencePass, write_entry
from qsae_bench.measure.store.remote_files import MissingFile, RemoteFiles

HEADS = "heads"


@dataclass(frozen=True)
class RemoteObject:
    """Describe the object that holds one file of an entry."""

    object: str
    """its name below the store's URL"""
    bytes: int


def _objects_of(manifest: Manifest, where: str) -> dict[str, RemoteObject]:
    """Return the object of each of the entry's files."""
    try:
        found = {file: RemoteObject(**one) for file, one in manifest.values["objects"].items()}
        if found.keys() == manifest.checksums().keys():
            return found
    except (KeyError, TypeError, AttributeError):  # a local store's, which somebody copied there
        pass
    raise DamagedEntry(f"reference store: {where} is damaged (not a manifest)")


class RemoteStore:
    """Keep entries below a URL.

    Implements :class:`qsae_bench.measure.store.Store`; reading it needs no right to write.
    """

    def __init__(self, url: str, cache: CheckedCache) -> None:
        self.files = RemoteFiles(url)
        self.cache = cache
        self._damaged: set[str] = set()
        """objects whose content was found to be wrong"""

    def open(self, key: str, device: str) -> StoredReference | None:
        """Open an entry, checking the size of each file; rows and the head are fetched when they are
        read."""
        content = self.files.content(f"{key}/{MANIFEST}")
        if content is None:
            return None
        where = f"{self.files.shown}/{key}/{MANIFEST}"
        manifest = Manifest.read(content, where)
        objects, checksums = _objects_of(manifest, where), manifest.checksums()
        sizes = self.files.sizes(key)
        sizes |= {objects[HEAD_FILE].object: self.files.size(objects[HEAD_FILE].object) or 0}
        for one in objects.values():
            there = sizes.get(one.object, 0)
            if there != one.bytes:
                what = f"{there} of {one.bytes} bytes" if there else "missing"
                raise DamagedEntry(f"reference store: {self.files.shown}/{one.object}: {what}")

        def path_of(file: str) -> Path:
            return self._fetched(objects[file], checksums[file])

        path_of(WEIGHTS_FILE)  # it is small, and shows damage now
        return StoredReference(manifest, device, path_of)

    def close(self) -> None:
        """Do nothing: the URL and the local copies stay for later runs."""

    def write(self, key: str, reference_pass: ReferencePass) -> None:
        """Write an entry: each file as soon as it is complete, the manifest last."""
        writer = secrets.token_hex(8)
        trial, own = f"{key}/{writer}-begun", list[str]()
        self.files.put_content(b"", trial)  # a store that can't be written is known before the pass
        objects: dict[str, RemoteObject] = {}

        def on_file(path: Path, sha256: str) -> None:
            size = path.stat().st_size
            if path.name == HEAD_FILE:
                name = f"{HEADS}/{sha256}.safetensors"
                if self.files.size(name) != size or name in self._damaged:
                    self.files.put(path, name)
                    self._damaged.discard(name)
            else:
                name = f"{key}/{int(time.time())}-{writer}-{path.name}"
                own.append(name)
                self.files.put(path, name)
            objects[path.name] = RemoteObject(name, size)
            self.cache.add(path, sha256)  # a quantized cell on this machine reads it next

        try:
            with self.cache.scratch() as folder:
                values = write_entry(folder, reference_pass, on_file=on_file)
            objects_by_file = {file: asdict(one) for file, one in objects.items()}
            manifest = Manifest.sealed(values | {"objects": objects_by_file})
            self.files.put_content(manifest.content(), f"{key}/{MANIFEST}")
            own.clear()
        except OSError as error:
            raise QsaeError(
                f"reference store {self.files.shown}: can't be written: {error.strerror or error}; "
                f"files are made in {self.cache.folder} first: free space or name another --qsae-dir"
            ) from None
        finally:
            with contextlib.suppress(QsaeError):  # without the right to remove, one can write all the same
                self.files.remove([trial, *own])

    def _fetched(self, one: RemoteObject, sha256: str) -> Path:
        try:
            return self.cache.path(sha256, lambda part: self.files.fetch(one.object, part))
        except MissingFile as error:
            raise DamagedEntry(f"reference store: {error}") from None
        except ChecksumMismatch as error:
            self._damaged.add(one.object)
            where = f"{self.files.shown}/{one.object}"
            raise DamagedEntry(f"reference store: {where} is damaged ({error})") from None
