"""Read the documents of a corpus, by one function for each kind of source.

A sequence never crosses the border between two documents: rows of the Pile, Wikipedia articles, files,
lines of a .jsonl file. Text is read while it is used, and no more of it than that.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qsae_bench.errors import CannotRun, QsaeError, did_you_mean
from qsae_bench.files import sha256_of
from qsae_bench.registry.specs import CorpusSpec

PILE, PILE_SUBSTITUTE = "NeelNanda/pile-10k", "monology/pile-uncopyrighted"
SHUFFLE_BUFFER = 10_000
"""rows, as in the study: all of pile-10k"""
FIRST_ROW_PATIENCE = 30.0
"""in units of the hub's timeout: the first row comes only when the shuffle's buffer is full"""

WIKITEXT, WIKITEXT_CONFIG = "Salesforce/wikitext", "wikitext-2-raw-v1"
WIKITEXT_SPLITS = ("test", "validation", "train")
ARTICLE = re.compile(r" = (?!= ).* = ?")
"""the line with an article's title; a section's has two or more = on each side"""

Report = Callable[[str], None]
"""called with one line about what did not go as usual"""


@dataclass(frozen=True)
class TextSource:
    """Hold documents and the name of what they are read from."""

    source: str
    documents: Iterator[str]
    is_one_document: bool = False
    """whether there is no second one"""


def open_text(spec: CorpusSpec, report: Report) -> TextSource:
    """Open the documents of ``spec``; reports if they come from another source than the named one.

    Raises:
        CannotRun: they can't be downloaded here; also later, while the documents are read.
        QsaeError: the file is missing or malformed, or the split unknown; also while they are read.
    """
    if spec.kind not in SOURCES:
        raise QsaeError(f"corpus {spec.name!r}: kind {spec.kind!r} has no text")
    return SOURCES[spec.kind](spec, report)


# -- generated --------------------------------------------------------------------------------------


def _grammar(spec: CorpusSpec, report: Report) -> TextSource:
    from qsae_bench.tiny.grammar import documents

    return TextSource("grammar", documents(spec.seed, spec.split))


# -- the hub ----------------------------------------------------------------------------------------


def _pile10k(spec: CorpusSpec, report: Report) -> TextSource:
    """Stream and shuffle the Pile's rows as the study does (pile-10k is one file), or its substitute's."""
    return _from_hub(spec, (PILE, PILE_SUBSTITUTE), None, "train", report, shuffle=True)


def _wikitext2(spec: CorpusSpec, report: Report) -> TextSource:
    split = "test" if spec.split == CorpusSpec.split else spec.split  # an entry that names none
    if split not in WIKITEXT_SPLITS:
        raise QsaeError(
            f"corpus {spec.name!r}: wikitext has no split {split!r}{did_you_mean(split, WIKITEXT_SPLITS)}"
        )
    text = _from_hub(spec, (WIKITEXT,), WIKITEXT_CONFIG, split, report)
    return TextSource(f"{WIKITEXT} {WIKITEXT_CONFIG} {split}", articles(text.documents))


def articles(lines: Iterable[str]) -> Iterator[str]:
    """Join wikitext's rows, which are lines, to articles: few lines would fill a sequence."""
    article: list[str] = []
    for line in lines:
        if ARTICLE.fullmatch(line.rstrip("\n")):
            yield from _unless_empty("".join(article))
            article = []
        article.append(line)
    yield from _unless_empty("".join(article))


def _unless_empty(text: str) -> Iterator[str]:
    if text.strip():
        yield text


def _from_hub(
    spec: CorpusSpec,
    repos: Iterable[str],
    config: str | None,
    split: str,
    report: Report,
    shuffle: bool = False,
) -> TextSource:
    """Read the rows' text of the first of ``repos`` that can be read.

    The first row is fetched at once: until then another source may take over.
    """
    from qsae_bench.models.hub import with_timeout
    from qsae_bench.models.hub_errors import explain

    def opened(repo: str) -> tuple[Iterator[str], str | None]:
        rows = _stream(repo, config, split)
        rows = shuffled(rows, spec.seed, SHUFFLE_BUFFER) if shuffle else rows
        return rows, next(rows, None)

    failures: list[str] = []
    for repo in repos:
        try:
            rows, first = with_timeout(partial(opened, repo), patience=FIRST_ROW_PATIENCE)
        except Exception as error:  # whichever of datasets, fsspec, httpx, aiohttp, pyarrow it came from
            failures.append(f"{repo} can't be read: {explain(error)}")
            if isinstance(error, TimeoutError):
                break  # a hub that hangs would hang for the next one too
            continue
        if first is None:
            failures.append(f"{repo} can't be read: it has no rows")
            continue
        if failures:
            report(f"corpus {spec.name!r}: {'; '.join(failures)}; {repo} is read instead")
        return TextSource(repo, itertools.chain([first], _to_the_end(rows, spec, repo)))
    raise CannotRun(f"corpus {spec.name!r}: {'; '.join(failures)}")


def _stream(repo: str, config: str | None, split: str) -> Iterator[str]:
    import datasets

    datasets.disable_progress_bars()
    # its own are 20 times 5 seconds, on top of each request's timeout: ten minutes for a dead hub
    datasets.config.STREAMING_READ_MAX_RETRIES = 3
    datasets.config.STREAMING_READ_RETRY_INTERVAL = 1
    stream: Any = datasets.load_dataset(repo, config, split=split, streaming=True)
    for row in stream:
        yield row["text"]


def shuffled(rows: Iterable[str], seed: int, size: int) -> Iterator[str]:
    """Yield rows in the order that ``datasets``' streaming shuffle had when the study was made.

    There is a buffer of ``size`` rows, one of which is drawn at random as each next row comes; what is left
    at the end is shuffled. The library's own order changed in 2026 and may change again, and one spec must
    give the same ids wherever it runs. (Its shuffle of several files also mixes those; this one takes them
    in order.)
    """
    rng = np.random.default_rng(seed)
    drawn = (int(i) for _ in itertools.count() for i in rng.integers(0, size, size=1000))
    buffer: list[str] = []
    for row in rows:
        if len(buffer) < size:
            buffer.append(row)
            continue
        place = next(drawn)
        yield buffer[place]
        buffer[place] = row
    rng.shuffle(buffer)
    yield from buffer


def _to_the_end(rows: Iterator[str], spec: CorpusSpec, repo: str) -> Iterator[str]:
    """Yield the rest of a stream; a broken one is an error: it can't be resumed from another source."""
    from qsae_bench.models.hub_errors import explain

    for done in itertools.count(1):
        try:
            text = next(rows, None)
        except Exception as error:
            raise CannotRun(
                f"corpus {spec.name!r}: {repo} broke off after {done} documents: {explain(error)}"
            ) from None
        if text is None:
            return
        yield text


# -- local files ---------------------------------------------------------------------------------


def _textfile(spec: CorpusSpec, report: Report) -> TextSource:
    path = _own_path(spec)
    reader = _json_lines if path.suffix == ".jsonl" else _whole_files
    documents = _not_empty(reader(spec, path), spec, path)
    first = list(itertools.islice(documents, 2))
    return TextSource(_shown(path), itertools.chain(first, documents), is_one_document=len(first) == 1)


def content_digest(spec: CorpusSpec) -> str:
    """Return the sha256 over the names and bytes of a textfile's file, or of all files of its folder."""
    digest = hashlib.sha256()
    for path in _files(spec, _own_path(spec)):
        digest.update(os.fsencode(path.name) + b"\0")
        with _read_errors(spec, path):
            digest.update(bytes.fromhex(sha256_of(path)))
    return digest.hexdigest()


def _own_path(spec: CorpusSpec) -> Path:
    if spec.path is None:
        raise QsaeError(f"corpus {spec.name!r}: kind 'textfile' needs a path")
    path = Path(os.path.expanduser(spec.path))
    where = f"corpus {spec.name!r}: {_shown(path)}"
    if os.path.isdir(path):  # os.path, because it returns False where the path can't be looked up
        return path
    if not os.path.isfile(path):
        raise QsaeError(f"{where}: no such file or folder")
    if path.suffix not in (".txt", ".jsonl"):
        raise QsaeError(
            f"{where}: expected .txt (one document), .jsonl (one a line, under the key text) "
            "or a folder of .txt files"
        )
    return path


def _files(spec: CorpusSpec, path: Path) -> list[Path]:
    if not os.path.isdir(path):
        return [path]
    with _read_errors(spec, path):
        found = sorted(file for file in path.iterdir() if file.suffix == ".txt" and file.is_file())
    if not found:
        raise QsaeError(f"corpus {spec.name!r}: {_shown(path)}: no .txt file in this folder")
    return found


def _whole_files(spec: CorpusSpec, path: Path) -> Iterator[str]:
    for file in _files(spec, path):
        with _read_errors(spec, file):
            content = file.read_bytes()
        yield _decoded(content, f"corpus {spec.name!r}: {_shown(file)}")


def _json_lines(spec: CorpusSpec, path: Path) -> Iterator[str]:
    # bytes: a decoder that reads ahead can't name the line with the error
    with _read_errors(spec, path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _row_text(line, f"corpus {spec.name!r}: {_shown(path)}:{number}")


def _row_text(line: bytes, where: str) -> str:
    decoded = _decoded(line, where)
    try:
        row = json.loads(decoded)
        text = row.get("text") if isinstance(row, dict) else None
        if isinstance(text, str):
            text.encode()  # an escape may be half of a surrogate pair, which no tokenizer takes
            return text
    except UnicodeEncodeError:
        raise QsaeError(f"{where}: its text has half of a surrogate pair") from None
    except (ValueError, RecursionError) as error:  # the latter: nested deeper than any text is
        raise QsaeError(f"{where}: not valid JSON: {error}") from None
    raise QsaeError(f'{where}: expected an object with a string "text"')


def _not_empty(documents: Iterator[str], spec: CorpusSpec, path: Path) -> Iterator[str]:
    found = False
    for text in documents:
        found = found or bool(text.strip())
        yield text
    if not found:
        raise QsaeError(f"corpus {spec.name!r}: {_shown(path)}: there is no text in it")


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise QsaeError(f"{where}: not UTF-8 text (at byte {error.start})") from None


@contextlib.contextmanager
def _read_errors(spec: CorpusSpec, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f"corpus {spec.name!r}: {_shown(path)}"
        raise QsaeError(f"{where}: can't be read: {error.strerror or error}") from None


def _shown(path: Path) -> str:
    """Return a path for a message: on one line, whatever is in its name."""
    return str(path) if str(path).isprintable() else repr(str(path))


SOURCES: dict[str, Callable[[CorpusSpec, Report], TextSource]] = {
    "grammar": _grammar, "pile10k": _pile10k, "wikitext2": _wikitext2, "textfile": _textfile,
}  # fmt: skip
