"""The hub: fetch a model's files once, check them, and say in one line why they can't be had.

Files are fetched before anything is loaded, so that a load is timed without its download, and a later
load needs no network. What the libraries raise on the way differs by library and version; causes are
told apart by the names of the exceptions in a chain, not by importing each library's own.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
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
from qsae_bench.progress import working
from qsae_bench.specs import ModelSpec

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
TEXT = ("*.json", "*.model", "*.txt", "*.jinja")
"""config, generation config, tokenizer in each of its forms, chat template; never a pickle or code"""

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""one of them is the tokenizer itself; a config without one is a download that broke off"""

# the transport that is tested here is the plain one; what the other raises and how it writes differs
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")

SHA256 = re.compile(r"[0-9a-f]{64}")
GATED = re.compile("access a gated repo|is a gated dataset")
"""transformers' and datasets' words; huggingface_hub says "private or gated repo" of one that is missing"""

REMOTE = (
    "aiohttp", "datasets", "fsspec", "httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub",
    "requests", "urllib3",
)  # fmt: skip
"""packages whose exceptions tell of the network or the hub"""

CLOSED = "the client has been closed"
"""httpx's words in a RuntimeError: huggingface_hub closes the one client of all its threads, and so of all
files of a download, whenever one of them can't connect; the next request makes a new one"""

Chain = list[BaseException]
T = TypeVar("T")

POLL_SECONDS = 0.05
TRIES = 4
"""of what fails because another thread closed the client"""


def explain(error: BaseException) -> str:
    """Cause and remedy, in one line, of what a hub library raised; no token and no request id in it."""
    chain = _chain(error)
    names = {cls.__name__ for one in chain for cls in type(one).__mro__}
    text = " ".join(str(one) for one in chain)
    status = _status(chain)
    if any(isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT) for one in chain):
        return "the disk is full: free space, or move the cache with HF_HOME"
    if any(isinstance(one, OSError) and one.errno in (errno.EROFS, errno.EACCES) for one in chain):
        return "the cache can't be written: name a writable folder with HF_HOME"
    if "GatedRepoError" in names or status == 403 or GATED.search(text):
        if _token() is None:
            return "it is gated: accept its licence on the hub and set HF_TOKEN"
        return "it is gated and this HF_TOKEN has no access: accept its licence with the token's account"
    if "OfflineModeIsEnabled" in names or _offline():
        return "not in the cache, and HF_HUB_OFFLINE is set: unset it, or fill the cache with network"
    if "RevisionNotFoundError" in names:
        return "the hub has no such revision: correct the entry's revision"
    if status == 401 or names & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
        answer = f" ({status})" if status else ""
        return f"the hub does not know it or the token may not see it{answer}: check the name and HF_TOKEN"
    if "RemoteEntryNotFoundError" in names or "DataFilesNotFoundError" in names or status == 404:
        return "the hub has no such file (404): check the entry's source, release and id"
    if status is not None and status >= 500:
        return f"the hub answered with its own error ({status}): try again later"
    if "Consistency check failed" in text:
        return "the download was cut short: run again, it goes on where it stopped"
    if names & {"TimeoutException", "ReadTimeout", "ConnectTimeout", "Timeout", "TimeoutError"}:
        return "the hub does not answer in time: run again, or raise HF_HUB_DOWNLOAD_TIMEOUT"
    if names & {
        "RemoteProtocolError",
        "ChunkedEncodingError",
        "IncompleteRead",
        "ReadError",
        "ProtocolError",
    }:
        return "the download was cut short: run again, it goes on where it stopped"
    if any(map(_closed, chain)) or names & {
        "ConnectError",
        "ConnectionError",
        "NetworkError",
        "MaxRetryError",
        "LocalEntryNotFoundError",
        "IncompleteSnapshotError",
    }:
        return "the hub can't be reached and the cache lacks it: check the network and HF_ENDPOINT"
    if "ArrowInvalid" in names or "Corrupt" in text:
        return "its data arrived damaged: run again to download it"
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return without_secrets(first)


def is_remote(error: BaseException) -> bool:
    """Whether an exception is the network's, the hub's or the disk's, and not a fault of this code."""
    return any(
        isinstance(one, OSError) or type(one).__module__.partition(".")[0] in REMOTE or _closed(one)
        for one in _chain(error)
    )


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
    return working(
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
        with blob.open("rb") as file, working(f"{what}: checking what was downloaded"):
            digest = hashlib.file_digest(file, "sha256").hexdigest()
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
                if left and any(map(_closed, _chain(error))):
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


def _chain(error: BaseException) -> Chain:
    """The exception and everything it came from, the outermost first."""
    chain: Chain = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def _closed(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and CLOSED in str(error)


def _status(chain: Chain) -> int | None:
    for one in chain:
        status = getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _offline() -> bool:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return bool(HF_HUB_OFFLINE)


def without_secrets(line: str) -> str:
    """The line without anything that looks like a token, wherever a library put it."""
    token = _token() or os.environ.get("HF_TOKEN") or ""
    line = line.replace(token, "***") if len(token) > 3 else line
    return re.sub(r"hf_\w{4,}", "***", line)
