"""The exit status of `pytest benchmarks`: the table, every combination."""

from __future__ import annotations

import itertools

import pytest

from qsae_bench.gate.exit_status import INVALID_CELL, NOT_MEASURED, STATUS, exit_status, kinds_of

KINDS = ("regression", "invalid", "not measured", "other")


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("fail", "regression"), ("inconclusive", "regression"), ("unset", "regression"),
        ("suspicious", "regression"), ("invalid", "invalid"), (INVALID_CELL, "invalid"), (NOT_MEASURED, "not measured"),
        ("a word of another version", "other"), (3, "other"),
    ],
)  # fmt: skip
def test_each_word_has_its_kind(word, kind):
    assert kinds_of([("mine", "x"), (STATUS, word)]) == {kind}


def test_a_failure_that_says_nothing_is_of_the_other_kind():
    assert kinds_of([]) == {"other"}
    assert kinds_of([("qsae", "invalid")]) == {"other"}


def test_a_report_of_several_gates_as_earlier_versions_wrote_it_has_all_their_kinds():
    assert kinds_of([(STATUS, "invalid"), (STATUS, "fail")]) == {"invalid", "regression"}


TABLE = [
    # pytest's, what failed, selected, measured, stored -> ours
    (0, (), True, True, True, 0),
    (1, ("regression",), True, True, True, 1),
    (1, ("other",), True, True, True, 1),
    (1, ("invalid",), True, True, True, 3),
    (1, ("not measured",), True, False, True, 3),
    (1, ("invalid", "not measured"), True, True, False, 3),
    (1, ("regression", "invalid"), True, True, True, 1),
    (1, ("other", "not measured"), True, True, False, 1),
    (1, (), True, True, True, 1),  # pytest saw a failure that no report told of
    (0, (), True, False, True, 3),
    (5, (), True, False, True, 3),
    (0, (), True, True, False, 3),
    (0, (), False, False, True, 0),  # --collect-only
    (5, (), False, False, True, 5),  # no benchmark was named at all
    (2, ("regression",), True, True, True, 2),
    (3, (), True, True, True, 3),
    (4, (), False, False, True, 4),
]


@pytest.mark.parametrize(("before", "kinds", "selected", "measured", "stored", "after"), TABLE)
def test_the_table(before, kinds, selected, measured, stored, after):
    assert exit_status(before, set(kinds), selected=selected, measured=measured, stored=stored) == after


def test_what_holds_for_every_combination():
    """Green is measured, stored, and without a failure; a regression is never hidden; nothing else is 1."""
    subsets = [set(some) for n in range(5) for some in itertools.combinations(KINDS, n)]
    for kinds, selected, measured, stored in itertools.product(subsets, *[(True, False)] * 3):
        for before in (1,) if kinds else (0, 5):
            after = exit_status(before, kinds, selected=selected, measured=measured, stored=stored)
            case = (before, kinds, selected, measured, stored)
            if after == 0:
                assert not kinds and stored and (measured or not selected), case
            assert (after == 1) == bool(kinds & {"regression", "other"}), case
            if kinds and kinds <= {"invalid", "not measured"}:
                assert after == 3, case
