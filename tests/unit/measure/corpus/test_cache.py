"""A cached corpus is the one that was built; a damaged one is built again; keys name what matters."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import corpus_spec, one_line
from chat_templates import GEMMA
from qsae_bench.errors import CannotRun, QsaeError
from qsae_bench.measure.corpus import cache, sources
from qsae_bench.measure.corpus.cache import (
    DamagedCorpus,
    corpus_key,
    load_corpus,
    read_corpus,
    write_corpus,
)
from qsae_bench.measure.corpus.packing import Corpus, build_corpus, fingerprint
from qsae_bench.measure.corpus.sources import PILE, PILE_SUBSTITUTE, TextSource
from qsae_bench.measure.corpus.vocabulary import Vocabulary
from qsae_bench.tiny import MODEL_DIR

TEXTS = [
    "the first document, which is long enough for several sequences of nine",
    "the second",
    "x",
    "and one more to end with",
]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True)
    made.chat_template = GEMMA
    return made


@pytest.fixture
def pile(monkeypatch):
    """The pile's texts and source, how often it was opened, and whether it can be."""

    class Pile:
        texts, source, opened, offline = TEXTS, PILE, 0, False

    def opened(spec, report):
        Pile.opened += 1
        if Pile.offline:
            raise CannotRun("the hub can't be reached")
        return TextSource(Pile.source, iter(Pile.texts))

    monkeypatch.setitem(sources.SOURCES, "pile10k", opened)
    return Pile


def spec_of(**changes):
    return corpus_spec(**({"name": "pile", "kind": "pile10k", "sequence_length": 9} | changes))


def assert_equal(one: Corpus, other: Corpus) -> None:
    assert (one.ids.dtype, one.valid.dtype) == (other.ids.dtype, other.valid.dtype) == (np.int64, bool)
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.valid, other.valid)
    np.testing.assert_array_equal(one.documents, other.documents)
    rest = [(c.spec, c.fingerprint, c.dropped, c.source, c.is_one_document) for c in (one, other)]
    assert rest[0] == rest[1]


VARIATIONS = {
    "documents": {}, "concatenated": {"packing": "concatenated"}, "every": {"every_position": True},
    "chat": {"chat": True, "sequence_length": 40},
}  # fmt: skip


@pytest.mark.parametrize("changes", VARIATIONS.values(), ids=VARIATIONS)
def test_a_cached_corpus_is_the_built_one_and_needs_no_network(tokenizer, pile, tmp_path, changes):
    pile.texts = [text * 4 for text in TEXTS]
    spec = spec_of(**changes)
    fresh = build_corpus(spec, tokenizer, 24)
    first = load_corpus(spec, tokenizer, 24, tmp_path / "corpora")
    pile.offline = True
    reported: list[str] = []
    again = load_corpus(spec, tokenizer, 24, tmp_path / "corpora", report=reported.append)
    assert_equal(first, fresh)
    assert_equal(again, fresh)
    assert reported == [] and pile.opened == 2
    (file,) = (tmp_path / "corpora").iterdir()
    assert file.suffix == ".safetensors"
    again.ids[0, 0] += 1  # torch.from_numpy wants to be able to, and warns where it can't


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2**40), min_size=4, max_size=4), min_size=1, max_size=9),
    st.booleans(), st.integers(0, 9), st.text(st.characters(exclude_categories=["Cs"])),
)  # fmt: skip
def test_whatever_is_written_is_read(tmp_path_factory, rows, every, dropped, source):
    ids = np.asarray(rows, dtype=np.int64)
    valid = np.ones(ids.shape, dtype=bool) if every else ids % 3 > 0
    spec = spec_of(sequence_length=4)
    digest = fingerprint(spec, ids, valid, (0, 2))
    counts = {"documents": dropped, "tokens": 2 * dropped, "repeats": 3 * dropped}
    documents = np.cumsum(ids[:, 0] % 2)
    corpus = Corpus(spec, ids, valid, documents, digest, counts, source, is_one_document=every)
    path = tmp_path_factory.mktemp("corpora") / "one.safetensors"
    write_corpus(path, corpus)
    assert_equal(read_corpus(path, spec, Vocabulary(2, (0, 2), (2,))), corpus)


def test_an_entry_of_another_name_or_batch_size_is_the_same(tokenizer, pile, tmp_path):
    load_corpus(spec_of(), tokenizer, 16, tmp_path)
    other = spec_of(name="renamed", batch_size=7, tokens=99, max_tokens=999)
    again = load_corpus(other, tokenizer, 16, tmp_path)
    assert pile.opened == 1
    assert again.spec == other, "the caller's, not the one that was written"


def other_tokenizers(tokenizer):
    """name -> a tokenizer that may give other ids or other valid positions."""
    from transformers import AutoTokenizer

    def changed(**fields):
        return AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True, **fields)

    merged, turns = changed(), changed()
    rules = json.loads(merged.backend_tokenizer.to_str())
    rules["model"]["merges"] = rules["model"]["merges"][:-1]
    merged._tokenizer = type(merged.backend_tokenizer).from_str(json.dumps(rules))
    turns.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    return {
        "a merge less": merged,
        "a special token more": turns,
        "another bos": changed(bos_token="<eos>"),
    }


def test_keys_name_everything_that_matters(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")

    def key(spec, tokens=16, tokenizer=tokenizer, bos_token=None):
        vocabulary = Vocabulary.of(tokenizer, spec, bos_token)
        return corpus_key(spec, tokenizer.backend_tokenizer.to_str(), vocabulary, tokens)

    own = spec_of(kind="textfile", path=str(tmp_path / "a.txt"))
    keys = {
        "plain": key(spec_of()), "tokens": key(spec_of(), 17), "wikitext": key(spec_of(kind="wikitext2")),
        "length": key(spec_of(sequence_length=8)), "seed": key(spec_of(seed=1)),
        "sequences of a document": key(spec_of(sequences_per_document=3)),
        "split": key(spec_of(split="train")), "packing": key(spec_of(packing="concatenated")),
        "every": key(spec_of(every_position=True)), "chat": key(spec_of(chat=True, sequence_length=40)),
        "length of chat": key(spec_of(sequence_length=40)), "own": key(own),
    }  # fmt: skip
    keys |= {name: key(spec_of(), tokenizer=other) for name, other in other_tokenizers(tokenizer).items()}
    (tmp_path / "a.txt").write_text("texT")
    keys["edited"] = key(own)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "CORPUS_FORMAT", -1)
        keys["format"] = key(spec_of())
    assert len(set(keys.values())) == len(keys), keys
    assert all(len(k) == 32 for k in keys.values())
    template, tokenizer.chat_template = tokenizer.chat_template, GEMMA.replace("user", "User")
    try:
        assert key(spec_of()) == keys["plain"], "a template that frames nothing changes nothing"
        tokenizer.chat_template = GEMMA.replace("m['role']", "'User'")
        assert key(spec_of(chat=True, sequence_length=40)) != keys["chat"]
    finally:
        tokenizer.chat_template = template


def test_a_key_does_not_depend_on_what_the_tokenizer_did_before(tokenizer, pile, tmp_path):
    load_corpus(spec_of(), tokenizer, 16, tmp_path)
    tokenizer("some text", truncation=True, max_length=2, padding="max_length", split_special_tokens=True)
    load_corpus(spec_of(), tokenizer, 16, tmp_path)
    assert pile.opened == 1


def test_an_edited_textfile_is_tokenized_again(tokenizer, tmp_path):
    spec = spec_of(kind="textfile", path=str(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_text(" ".join(TEXTS))
    first = load_corpus(spec, tokenizer, 16, tmp_path / "corpora")
    (tmp_path / "a.txt").write_text(" ".join(reversed(TEXTS)))
    second = load_corpus(spec, tokenizer, 16, tmp_path / "corpora")
    assert first.fingerprint != second.fingerprint
    (tmp_path / "a.txt").unlink()
    with pytest.raises(QsaeError, match="no such file"):
        load_corpus(spec, tokenizer, 16, tmp_path / "corpora")


def test_an_equal_textfile_elsewhere_has_its_own_entry(tokenizer, tmp_path):
    """The corpus says where its text is from."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "a.txt"
        path.write_text(" ".join(TEXTS))
        spec = spec_of(kind="textfile", path=str(path))
        assert load_corpus(spec, tokenizer, 16, tmp_path / "corpora").source == str(path)


def test_what_is_generated_is_not_cached(tokenizer, tmp_path):
    for kind in ("grammar", "random"):
        spec = spec_of(kind=kind)
        assert_equal(load_corpus(spec, tokenizer, 16, tmp_path), build_corpus(spec, tokenizer, 16))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_cached_without_a_folder_or_for_a_tokenizer_in_plain_python(pile, tmp_path, tokenizer):
    class Plain:
        """It may do anything with a text, and nothing of it is written down."""

        bos_token_id, all_special_ids = 2, (2,)

        def encode(self, text, **_):
            return [ord(letter) for letter in text]

    for _ in range(2):
        load_corpus(spec_of(), tokenizer, 16, None)
        load_corpus(spec_of(), Plain(), 16, tmp_path)
    assert pile.opened == 4
    assert list(tmp_path.iterdir()) == []


def test_a_substitutes_corpus_is_stored_and_reported_each_time(tokenizer, pile, tmp_path):
    """The same ids in every run count for more than the first source, but nobody is left to guess."""
    pile.source = PILE_SUBSTITUTE
    load_corpus(spec_of(), tokenizer, 16, tmp_path)
    reported: list[str] = []
    again = load_corpus(spec_of(), tokenizer, 16, tmp_path, report=reported.append)
    assert again.source == PILE_SUBSTITUTE and pile.opened == 1
    (line,) = reported
    assert PILE_SUBSTITUTE in line and str(next(tmp_path.iterdir())) in line and len(line.splitlines()) == 1


# -- damage -----------------------------------------------------------------------------------------


def forged(path, spec, tokenizer, **fields):
    """Rewrite the entry with other content under the fingerprint that it had."""
    corpus = read_corpus(path, spec, Vocabulary.of(tokenizer, spec))
    changed = {"ids": corpus.ids.copy(), "valid": corpus.valid.copy()}
    for name, place in fields.items():
        changed[name][place] = 1 - changed[name][place] if name == "ids" else ~changed[name][place]
    write_corpus(path, replace(corpus, **changed))


def edited(path, old, new):
    content = path.read_bytes()
    assert content.count(old) == 1 and len(old) == len(new)
    path.write_bytes(content.replace(old, new))


DAMAGE = {
    "empty": lambda path, *_: path.write_bytes(b""),
    "cut short": lambda path, *_: path.write_bytes(path.read_bytes()[:-5]),
    "no header": lambda path, *_: path.write_bytes(b"\xff" * 100),
    "another file": lambda path, *_: foreign(path),
    "a bit of ids": lambda path, *_: path.write_bytes(path.read_bytes()[:-20] + b"\x7f" + path.read_bytes()[-19:]),
    "a document": lambda path, *_: flipped(path),
    "ids": lambda path, *rest: forged(path, *rest, ids=(0, 3)),
    "valid": lambda path, *rest: forged(path, *rest, valid=(0, 3)),
    "counts": lambda path, *_: edited(path, b'\\"documents\\": 1', b'\\"documents\\": 7'),
    "source": lambda path, *_: edited(path, b"NeelNanda", b"NoelNanda"),
}  # fmt: skip


def flipped(path):
    """Change a bit of the first tensor, which is that of the documents."""
    content = bytearray(path.read_bytes())
    content[8 + int.from_bytes(content[:8], "little")] ^= 1
    path.write_bytes(content)


def foreign(path):
    from safetensors.numpy import save_file

    save_file({"weights": np.zeros(3)}, path)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_reported_and_built_again(tokenizer, pile, tmp_path, damage):
    spec = spec_of()
    pile.texts = ["x", *TEXTS]
    fresh = load_corpus(spec, tokenizer, 16, tmp_path)
    (path,) = tmp_path.iterdir()
    damage(path, spec, tokenizer)
    with pytest.raises(DamagedCorpus) as caught:
        read_corpus(path, spec, Vocabulary.of(tokenizer, spec))
    one_line(caught.value)
    reported: list[str] = []
    assert_equal(load_corpus(spec, tokenizer, 16, tmp_path, report=reported.append), fresh)
    (line,) = reported
    assert str(path) in line and "built again" in line and len(line.splitlines()) == 1
    pile.offline = True
    assert_equal(load_corpus(spec, tokenizer, 16, tmp_path), fresh)


@pytest.mark.parametrize("place", ["a file", "below a file", "an entry is a folder"])
def test_a_place_that_can_not_be_written_costs_the_cache_and_no_more(tokenizer, pile, tmp_path, place):
    folder = tmp_path / "corpora"
    if place == "an entry is a folder":
        load_corpus(spec_of(), tokenizer, 16, folder)
        (path,) = folder.iterdir()
        path.unlink()
        (path / "inner").mkdir(parents=True)
    else:
        folder.write_text("a file")
        folder = folder if place == "a file" else folder / "deeper"
    reported: list[str] = []
    assert_equal(
        load_corpus(spec_of(), tokenizer, 16, folder, report=reported.append),
        build_corpus(spec_of(), tokenizer, 16),
    )
    (line,) = reported
    assert "nothing is cached" in line and len(line.splitlines()) == 1
    assert list(tmp_path.rglob(".*")) == [], "no half-written file is left"


def test_an_entry_is_there_whole_or_not_at_all(tokenizer, pile, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    reported: list[str] = []
    load_corpus(spec_of(), tokenizer, 16, tmp_path, report=reported.append)
    assert len(reported) == 1 and "No space left" in reported[0]
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_that_can_not_be_built_leaves_nothing(tokenizer, pile, tmp_path):
    pile.offline = True
    with pytest.raises(CannotRun):
        load_corpus(spec_of(), tokenizer, 16, tmp_path)
    assert list(tmp_path.iterdir()) == []
