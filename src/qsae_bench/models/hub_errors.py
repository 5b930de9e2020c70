"""What the hub's libraries raise: its cause and remedy in one line.

It differs by library and version; causes are told apart by the names of the exceptions in a chain, not by
importing each library's own.
"""

from __future__ import annotations

import errno
import os
import re

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
    if was_closed(error) or names & {
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
    return was_closed(error) or any(
        isinstance(one, OSError) or type(one).__module__.partition(".")[0] in REMOTE
        for one in _chain(error)
    )


def was_closed(error: BaseException) -> bool:
    """Whether another thread closed the client meanwhile: the same request may well succeed."""
    return any(isinstance(one, RuntimeError) and CLOSED in str(one) for one in _chain(error))


def without_secrets(line: str) -> str:
    """The line without anything that looks like a token, wherever a library put it."""
    token = _token() or os.environ.get("HF_TOKEN") or ""
    line = line.replace(token, "***") if len(token) > 3 else line
    return re.sub(r"hf_\w{4,}", "***", line)


def _chain(error: BaseException) -> Chain:
    """The exception and everything it came from, the outermost first."""
    chain: Chain = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


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
