"""Give tests a reference store in a folder, in memory or on S3, and show its files without its own code."""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path

import s3_server
import stand_ins
from qsae_bench.measure.store import open_store

KINDS = ("folder", "memory", "s3")
MEMORY = itertools.count()


class Place:
    """One store, and the machines that use it."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.remote = kind != "folder"
        self._machines = itertools.count()
        if kind == "s3":
            self.url = s3_server.bucket()
        else:
            self.url = f"memory://test-{next(MEMORY)}" if self.remote else str(folder / "store")

    def store(self, limit_bytes=1 << 40, machine=None):
        """As a machine sees it that never used it, unless one is named."""
        machine = f"machine {next(self._machines)}" if machine is None else machine
        return open_store(self.url, self.folder / machine, limit_bytes)

    def cached(self, machine) -> list[Path]:
        return sorted((self.folder / machine / "cache" / "references").glob("*.safetensors"))

    def files(self) -> dict[str, bytes]:
        """name -> content, of all that lies there."""
        system, root = self._system()
        found = system.find(root)
        return {name.removeprefix(root).lstrip("/"): system.cat_file(name) for name in found}

    def put(self, name: str, content: bytes | None) -> None:
        """Over what is there; None removes it."""
        system, root = self._system()
        if content is None:
            system.rm_file(f"{root}/{name}")
        else:
            system.pipe_file(f"{root}/{name}", content)

    def entries(self) -> list[str]:
        return sorted(name.split("/")[0] for name in self.files() if name.endswith("/manifest.json"))

    def named(self, key: str, file: str) -> str:
        """Where a file of an entry lies."""
        if not self.remote or file == "manifest.json":
            return f"{key}/{file}"
        return json.loads(self.files()[f"{key}/manifest.json"])["objects"][file]["object"]

    def used(self, key: str, ago_seconds: int) -> None:
        """Make a folder's entry look as if it was last used then."""
        then = int(time.time()) - ago_seconds
        os.utime(self.folder / "store" / key, (then, then))

    def _system(self):
        from fsspec.core import url_to_fs

        system, root = url_to_fs(self.url)
        system.invalidate_cache()
        return system, root


def fill(store, model, key="key", of=None):
    """Store a reference pass of a stand-in model."""
    store.write(key, stand_ins.reference_pass(model, of, made_from={"why": "test"}))


def read_all(store, key="key"):
    """Every sequence of an entry; its head is read too."""
    stored = store.open(key, "cpu")
    assert stored is not None
    stored.head()
    return stored.read(0, stored.sequences)
