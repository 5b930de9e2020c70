"""Thousands of run documents that anything was done to are imported and shown, or refused in one line."""

from __future__ import annotations

from hypothesis import given, settings

from history_fuzzing import a_run, check_import, check_show, command, examples, files, mutated, written


@examples(2000)
@given(files)
def test_any_of_thousands_of_files_is_imported_or_refused(content):
    check_import(content)


@examples(2000)
@given(files)
def test_any_of_thousands_of_files_is_shown_or_refused(content):
    check_show(content)


def test_most_mutations_get_past_the_reader():
    """A fuzz of files that are all refused by the first check would test that check alone."""
    accepted = total = 0

    @settings(max_examples=400, deadline=None, database=None, derandomize=True)
    @given(mutated())
    def count(found):
        nonlocal accepted, total
        with a_run(written(found)) as place:
            total += 1
            accepted += command("show", place / "run")[0] == 0

    count()
    assert accepted >= 0.25 * total
