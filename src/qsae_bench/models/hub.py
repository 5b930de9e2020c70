"""Fetch a model's files from the hub once, and check their contents.

Files are fetched before anything is loaded, so that a load is timed without its download and a later load
needs no network.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from qsae_bench.errors import CannotRun, QsaeError
from qsae_bench.files import SHA256, sha256_of
from qsae_bench.machine import free_bytes
from qsae_bench.models.hub_errors import client_was_closed, explain, is_hub_error
from qsae_bench.progress import progress_of
from qsae_bench.registry.specs import ModelSpec

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
TEXT_FILES = ("*.json", "*.model", "*.txt", "*.jinja")
"""config, generation config, tokenizer in each of its forms, chat template; never a pickle or code"""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""one of them holds the tokenizer; if all are missing, a download was interrupted"""

# only the plain transport is tested here; Xet's exceptions and its way of writing files differ
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")

T = TypeVar("T")

THREAD_POLL_SECONDS = 0.05
TRIES = 4
"""attempts at what fails because another thread closed the client"""

MTIME_GRACE_SECONDS = 0.5
"""file systems keep times more coarsely than the clock does"""


def fetch(model: ModelSpec, *, weights: bool) -> Path:
    """Fetch what the local cache lacks of the model's files at its pinned revision.

    A complete cache is used without asking the hub, which may be down. Without ``weights`` only config and
    tokenizer are fetched. Returns the snapshot's folder, whose name is the commit.

    Raises:
        CannotRun: files are missing here and can't be fetched; says why and what to do.
        QsaeError: a file's content doesn't match its checksum.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    patterns = [*TEXT_FILES, *(WEIGHT_FILES if weights else ())]
    asked = {"repo_id": model.source, "revision": model.revision, "allow_patterns": patterns}
    disable_progress_bars()
    if (cached := cached_snapshot(model, weights=weights)) is not None:
        return cached
    with _fetching(model, model.source):
        files = with_timeout(lambda: snapshot_download(**asked, dry_run=True))
        _require_disk_space(model, sum(file.file_size or 0 for file in files if file.will_download))
        started = time.time()
        with _downloading(model, sum(file.file_size or 0 for file in files)):
            folder = Path(
                with_timeout(lambda: snapshot_download(**asked), lambda: cached_bytes(model.source))
            )
    verify_downloads(model.source, started, model.name)
    if weights and (missing := next(_missing_weights(folder), None)) is not None:
        raise QsaeError(
            f"{model.name}: {model.source} has no {missing}: only safetensors are read; "
            "correct the entry's source, or convert its weights"
        )
    if not (folder / "config.json").is_file():
        raise QsaeError(
            f"{model.name}: {model.source} has no config.json: not a model for transformers; "
            "correct the entry's source"
        )
    return folder


def fetch_file(model: ModelSpec, file: str) -> Path:
    """Return one file of the model's repository, such as a GGUF; fetches and raises as :func:`fetch`."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    cached = try_to_load_from_cache(model.source, file, revision=model.revision)
    if isinstance(cached, str):
        return Path(cached)

    def download(**options: bool) -> Any:
        return hf_hub_download(model.source, file, revision=model.revision, **options)

    started = time.time()
    with _fetching(model, f"{file} of {model.source}"):
        size = with_timeout(lambda: download(dry_run=True)).file_size or 0
        _require_disk_space(model, size)
        with _downloading(model, size):
            path = with_timeout(download, lambda: cached_bytes(model.source))
    verify_downloads(model.source, started, model.name)
    return Path(path)


@contextlib.contextmanager
def _fetching(model: ModelSpec, what: str) -> Iterator[None]:
    """Turn what a hub library raises into CannotRun, with cause and remedy."""
    try:
        yield
    except Exception as error:
        if isinstance(error, QsaeError) or not is_hub_error(error):
            raise
        raise CannotRun(f"{model.name}: {what} can't be fetched: {explain(error)}") from None


def _downloading(model: ModelSpec, size: int) -> contextlib.AbstractContextManager[None]:
    return progress_of(
        f"{model.name}: downloading {model.source}",
        lambda: f", {cached_bytes(model.source) / 1e9:,.2f} of {size / 1e9:,.2f} GB",
    )


def cached_snapshot(model: ModelSpec, *, weights: bool) -> Path | None:
    """Return the snapshot's folder if the cache has all that is needed; the network is not used."""
    from huggingface_hub import try_to_load_from_cache

    needed = ("config.json",) if weights else ("config.json", "tokenizer_config.json")
    found = [try_to_load_from_cache(model.source, name, revision=model.revision) for name in needed]
    if not all(isinstance(path, str) for path in found):
        return None
    folder = Path(str(found[0])).parent
    if weights:
        return None if next(_missing_weights(folder), None) is not None else folder
    return folder if any((folder / name).is_file() for name in TOKENIZER_FILES) else None


def snapshot_folder(model: ModelSpec) -> Path | None:
    """Return the snapshot's folder in the cache, however much of it is there; None without a config."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model.source, "config.json", revision=model.revision)
    return Path(found).parent if isinstance(found, str) else None


def _missing_weights(folder: Path) -> Iterator[str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        yield from (name for name in sorted(set(shards)) if not (folder / name).is_file())
    elif not (folder / "model.safetensors").is_file():
        yield "model.safetensors"


def _require_disk_space(model: ModelSpec, wanted: int) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    free = free_bytes(Path(HF_HUB_CACHE))
    if wanted > free:
        raise CannotRun(
            f"{model.name}: {model.source} needs {wanted / 2**30:.1f} GiB of disk, {free / 2**30:.1f} GiB "
            "are free in the cache: free space, or move the cache with HF_HOME"
        )


def verify_downloads(repository: str, since: float, what: str) -> None:
    """Hash the large files that were downloaded after ``since``, and remove those that are damaged.

    The hub names a large file by its sha256, but its client checks sizes only. A damaged file is removed,
    so that it is neither used nor taken for a finished download; a QsaeError names it and ``what`` it is
    part of. ``since`` is in seconds since the epoch.
    """
    folder = cache_folder(repository)
    for blob in folder.glob("blobs/*"):
        if not SHA256.fullmatch(blob.name) or blob.stat().st_mtime < since - MTIME_GRACE_SECONDS:
            continue
        with progress_of(f"{what}: checking what was downloaded"):
            digest = sha256_of(blob)
        if digest != blob.name:
            links = [path for path in folder.glob("snapshots/**/*") if path.resolve() == blob.resolve()]
            for path in (*links, blob):
                path.unlink(missing_ok=True)
            name = links[0].name if links else blob.name
            raise QsaeError(
                f"{what}: checksum mismatch: {name} of {repository} arrived damaged and was removed; "
                "run again to download it"
            )


def cache_folder(repository: str) -> Path:
    """Return the repository's folder in huggingface_hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def cached_bytes(repository: str) -> int:
    """Return the repository's bytes on disk, unfinished downloads included: they grow during a download."""
    total = 0
    for path in cache_folder(repository).glob("blobs/*"):
        with contextlib.suppress(OSError):  # renamed just now
            total += path.stat().st_size
    return total


def with_timeout(
    work: Callable[[], T], progress: Callable[[], int] = lambda: 0, patience: float = 12.0
) -> T:
    """Return ``work()``, or give up once ``progress()`` stands still: some libraries' requests never end.

    A thread that hangs is abandoned; it ends with the process. ``work`` is called again if another thread
    closed the client. ``progress()`` changes while work goes on, such as a number of bytes; after
    ``patience`` times HF_HUB_DOWNLOAD_TIMEOUT (10 s unless set) without a change, TimeoutError is raised.
    """
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT

    outcome: list[tuple[bool, Any]] = []

    def run() -> None:
        for left in reversed(range(TRIES)):
            try:
                outcome.append((True, work()))
            except BaseException as error:
                if left and client_was_closed(error):
                    continue
                outcome.append((False, error))
            return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    moved, seen = time.monotonic(), progress()
    while thread.is_alive():
        thread.join(THREAD_POLL_SECONDS)
        if (now := progress()) != seen:
            moved, seen = time.monotonic(), now
        elif time.monotonic() - moved > patience * HF_HUB_DOWNLOAD_TIMEOUT and thread.is_alive():
            raise TimeoutError("the hub stopped answering")
    succeeded, value = outcome[0]
    if not succeeded:
        raise value
    return value
