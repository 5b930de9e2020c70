"""A stand-in for the Hugging Face Hub on this machine, which can also go wrong on purpose.

It speaks as much of the Hub's HTTP protocol as transformers, sae-lens and datasets use, so that their
unmodified ``from_pretrained`` and ``load_dataset`` run against folders, with ``HF_ENDPOINT`` set to
:attr:`LocalHub.url`. The libraries read that variable at import: run them in another process, with
:meth:`LocalHub.environment`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".parquet")
"""stored as LFS objects: known by their sha256 instead of their git blob"""

KINDS = {"model": "models", "dataset": "datasets"}
FAULTS = ("401", "403", "404", "500", "cut", "stall", "damage")
DATE = "2025-03-12T00:00:00.000Z"

API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
    r"(?:/(?P<call>revision|tree|paths-info|auth-check)(?:/(?P<revision>[^/]+)(?:/(?P<path>.+))?)?)?"
)
RESOLVE = re.compile(
    r"/(?:(?P<kind>models|datasets)/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
)
RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Request(NamedTuple):
    """One request that was answered; ``status`` is 0 where a stall left it without an answer."""

    method: str
    path: str
    status: int
    had_authorization: bool
    range: str | None


@dataclass(frozen=True)
class Entry:
    """A file of a repository; ``etag`` is the sha256 of a large one, the git blob's id of another."""

    file: Path
    size: int
    etag: str
    blob: str
    large: bool


@dataclass(frozen=True)
class Repository:
    """A folder as it was when added."""

    name: str
    kind: str
    commit: str
    entries: dict[str, Entry]
    gated_token: str | None


@dataclass
class Fault:
    """What goes wrong with requests whose path matches, ``left`` times more (None: always)."""

    kind: str
    match: re.Pattern[str]
    left: int | None
    method: str | None
    at: int | None
    skip: int


@dataclass
class Answer:
    """A response before a fault has touched it; ``start`` is where in its file the body begins."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    start: int = 0
    size: int = 0


@dataclass
class LocalHub:
    """Serves folders until it is stopped; a context manager.

    ``requests`` has every request as it was answered, ``unknown`` the paths that this hub has no endpoint
    for (answered 404 too).
    """

    requests: list[Request] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.connections: set[socket.socket] = set()
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def __enter__(self) -> LocalHub:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop at once: stalled and idle connections are closed, not waited for."""
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()
        with self.lock:
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.thread.join(timeout=5)

    def add(
        self, repo_id: str, folder: Path, kind: str = "model", gated_token: str | None = None
    ) -> Repository:
        """Serve a folder as the repository's only commit; added again, it has another.

        With ``gated_token``, its files are given to requests with that bearer token only. What is known
        about them (revision, listing, sizes) stays public, as on the Hub.
        """
        entries = {path.relative_to(folder).as_posix(): entry_of(path) for path in files_of(folder)}
        contents = json.dumps([repo_id, [(name, entry.etag) for name, entry in entries.items()]])
        commit = hashlib.sha1(contents.encode()).hexdigest()
        repository = Repository(repo_id, KINDS[kind], commit, entries, gated_token)
        self.repositories[KINDS[kind], repo_id.lower()] = repository
        return repository

    def fault(
        self,
        kind: str,
        match: str = "",
        times: int | None = 1,
        method: str | None = None,
        at: int | None = None,
        skip: int = 0,
    ) -> Fault:
        """Let ``times`` matching requests go wrong (None: all) after ``skip`` others; older faults first.

        401, 403, 404, 500
            That status, with the words of an invalid token, a token without the right to gated
            repositories, a missing file or repository, and a broken server.
        cut
            All of the headers, half of the body, and the end of the connection.
        stall
            No answer, until the hub is stopped. Clients may wait as long: transformers looks a revision up
            without a timeout, and huggingface_hub repeats a HEAD with one of a minute, six times.
        damage
            Right length, one byte flipped: the one ``at`` this offset in the file, or in its middle.

        ``match`` is searched in the path, ``method`` keeps a fault to "GET" or "HEAD". ``cut`` and
        ``damage`` happen to bodies only: they skip HEAD, and ranges that don't include the damaged byte.
        """
        if kind not in FAULTS:
            raise ValueError(f"no fault {kind!r}; there are {', '.join(FAULTS)}")
        fault = Fault(kind, re.compile(match), times, method, at, skip)
        with self.lock:
            self.faults.append(fault)
        return fault

    def clear_faults(self) -> None:
        """From now on everything goes well; what stalls already stays so."""
        with self.lock:
            self.faults.clear()

    def environment(self, home: Path, token: str | None = None, **more: str) -> dict[str, str]:
        """Environment of a process that talks to this hub, and finds no cache, token or proxy of ours."""
        ours = re.compile(r"HF_|HUGGING|TRANSFORMERS_|.*_PROXY$", re.IGNORECASE)
        kept = {name: value for name, value in os.environ.items() if not ours.match(name)}
        set_here = {
            "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0", "NO_PROXY": "*",
            # else transformers asks a Space on the internet to convert what has no safetensors
            "DISABLE_SAFETENSORS_CONVERSION": "1",
        }  # fmt: skip
        return kept | set_here | ({"HF_TOKEN": token} if token else {}) | more

    def asked_for(self, match: str, method: str | None = None) -> list[Request]:
        """The requests so far whose path matches."""
        found = re.compile(match)
        with self.lock:
            return [r for r in self.requests if found.search(r.path) and method in (None, r.method)]

    # What a request is answered with

    def answer(
        self, method: str, path: str, query: dict[str, list[str]], headers: Any, body: bytes
    ) -> Answer:
        """The answer if nothing goes wrong; ``path`` is still quoted, for slashes inside of its parts."""
        if (found := RESOLVE.fullmatch(path)) and method in ("GET", "HEAD"):
            handle, kind = self._file, found["kind"] or "models"
        elif found := API.fullmatch(path):
            handle, kind = self._api, found["kind"]
        else:
            with self.lock:
                self.unknown.append(path)
            return _error(404, "", "Sorry, we can't find the page you are looking for.")
        name = unquote(found["repo"])
        token = headers.get("Authorization", "").removeprefix("Bearer ")
        repository = self.repositories.get((kind, name.lower()))
        if repository is None:
            # the Hub doesn't tell a stranger whether a repository is missing or private
            return (
                _error(404, "RepoNotFound", "Repository not found")
                if token
                else _error(401, "RepoNotFound", "Invalid username or password.")
            )
        revision = unquote(found["revision"] or "main")
        if revision not in ("main", repository.commit):
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        asked = {**found.groupdict(), "path": unquote(found["path"] or ""), "method": method}
        return handle(repository, asked, query, headers, token, body)

    def _file(
        self, repository: Repository, asked: dict[str, str], _query: Any, headers: Any, token: str, _: bytes
    ) -> Answer:
        if refusal := gate(repository, token):
            return refusal
        commit = {"X-Repo-Commit": repository.commit}
        entry = repository.entries.get(asked["path"])
        if entry is None:
            return _error(404, "EntryNotFound", "Entry not found", commit)
        fixed = commit | {"ETag": f'"{entry.etag}"', "Accept-Ranges": "bytes"}
        fixed["Content-Type"] = "application/octet-stream" if entry.large else "text/plain; charset=utf-8"
        if entry.large:
            fixed |= {"X-Linked-ETag": f'"{entry.etag}"', "X-Linked-Size": str(entry.size)}
        if asked["method"] == "HEAD":
            return Answer(200, fixed, size=entry.size)
        span = span_of(headers.get("Range"), entry.size)
        if span is None:
            return Answer(200, fixed, entry.file.read_bytes(), 0, entry.size)
        start, end = span
        if start >= end:
            return _error(416, "", "Range not satisfiable", {"Content-Range": f"bytes */{entry.size}"})
        with entry.file.open("rb") as file:
            file.seek(start)
            part = file.read(end - start)
        fixed["Content-Range"] = f"bytes {start}-{end - 1}/{entry.size}"
        return Answer(206, fixed, part, start, entry.size)

    def _api(
        self,
        repository: Repository,
        asked: dict[str, str],
        query: dict[str, list[str]],
        headers: Any,
        token: str,
        body: bytes,
    ) -> Answer:
        call = asked["call"]
        if call in (None, "revision"):
            return _json(info_of(repository, with_blobs="blobs" in query))
        if call == "auth-check":
            return gate(repository, token) or _json({})
        if call == "tree":
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            listed = list(tree_of(repository, asked["path"], recursive))
            if not listed and asked["path"]:
                return _error(404, "EntryNotFound", f"{asked['path']} does not exist on main")
            return _json(listed)
        is_json = "json" in headers.get("Content-Type", "")
        fields = json.loads(body or b"{}") if is_json else parse_qs(body.decode())
        everything = {row["path"]: row for row in tree_of(repository, "", recursive=True)}
        return _json([everything[path] for path in fields.get("paths", []) if path in everything])

    def broken(self, method: str, path: str, answer: Answer) -> str | Answer:
        """The answer after the first fault that applies: changed, or "stall", or "cut"."""
        fault = self._next_fault(method, path, answer)
        if fault is None:
            return answer
        if fault.kind == "damage":
            body = bytearray(answer.body)
            body[_spoiled(fault, answer) - answer.start] ^= 0x55
            answer.body = bytes(body)
            return answer
        if fault.kind in ("stall", "cut"):
            return fault.kind
        if fault.kind == "404":
            what = "Entry" if "/resolve/" in path else "Repo"
            kept = {key: value for key, value in answer.headers.items() if key == "X-Repo-Commit"}
            return _error(404, f"{what}NotFound", f"{what} not found", kept)
        return _error(int(fault.kind), "", WORDS[fault.kind])

    def _next_fault(self, method: str, path: str, answer: Answer) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.left == 0 or fault.method not in (None, method) or not fault.match.search(path):
                    continue
                if fault.kind in ("cut", "damage"):
                    if method == "HEAD" or not answer.body:
                        continue
                    offset = _spoiled(fault, answer) - answer.start
                    if fault.kind == "damage" and not 0 <= offset < len(answer.body):
                        continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                if fault.left is not None:
                    fault.left -= 1
                return fault
        return None


WORDS = {
    "401": "Invalid credentials in Authorization header",
    "403": "Please enable access to public gated repositories in your fine-grained token settings "
    "to view this repository.",
    "500": "Internal Error - We're working hard to fix this as soon as possible!",
}


def _spoiled(fault: Fault, answer: Answer) -> int:
    return (answer.size or len(answer.body)) // 2 if fault.at is None else fault.at


def _json(value: object) -> Answer:
    return Answer(200, {"Content-Type": "application/json; charset=utf-8"}, json.dumps(value).encode())


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Answer:
    said = {"X-Error-Code": code} if code else {}
    said |= {"X-Error-Message": message, "Content-Type": "application/json; charset=utf-8"}
    return Answer(status, said | (headers or {}), json.dumps({"error": message}).encode())


def files_of(folder: Path) -> Iterator[Path]:
    """Every file below a folder, in an order that doesn't depend on the machine."""
    return iter(sorted(path for path in Path(folder).rglob("*") if path.is_file()))


def entry_of(path: Path) -> Entry:
    """What git, or git-lfs, would know a file by."""
    data = path.read_bytes()
    large = path.name.endswith(LARGE)
    sha256 = hashlib.sha256(data).hexdigest()
    in_git = pointer_of(sha256, len(data)) if large else data
    blob = hashlib.sha1(f"blob {len(in_git)}\0".encode() + in_git).hexdigest()
    return Entry(path, len(data), sha256 if large else blob, blob, large)


def pointer_of(sha256: str, size: int) -> bytes:
    """The file that git keeps in place of an LFS object."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def gate(repository: Repository, token: str) -> Answer | None:
    """The Hub's refusal of a gated repository's files, or None for whom they are meant."""
    if repository.gated_token in (None, token):
        return None
    start = f"Access to {repository.kind[:-1]} {repository.name} is restricted"
    if not token:
        how = "You must have access to it and be authenticated to access it. Please log in."
        return _error(401, "GatedRepo", f"{start}. {how}")
    section = "" if repository.kind == "models" else "datasets/"
    page = f"https://huggingface.co/{section}{repository.name}"
    how = f"and you are not in the authorized list. Visit {page} to ask for access."
    return _error(403, "GatedRepo", f"{start} {how}")


def span_of(header: str | None, size: int) -> tuple[int, int] | None:
    """Half-open range of bytes; None for the whole file; an empty one can't be satisfied."""
    found = RANGE.fullmatch(header.strip()) if header else None
    if found is None or not any(found.groups()):
        return None
    first, last = found.groups()
    if not first:
        return max(size - int(last), 0), size
    return int(first), min(int(last) + 1, size) if last else size


def info_of(repository: Repository, with_blobs: bool) -> dict[str, Any]:
    """What the Hub says about a repository at a revision."""
    siblings: list[dict[str, Any]] = [{"rfilename": name} for name in repository.entries]
    if with_blobs:
        for sibling, entry in zip(siblings, repository.entries.values(), strict=True):
            sibling |= {"size": entry.size, "blobId": entry.blob}
            if entry.large:
                pointer = len(pointer_of(entry.etag, entry.size))
                sibling["lfs"] = {"sha256": entry.etag, "size": entry.size, "pointerSize": pointer}
    return {
        "_id": repository.commit[:24], "id": repository.name, "author": repository.name.split("/")[0],
        "sha": repository.commit, "lastModified": DATE, "createdAt": DATE, "private": False,
        "gated": "manual" if repository.gated_token else False, "disabled": False, "downloads": 0,
        "likes": 0, "tags": [], "siblings": siblings,
    }  # fmt: skip


def tree_of(repository: Repository, below: str, recursive: bool) -> Iterator[dict[str, Any]]:
    """Files and folders below a path; a file's own path gives that file."""
    inside = f"{below.rstrip('/')}/" if below else ""
    folders: set[str] = set()
    for name, entry in repository.entries.items():
        if name != below and not name.startswith(inside):
            continue
        parents = [str(parent) for parent in Path(name).parents if str(parent) != "."]
        for folder in reversed(parents):
            direct = folder.startswith(inside) and "/" not in folder[len(inside) :]
            if folder in folders or folder == below or not folder.startswith(inside):
                continue
            if recursive or direct:
                folders.add(folder)
                oid = hashlib.sha1(f"{repository.commit}/{folder}".encode()).hexdigest()
                yield {"type": "directory", "oid": oid, "size": 0, "path": folder}
        if recursive or name == below or "/" not in name[len(inside) :]:
            row: dict[str, Any] = {"type": "file", "oid": entry.blob, "size": entry.size, "path": name}
            if entry.large:
                pointer = len(pointer_of(entry.etag, entry.size))
                row["lfs"] = {"oid": entry.etag, "size": entry.size, "pointerSize": pointer}
            yield row


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    hub: LocalHub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, after its timeout say, is nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    # headers and body are two writes: without this, the second waits for the first's late ACK
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        with self.server.hub.lock:
            self.server.hub.connections.add(self.connection)

    def finish(self) -> None:
        with self.server.hub.lock:
            self.server.hub.connections.discard(self.connection)
        super().finish()

    def do_GET(self) -> None:
        self._respond()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _respond(self) -> None:
        hub, method = self.server.hub, self.command
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        answer = hub.answer(method, parts.path, parse_qs(parts.query), self.headers, body)
        outcome = hub.broken(method, path, answer)
        if outcome == "stall":
            self._log(path, 0)
            hub.stopped.wait()
            self.close_connection = True
            return
        cut = outcome == "cut"
        answer = answer if isinstance(outcome, str) else outcome
        length = len(answer.body)
        self._log(path, answer.status)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length or answer.size))
        self.end_headers()
        if method != "HEAD":
            self.wfile.write(answer.body[: length // 2] if cut else answer.body)
        if cut:
            self.close_connection = True

    def _log(self, path: str, status: int) -> None:
        had_authorization = "Authorization" in self.headers
        entry = Request(self.command, path, status, had_authorization, self.headers.get("Range"))
        with self.server.hub.lock:
            self.server.hub.requests.append(entry)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are kept in the hub's list, not printed."""
