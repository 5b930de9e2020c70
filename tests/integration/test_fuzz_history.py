"""Run documents that anything was done to are imported and shown, or refused in one line; more in tests/nightly."""

from __future__ import annotations

from hypothesis import given

from history_fuzzing import check_import, check_show, examples, files


@examples(40)
@given(files)
def test_any_file_is_imported_or_refused(content):
    check_import(content)


@examples(40)
@given(files)
def test_any_file_is_shown_or_refused(content):
    check_show(content)
