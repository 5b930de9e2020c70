"""Thousands of run documents that anything was done to are imported and shown, or refused in one line."""

from __future__ import annotations

from hypothesis import given

from history_fuzzing import check_import, check_show, examples, files


@examples(2000)
@given(files)
def test_any_of_thousands_of_files_is_imported_or_refused(content):
    check_import(content)


@examples(2000)
@given(files)
def test_any_of_thousands_of_files_is_shown_or_refused(content):
    check_show(content)
