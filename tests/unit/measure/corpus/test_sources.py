"""Documents of each kind, and what is reported where they can't be had. datasets is stood in for."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import corpus_spec, one_line
from qsae_bench.errors import CannotRun, QsaeError
from qsae_bench.measure.corpus.sources import (
    PILE,
    PILE_SUBSTITUTE,
    SHUFFLE_BUFFER,
    SOURCES,
    WIKITEXT,
    articles,
    content_digest,
    open_text,
    shuffled,
)
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.specs import CORPUS_KINDS

LEGACY_SEED_3 = "lhckabegjfdi"
"""the first twelve letters, shuffled by datasets as it was before 2026, with seed 3"""


class Reports(list):
    """Records the lines that are reported."""

    def __call__(self, line: str) -> None:
        assert len(line.splitlines()) == 1
        self.append(line)


def documents(report=None, **spec) -> list[str]:
    return list(open_text(corpus_spec(name="mine", **spec), report or Reports()).documents)


# -- the hub ----------------------------------------------------------------------------------------


class Stream:
    """What ``load_dataset(streaming=True)`` returns: rows, and an exception among them breaks it off."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        for row in self.rows:
            if isinstance(row, BaseException):
                raise row
            yield {"text": row, "meta": {}}


@pytest.fixture
def hub(monkeypatch):
    """hub({repo: rows or an exception}) -> what will have been asked for."""
    import datasets

    def served(repos):
        asked = []

        def load_dataset(repo, config, *, split, streaming):
            asked.append((repo, config, split))
            assert streaming, "no more is downloaded than is read"
            if isinstance(repos[repo], BaseException):
                raise repos[repo]
            return Stream(repos[repo])

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return served


def unreachable() -> BaseException:
    import httpx

    return httpx.ConnectError("[Errno -2] Name or service not known")


def unknown() -> BaseException:
    from datasets.exceptions import DatasetNotFoundError

    return DatasetNotFoundError("Dataset 'x' doesn't exist on the Hub or cannot be accessed.\nDetails")


def corrupt() -> BaseException:
    from pyarrow.lib import ArrowInvalid

    return ArrowInvalid("Parquet magic bytes not found\nin footer")


FAILURES = [
    unreachable,
    unknown,
    corrupt,
    OSError,
    lambda: ValueError("Compression type zstd\nnot supported"),
]


@pytest.mark.parametrize(
    ("files", "name", "expected"),
    [
        ({"a.txt": "x"}, "a.txt", True), ({"a.txt": "x"}, "", True), ({"a.txt": "x", "b.txt": "y"}, "", False),
        ({"a.jsonl": '{"text": "x"}\n'}, "a.jsonl", True),
        ({"a.jsonl": '{"text": "x"}\n\n{"text": "y"}'}, "a.jsonl", False),
    ],
)  # fmt: skip
def test_a_text_of_one_document_is_known_as_one(tmp_path, files, name, expected):
    for file, content in files.items():
        (tmp_path / file).write_text(content)
    found = open_text(corpus_spec(kind="textfile", path=str(tmp_path / name)), Reports())
    assert found.is_one_document is expected
    assert list(found.documents) == ["x", "y"][: 2 - expected]


def test_the_pile_is_streamed_and_shuffled_as_the_study_does(hub):
    asked = hub({PILE: list("abcdefghijkl")})
    report = Reports()
    text = open_text(corpus_spec(kind="pile10k", seed=3), report)
    assert "".join(text.documents) == LEGACY_SEED_3, "12 rows fit the buffer"
    assert text.source == "NeelNanda/pile-10k"
    assert asked == [("NeelNanda/pile-10k", None, "train")]
    assert SHUFFLE_BUFFER == 10_000
    assert report == []


@pytest.mark.parametrize("failure", FAILURES)
def test_the_piles_substitute_is_used_and_reported(hub, failure):
    for rows in (failure(), [failure()], []):
        asked = hub({PILE: rows, PILE_SUBSTITUTE: list("abcdefghijkl")})
        report = Reports()
        text = open_text(corpus_spec(name="mine", kind="pile10k", seed=3), report)
        assert "".join(text.documents) == LEGACY_SEED_3
        assert text.source == "monology/pile-uncopyrighted"
        assert [repo for repo, *_ in asked] == [PILE, PILE_SUBSTITUTE]
        (line,) = report
        assert "'mine'" in line and PILE in line and PILE_SUBSTITUTE in line


@pytest.mark.parametrize("failure", FAILURES)
def test_neither_pile_to_be_had_is_one_line(hub, failure):
    hub({PILE: failure(), PILE_SUBSTITUTE: [failure()]})
    report = Reports()
    with pytest.raises(CannotRun) as caught:
        documents(report, kind="pile10k")
    message = one_line(caught.value)
    assert "'mine'" in message and PILE in message and PILE_SUBSTITUTE in message
    assert report == [], "there is no substitute to speak of"


@pytest.mark.parametrize("kind", ["pile10k", "wikitext2"])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_stream_that_breaks_is_not_completed_from_elsewhere(hub, monkeypatch, kind, failure):
    monkeypatch.setattr(
        "qsae_bench.measure.corpus.sources.SHUFFLE_BUFFER", 1
    )  # else all is read before the first
    rows = [" = A = \n", "text\n", " = B = \n", failure()]
    if kind == "pile10k":
        rows.insert(3, "in the buffer\n")
    asked = hub({PILE: rows, WIKITEXT: rows, PILE_SUBSTITUTE: ["other"] * 9})
    read = []
    with pytest.raises(CannotRun, match="broke off after 3") as caught:
        for text in open_text(corpus_spec(name="mine", kind=kind), Reports()).documents:
            read.append(text)
    assert "'mine'" in one_line(caught.value)
    assert len(asked) == 1 and "other" not in read


@pytest.mark.parametrize("where", ["opening", "first", "later"])
def test_an_interrupt_is_no_failure_of_the_hub(hub, where):
    rows = {
        "opening": KeyboardInterrupt(),
        "first": [KeyboardInterrupt()],
        "later": ["a", KeyboardInterrupt()],
    }
    hub({PILE: rows[where], PILE_SUBSTITUTE: ["a"]})
    with pytest.raises(KeyboardInterrupt):
        documents(kind="pile10k")


def test_no_more_is_read_than_is_asked_for(hub):
    lines = [" = A = \n", "a\n", " = B = \n", AssertionError("a row too many")]
    hub({WIKITEXT: lines})
    assert next(open_text(corpus_spec(kind="wikitext2"), Reports()).documents) == " = A = \na\n"


@pytest.mark.parametrize(
    ("size", "seed", "expected"), [(12, 0, "jchefladgkib"), (5, 0, "edcbiakjgflh"), (100, 3, LEGACY_SEED_3)]
)
def test_the_order_is_that_of_datasets_before_2026(size, seed, expected):
    """Made with that library's ``BufferShuffledExamplesIterable`` of the time."""
    assert "".join(shuffled("abcdefghijkl", seed, size)) == expected


def test_pile_10k_in_the_studys_order():
    order = [int(row) for row in shuffled(map(str, range(10_000)), 0, 10_000)]
    assert order[:6] == [3577, 8925, 1634, 485, 4753, 726]
    assert sorted(order) == list(range(10_000))


@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 9))
def test_shuffling_loses_nothing_and_holds_no_more_than_its_buffer(count, size, seed):
    read = []

    def rows():
        for i in range(count):
            read.append(i)
            yield str(i)

    order = []
    for row in shuffled(rows(), seed, size):
        assert len(read) <= len(order) + 1 + size
        order.append(int(row))
    assert sorted(order) == list(range(count))


def test_wikitexts_documents_are_its_articles(hub):
    lines = [
        "", " = Robert Boulter = \n", "", " Robert Boulter is an actor . \n", " = = Career = = \n",
        " In 2000 = 2001 he = \n", " = = = 2002 = = = \n", " more \n", "", " = 2 = 1 + 1 = \n", " sums \n",
    ]  # fmt: skip
    asked = hub({WIKITEXT: lines})
    text = open_text(corpus_spec(kind="wikitext2", split="validation"), Reports())
    found = list(text.documents)
    assert found == ["".join(lines[1:9]), "".join(lines[9:])]
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1", "validation")]
    assert text.source == "Salesforce/wikitext wikitext-2-raw-v1 validation"


@given(st.lists(st.sampled_from(["", "\n", " a \n", " = T = \n", " = = S = = \n"])))
def test_articles_keep_every_line_in_order_and_begin_with_their_title(lines):
    found = list(articles(lines))
    before = "".join(lines).removesuffix("".join(found))
    assert before + "".join(found) == "".join(lines)
    assert not before.strip(), "no more than blank lines before the first"
    titles = lines.count(" = T = \n")
    assert len(found) - titles in (0, 1)
    assert all(article.count(" = T = \n") == 1 for article in found[len(found) - titles :])


def test_wikitexts_test_split_is_what_an_entry_without_one_means(hub):
    asked = hub({WIKITEXT: [" text \n"]})
    documents(kind="wikitext2")
    assert asked[0][2] == "test"
    assert load_registry().corpus("wikitext2").split == "test"


def test_an_unknown_split_of_wikitext_is_one_line(hub):
    hub({WIKITEXT: []})
    with pytest.raises(QsaeError, match="did you mean 'validation'") as caught:
        documents(kind="wikitext2", split="valid")
    one_line(caught.value)


def test_every_kind_with_text_has_a_source():
    assert set(SOURCES) == set(CORPUS_KINDS) - {"random"}
    with pytest.raises(QsaeError, match="no text") as caught:
        documents(kind="random")
    one_line(caught.value)


# -- one's own text ---------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """own(name, content) -> the documents of that file; of its folder where the name is a list."""

    def read(names, *contents):
        single = isinstance(names, str)
        for name, content in zip([names] if single else names, contents, strict=True):
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return documents(kind="textfile", path=str(tmp_path / names if single else tmp_path))

    return read


def test_a_txt_file_is_one_document(own):
    assert own("a.txt", "one\n\ntwo\n---\nthree") == ["one\n\ntwo\n---\nthree"]


def test_a_jsonl_file_has_a_document_a_line(own):
    rows = ["one\ntwo", "dr\u00fc\u2028ben", "\U0001f600", ""]
    lines = [json.dumps({"meta": 1, "text": row}, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows)]
    assert own("a.jsonl", "\n".join(lines) + "\n\n") == rows


def test_a_folder_has_a_document_a_txt_file(own):
    assert own(["b.txt", "a.txt", "c.md", "d.jsonl"], "B", "A", "C", "{") == ["A", "B"]


def test_a_byte_order_mark_and_windows_line_ends_are_no_text(own):
    assert own("a.txt", b"\xef\xbb\xbfone\r\ntwo") == ["one\ntwo"]
    assert own("a.jsonl", b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}\r\n') == ["one", "two"]


def test_a_path_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("mine")
    text = open_text(corpus_spec(kind="textfile", path="~/a.txt"), Reports())
    assert (list(text.documents), text.source) == (["mine"], str(tmp_path / "a.txt"))


GOOD = b'{"text": "fine"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message_part"),
    [
        ("a.txt", b"", "there is no text"),
        ("a.txt", b" \n\t\n", "there is no text"),
        ("a.txt", b"caf\xe9", "not UTF-8 text (at byte 3)"),
        ("a.jsonl", b"", "there is no text"),
        ("a.jsonl", b'{"text": " "}', "there is no text"),
        ("a.jsonl", GOOD + b'{"text": "caf\xe9"}', "a.jsonl:2: not UTF-8"),
        ("a.jsonl", GOOD + b"\n" + b'{"text": ', "a.jsonl:3: not valid JSON"),
        ("a.jsonl", GOOD + b"[" * 100_000, "a.jsonl:2: not valid JSON"),
        ("a.jsonl", GOOD + b"1" * 10_000, "a.jsonl:2: not valid JSON"),
        ("a.jsonl", GOOD + b'"text"', 'a.jsonl:2: expected an object with a string "text"'),
        ("a.jsonl", GOOD + b'{"content": "x"}', "a.jsonl:2: expected an object"),
        ("a.jsonl", GOOD + b'{"text": 5}', "a.jsonl:2: expected an object"),
        ("a.jsonl", GOOD + b'{"text": "\\ud83d"}', "a.jsonl:2: its text has half of a surrogate pair"),
        ("a.md", b"text", "expected .txt"),
        ("a\nb.pdf", b"%PDF", "expected .txt"),
        ("a\nb.txt", b"\xff", "not UTF-8"),
    ],
)
def test_a_bad_file_is_one_line_that_names_the_place(own, name, content, message_part):
    with pytest.raises(QsaeError) as caught:
        own(name, content)
    message = one_line(caught.value)
    assert "'mine'" in message and message_part in message


@pytest.mark.parametrize(
    "path", ["nowhere.txt", "x" * 5000 + ".txt", "~nobody/a.txt", "a\0.txt", "/dev/null"]
)
def test_a_file_that_is_not_there_is_one_line(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    for use in (documents, lambda **spec: content_digest(corpus_spec(name="mine", **spec))):
        with pytest.raises(QsaeError, match="no such file or folder") as caught:
            use(kind="textfile", path=path)
        assert "'mine'" in one_line(caught.value)


def test_a_folder_without_text_is_one_line(tmp_path):
    (tmp_path / "a.md").write_text("text")
    with pytest.raises(QsaeError, match=r"no \.txt file") as caught:
        documents(kind="textfile", path=str(tmp_path))
    one_line(caught.value)


def test_a_file_that_can_not_be_read_is_one_line(tmp_path, monkeypatch):
    """Permissions don't stop root, so opening is what fails here."""
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.jsonl").write_text("text")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(Path, "iterdir", refuse)
    for path in (tmp_path / "a.txt", tmp_path / "a.jsonl", tmp_path):
        with pytest.raises(QsaeError, match="can't be read: Permission denied") as caught:
            documents(kind="textfile", path=str(path))
        one_line(caught.value)
        with pytest.raises(QsaeError, match="Permission denied"):
            content_digest(corpus_spec(kind="textfile", path=str(path)))


def test_the_content_digest_is_of_names_and_bytes(tmp_path):
    def digest(path=tmp_path):
        return content_digest(corpus_spec(kind="textfile", path=str(path)))

    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    seen = [digest()]
    (tmp_path / "c.md").write_text("not part of it")
    assert digest() == seen[0]
    os.replace(tmp_path / "b.txt", tmp_path / "c.txt")
    seen.append(digest())
    (tmp_path / "c.txt").write_text("twO")
    seen += [digest(), digest(tmp_path / "a.txt"), digest(tmp_path / "c.txt")]
    assert len(set(seen)) == len(seen)
    inner = hashlib.sha256(b"one").digest()
    assert digest(tmp_path / "a.txt") == hashlib.sha256(b"a.txt\0" + inner).hexdigest()
