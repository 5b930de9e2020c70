"""Explain exceptions of the hub's libraries: cause and remedy in one line.

What they raise differs by library and version. Causes are recognised by the names of the exception classes
in a chain, without importing each library.
"""

from __future__ import annotations

import errno
import os
import re

from qsae_bench.errors import first_line

GATED = re.compile("access a gated repo|is a gated dataset")
"""wording of transformers and datasets; huggingface_hub uses "private or gated repo" for one that is
missing"""

HUB_PACKAGES = (
    "aiohttp", "datasets", "fsspec", "httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub",
    "requests", "urllib3",
)  # fmt: skip
"""packages whose exceptions come from the network or the hub"""

CLIENT_CLOSED = "the client has been closed"
"""wording of httpx's RuntimeError: huggingface_hub closes the client that all its threads share, and so all
files of a download, whenever one of them can't connect; the next request makes a new client"""

TIMED_OUT = {"TimeoutException", "ReadTimeout", "ConnectTimeout", "Timeout", "TimeoutError"}
CUT_SHORT = {
    "RemoteProtocolError", "ChunkedEncodingError", "IncompleteRead", "ReadError", "ProtocolError",
}  # fmt: skip
UNREACHABLE = {
    "ConnectError", "ConnectionError", "NetworkError", "MaxRetryError", "LocalEntryNotFoundError",
    "IncompleteSnapshotError",
}  # fmt: skip
"""names of exception classes"""

Chain = list[BaseException]


def explain(error: BaseException) -> str:
    """Return cause and remedy of what a hub library raised, in one line without token or request id."""
    from huggingface_hub import constants

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
    if "OfflineModeIsEnabled" in names or constants.HF_HUB_OFFLINE:
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
    if names & TIMED_OUT:
        return "the hub does not answer in time: run again, or raise HF_HUB_DOWNLOAD_TIMEOUT"
    if names & CUT_SHORT:
        return "the download was cut short: run again, it goes on where it stopped"
    if client_was_closed(error) or names & UNREACHABLE:
        return "the hub can't be reached and the cache lacks it: check the network and HF_ENDPOINT"
    if "ArrowInvalid" in names or "Corrupt" in text:
        return "its data arrived damaged: run again to download it"
    return mask_tokens(first_line(error))


def is_hub_error(error: BaseException) -> bool:
    """Return whether an exception comes from the network, the hub or the disk, not from this code."""
    return client_was_closed(error) or any(
        isinstance(one, OSError) or type(one).__module__.partition(".")[0] in HUB_PACKAGES
        for one in _chain(error)
    )


def client_was_closed(error: BaseException) -> bool:
    """Return whether another thread closed the client during the request, which may succeed if repeated."""
    return any(isinstance(one, RuntimeError) and CLIENT_CLOSED in str(one) for one in _chain(error))


def mask_tokens(line: str) -> str:
    """Replace whatever looks like a token in a line, wherever a library put it."""
    token = _token() or os.environ.get("HF_TOKEN") or ""
    line = line.replace(token, "***") if len(token) > 3 else line
    return re.sub(r"hf_\w{4,}", "***", line)


def _chain(error: BaseException) -> Chain:
    """Return the exception and its causes, the outermost first."""
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
