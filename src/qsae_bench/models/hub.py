"""The hub: fetch a model's files once, and check them.

Files are fetched before anything is loaded, so that a load is timed without its download, and a later
load needs no network.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from qsae_bench.errors import CannotRun, QsaeError
from qsae_bench.files import sha256_of
from qsae_bench.models.hub_errors import explain, is_remote, was_closed
from qsae_bench.progress import progress_of
from qsae_bench.registry.specs import ModelSpec

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
TEXT = ("*.json", "*.model", "*.txt", "*.jinja")
"""config, generation config, tokenizer in each of its forms, chat template; never a pickle or code"""

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""one of them is the tokenizer itself; a config without one is a download that broke off"""

# the transport that is tested here is the plain one; what the other raises and how it writes differs
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")

SHA256 = re.compile(r"[0-9a-f]{64}")
T = TypeVar("T")

POLL_SECONDS = 0.05
TRIES = 4
"""of what fails because another thread closed the client"""


def fetch(model: ModelSpec, *, weights: bool) -> Path:
    """The model's files of its pinned revision in the local cache, fetched as far as they lack.

    Without ``weights`` only config and tokenizer. Returns the snapshot's folder, whose name is the
    commit; a warm cache is answered without waiting for a hub that is down.

    Raises:
        CannotRun: they are not here and can't be had; says why and what to do.
        QsaeError: a file's content is not what its checksum says.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    patterns = [*TEXT, *(WEIGHTS if weights else ())]
    asked = {"repo_id": model.source, "revision": model.revision, "allow_patterns": patterns}
    disable_progress_bars()
    if (known := fetched(model, weights=weights)) is not None:
        return known
    try:
        files = in_time(lambda: snapshot_download(**asked, dry_run=True))
        _require_room(model, sum(file.file_size or 0 for file in files if file.will_download))
        started = time.time()
        with _downloading(model, sum(file.file_size or 0 for file in files)):
            folder = Path(in_time(lambda: snapshot_download(**asked), lambda: cached_bytes(model.source)))
    except Exception as error:
        if isinstance(error, QsaeError) or not is_remote(error):
            raise
        raise CannotRun(f"{model.name}: {model.source} can't be fetched: {explain(error)}") from None
    verify_new(model.source, started, model.name)
    if weights and (missing := next(_missing(folder), None)) is not None:
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
    """One file of the repository in the local cache, such as a GGUF; fetched if it is not there.

    Raises:
        CannotRun: it is not here and can't be had; says why and what to do.
        QsaeError: its content is not what its checksum says.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    known = try_to_load_from_cache(model.source, file, revision=model.revision)
    if isinstance(known, str):
        return Path(known)
    started = time.time()
    try:
        there = in_time(lambda: hf_hub_download(model.source, file, revision=model.revision, dry_run=True))
        _require_room(model, there.file_size or 0)
        with _downloading(model, there.file_size or 0):
            path = in_time(
                lambda: hf_hub_download(model.source, file, revision=model.revision),
                lambda: cached_bytes(model.source),
            )
    except Exception as error:
        if isinstance(error, QsaeError) or not is_remote(error):
            raise
        raise CannotRun(
            f"{model.name}: {file} of {model.source} can't be fetched: {explain(error)}"
        ) from None
    verify_new(model.source, started, model.name)
    return Path(path)


def _downloading(model: ModelSpec, size: int) -> contextlib.AbstractContextManager[None]:
    return progress_of(
        f"{model.name}: downloading {model.source}",
        lambda: f", {cached_bytes(model.source) / 1e9:,.2f} of {size / 1e9:,.2f} GB",
    )


def fetched(model: ModelSpec, *, weights: bool) -> Path | None:
    """The snapshot's folder if all that is asked for is here already: no network is touched."""
    from huggingface_hub import try_to_load_from_cache

    needed = ("config.json",) if weights else ("config.json", "tokenizer_config.json")
    found = [try_to_load_from_cache(model.source, name, revision=model.revision) for name in needed]
    if not all(isinstance(path, str) for path in found):
        return None
    folder = Path(str(found[0])).parent
    if weights:
        return None if next(_missing(folder), None) is not None else folder
    return folder if any((folder / name).is_file() for name in TOKENIZERS) else None


def _missing(folder: Path) -> Iterator[str]:
    """Weight files that a load would miss."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        yield from (name for name in sorted(set(shards)) if not (folder / name).is_file())
    elif not (folder / "model.safetensors").is_file():
        yield "model.safetensors"


def _require_room(model: ModelSpec, wanted: int) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    place = Path(HF_HUB_CACHE)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if wanted > free:
        raise CannotRun(
            f"{model.name}: {model.source} needs {wanted / 2**30:.1f} GiB of disk, {free / 2**30:.1f} GiB "
            "are free in the cache: free space, or move the cache with HF_HOME"
        )


def verify_new(repository: str, since: float, what: str) -> None:
    """Hash what was downloaded since then: the hub names a large file by its sha256, its client checks
    sizes only. A damaged file is removed: it is neither trusted nor in the way of the next download.

    Raises:
        QsaeError: a file's content is not what its name says.
    """
    folder = cache_of(repository)
    for blob in folder.glob("blobs/*"):
        # half a second of grace: file systems keep times more coarsely than the clock does
        if not SHA256.fullmatch(blob.name) or blob.stat().st_mtime < since - 0.5:
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


def cache_of(repository: str) -> Path:
    """The repository's folder in huggingface_hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def cached_bytes(repository: str) -> int:
    """What of the repository is on disk, unfinished downloads included: grows while one goes on."""
    total = 0
    for path in cache_of(repository).glob("blobs/*"):
        with contextlib.suppress(OSError):  # renamed just now
            total += path.stat().st_size
    return total


def in_time(work: Callable[[], T], progress: Callable[[], int] = lambda: 0, patience: float = 12.0) -> T:
    """``work()``, given up when ``progress()`` stands still: some of the libraries' requests never end.

    ``patience`` is in units of HF_HUB_DOWNLOAD_TIMEOUT (10 s unless set). The thread that hangs is left
    behind; it ends with the process. ``work`` is done again where another thread closed the client.

    Raises:
        TimeoutError: nothing moved for that long.
    """
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT

    outcome: list[tuple[bool, Any]] = []

    def run() -> None:
        for left in reversed(range(TRIES)):
            try:
                outcome.append((True, work()))
            except BaseException as error:
                if left and was_closed(error):
                    continue
                outcome.append((False, error))
            return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    moved, seen = time.monotonic(), progress()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        if (now := progress()) != seen:
            moved, seen = time.monotonic(), now
        elif time.monotonic() - moved > patience * HF_HUB_DOWNLOAD_TIMEOUT and thread.is_alive():
            raise TimeoutError("the hub stopped answering")
    fine, value = outcome[0]
    if not fine:
        raise value
    return value
