"""The tiny corpus, checked by reading its text: nothing here asks the grammar what it meant."""

from __future__ import annotations

import hashlib
import re
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsae_bench.tiny.grammar import documents
from qsae_bench.tiny.lexicon import TOPICS

COUNT = 300


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(islice(documents(0, "train"), COUNT))


def plural(word: str) -> bool:
    """No base form ends in "s", so the last letter tells a noun's number."""
    return word.endswith("s")


def test_same_arguments_same_text():
    again = list(islice(documents(0, "train"), 20))
    assert again == list(islice(documents(0, "train"), 20))


@pytest.mark.parametrize(("seed", "split"), [(0, "heldout"), (0, "sae"), (0, "tokenizer"), (1, "train")])
def test_streams_share_no_document(texts, seed, split):
    assert not set(texts) & set(islice(documents(seed, split), COUNT))


def test_the_text_stays_the_same():
    """The shipped model was trained on this text: a change of the grammar has to come with a new model."""
    text = "".join(islice(documents(0, "train"), 100))
    assert hashlib.sha256(text.encode()).hexdigest() == FINGERPRINT


FINGERPRINT = "a7f24da72b4dea993dd0d680cceb4cd4a060d17ef49098b5cd1b51ab7413deb6"


def test_base_forms_are_regular():
    for topic in TOPICS:
        for part in ("agents", "things", "places", "transitive", "intransitive"):
            words = getattr(topic, part)
            assert len(set(words)) == len(words)
            assert not [w for w in words if plural(w)]


def test_documents_are_long_enough_for_sequences(texts):
    words = [len(text.split()) for text in texts]
    assert min(words) > 100
    assert max(words) < 700


def test_verbs_agree_across_object_relative_clauses(texts):
    """`the dogs that the keeper sees run`: each verb agrees with its own noun."""
    pattern = re.compile(r"\b[Tt]he (\w+) that the (\w+) (\w+) (\w+)")
    found = mixed = 0
    for match in pattern.finditer("\n".join(texts)):
        outer, inner, inner_verb, outer_verb = match.groups()
        assert plural(inner) != plural(inner_verb), match[0]
        if outer_verb in ("is", "are"):
            assert plural(outer) == (outer_verb == "are"), match[0]
        elif outer_verb.removesuffix("s") in BASES or outer_verb in INFLECTED:
            assert plural(outer) != plural(outer_verb), match[0]
        found += 1
        mixed += plural(outer) != plural(inner)
    assert found > 200
    assert mixed > 50


BASES = {w for t in TOPICS for w in (*t.transitive, *t.intransitive)}
INFLECTED = {re.sub("y$", "ie", w) + end for w in BASES for end in ("s", "es")}


def test_the_copula_agrees_across_prepositional_phrases(texts):
    """`the boats near the keeper are wet`: the nearer noun is a trap."""
    pattern = re.compile(r"\b[Tt]he (\w+) (?:near|behind|beyond|above|beside|next to) the (\w+) (is|are) ")
    matches = pattern.findall("\n".join(texts))
    assert len(matches) > 20
    for head, _, verb in matches:
        assert plural(head) == (verb == "are")


def test_pronouns_agree_with_the_person_introduced(texts):
    pattern = re.compile(r"(\w+ \w+) is an? \w+\. (Her|His) number is ([A-Z]\d\d-\d{3})\. (She|He) lives")
    for text in texts:
        seen: dict[str, tuple[str, str]] = {}
        for name, possessive, code, pronoun in pattern.findall(text):
            assert (possessive, pronoun) in {("Her", "She"), ("His", "He")}
            assert seen.setdefault(name, (possessive, code)) == (possessive, code)
        assert seen


def test_brackets_balance(texts):
    closing = {")": "(", "]": "[", "}": "{"}
    deepest = 0
    for line in "\n".join(texts).splitlines():
        stack: list[str] = []
        for character in line:
            if character in "([{":
                stack.append(character)
                deepest = max(deepest, len(stack))
            elif character in closing:
                assert stack, line
                assert stack.pop() == closing[character], line
        assert not stack, line
    assert deepest >= 3


def test_quotes_balance(texts):
    assert all(line.count('"') % 2 == 0 for text in texts for line in text.splitlines())


def test_equations_hold(texts):
    operations = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    equations = re.findall(r"^(\d+) ([+*-]) (\d+) = (\d+)$", "\n".join(texts), re.MULTILINE)
    assert {op for _, op, _, _ in equations} == set(operations)
    assert all(operations[op](int(a), int(b)) == int(c) for a, op, b, c in equations)


def test_sums_in_words_hold(texts):
    text = "\n".join(texts)
    bought = re.findall(r"had (\d+) \w+ and bought (\d+) more\. Now \w+ has (\d+) ", text)
    taken = re.findall(r"There were (\d+) .*? took (\d+) of them, so (\d+) ", text)
    assert len(bought) > 20
    assert len(taken) > 20
    assert all(int(a) + int(b) == int(c) for a, b, c in bought)
    assert all(int(a) - int(b) == int(c) for a, b, c in taken)


def test_years_and_intervals_agree(texts):
    names = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    ]
    pattern = re.compile(r" (\d{4}), [^\n]*? (\w+) years later, in (\d{4}), ")
    events = pattern.findall("\n".join(texts))
    assert len(events) > 50
    assert all(int(start) + names.index(gap.lower()) == int(end) for start, gap, end in events)


def test_list_totals_are_right(texts):
    lists = re.findall(r"^Needed:\n((?:- \d+ \w+\n)+)Total: (\d+)$", "\n".join(texts), re.MULTILINE)
    assert len(lists) > 20
    for rows, total in lists:
        items = re.findall(r"- (\d+) (\w+)", rows)
        assert sum(int(n) for n, _ in items) == int(total)
        assert all(plural(word) == (int(n) > 1) for n, word in items)


def test_topics_shift_the_words(texts):
    """A document of the sea names the sea's things far more often than another topic's."""
    sea, kitchen = (next(t for t in TOPICS if t.name == name) for name in ("sea", "kitchen"))

    def share(text: str, words: tuple[str, ...]) -> float:
        tokens = re.findall(r"\w+", text)
        return sum(token in words for token in tokens) / len(tokens)

    at_sea = [text for text in texts if re.match(rf"# .* of the ({'|'.join(sea.places)})\n", text)]
    assert at_sea
    text = "\n".join(at_sea)
    assert share(text, sea.things + sea.places) > 4 * share(text, kitchen.things + kitchen.places)


# The tokenizer, as shipped


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    from qsae_bench.tiny import MODEL_DIR

    return transformers.AutoTokenizer.from_pretrained(MODEL_DIR)


@given(text=st.text())
def test_any_text_survives_the_tokenizer(tokenizer, text):
    # Special tokens written out in the text would be read as such, as with every tokenizer.
    if re.search(r"<(bos|eos|pad)>", text):
        return
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_exactly_one_bos_in_front(tokenizer, texts):
    ids = tokenizer(texts[0])["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[1:] == tokenizer(texts[0], add_special_tokens=False)["input_ids"]


def test_special_tokens_are_distinct(tokenizer):
    special = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
    assert special == {0, 1, 2}
    assert set(tokenizer.all_special_ids) == special


def test_documents_fill_their_sequences(tokenizer, texts):
    """Sequences hold `<bos>` and 127 tokens; what a document has beyond them is lost."""
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    assert min(lengths) >= 200
    assert sum(n // 127 * 127 for n in lengths) / sum(lengths) > 0.8
