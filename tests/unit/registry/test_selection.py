"""Options are read into a selection, and what is wrong with one shows at once."""

from __future__ import annotations

import argparse

import pytest

from builders import one_line
from qsae_bench.app.options import SELECTION, values_of
from qsae_bench.errors import QsaeError
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.selection import names, selected, selection_of
from qsae_bench.registry.specs import Selection


def selection(arguments, keyword="") -> Selection:
    """Through the options, as the command line does."""
    parser = argparse.ArgumentParser()
    for option, keywords in SELECTION.items():
        parser.add_argument(option, **keywords)
    return selection_of(values_of(parser.parse_args(arguments)), keyword)


def test_no_option_is_the_default_selection():
    assert selection([]) == Selection()


def test_options_are_read_into_a_selection():
    given_ = [
        "--models", "a, b,,", "--quantizations", "nf4", "--layers", "9,17", "--sae-width", "65k", "--sae-l0", "big",
        "--corpus", "textfile:x", "--tokens", "100", "--sequence-length", "64", "--batch-size", "2",
        "--protocol", "study", "--synthetic",
    ]  # fmt: skip
    assert selection(given_, "a or b") == Selection(
        models=("a", "b"), quantizations=("nf4",), layers="9,17", sae_width="65k", sae_l0="big",
        keyword="a or b", synthetic=True, corpus="textfile:x", protocol="study", tokens=100,
        sequence_length=64, batch_size=2,
    )  # fmt: skip


@pytest.mark.parametrize(
    "option", ["--tokens", "--sequence-length", "--sequences-per-document", "--batch-size"]
)
@pytest.mark.parametrize("value", ["0", "-4"])
def test_a_number_below_one(option, value):
    with pytest.raises(QsaeError) as caught:
        selection([f"{option}={value}"])
    assert one_line(caught.value) == f"{option} {value}: at least 1 is needed"


@pytest.mark.parametrize(
    ("text", "expected"), [("", ()), (" , ", ()), ("a", ("a",)), ("b, a,b", ("b", "a", "b"))]
)
def test_names(text, expected):
    assert names(text) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corpus", "pile10"], "unknown corpus 'pile10' (did you mean 'pile10k'?)"),
        (["--sequence-length", "1"], "--sequence-length ≥ 2"),
        (["--models", "gema3_4b"], "unknown model 'gema3_4b' (did you mean 'gemma3_4b'?)"),
    ],
)
def test_what_is_wrong_shows_before_anything_is_loaded(arguments, message):
    with pytest.raises(QsaeError) as caught:
        selected(load_registry(), selection(arguments))
    assert message in one_line(caught.value)
