"""Which store an option names, and one line for what can't be one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qsae_bench.errors import QsaeError
from qsae_bench.measure.store import open_store, parse_location
from qsae_bench.measure.store.local import LocalStore, TemporaryStore
from qsae_bench.measure.store.remote import RemoteStore

SECRET = "pa/ss@w:rd"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s4://bucket/x", r"unknown scheme 's4' \(did you mean 's3'\?\)"),
        ("zzzz://x", r"unknown scheme 'zzzz'; s3://BUCKET/FOLDER"),
        (f"s3://bucket/x?token={SECRET}", r"without '\?'"),
        (f"simplecache::s3://u:{SECRET}@bucket/x", r"without '\?' and '::'"),
    ],
)
def test_a_url_that_cannot_be_one(url, reason):
    with pytest.raises(QsaeError, match=reason) as refused:
        parse_location(url, off=False)
    assert str(refused.value).startswith("--reference-store: ")
    assert SECRET not in str(refused.value)


def test_a_missing_package_is_named(monkeypatch):
    from fsspec.registry import known_implementations

    monkeypatch.setitem(
        known_implementations, "s5", {"class": "no_such_s5fs.FileSystem", "err": "Install s5fs"}
    )
    with pytest.raises(QsaeError, match=r"s5:// needs a package .*: pip install no_such_s5fs") as refused:
        parse_location("s5://bucket/x", off=False)
    assert "\n" not in str(refused.value)


def test_options_name_a_location():
    assert parse_location("", off=False) == ""
    assert parse_location("", off=True) is None
    assert parse_location(" memory://x ", off=False) == "memory://x"
    assert parse_location("~/references", off=False) == "~/references"
    with pytest.raises(QsaeError, match="give one of them"):
        parse_location("memory://x", off=True)


def test_a_location_is_a_folder_a_url_or_for_this_run_alone(tmp_path):
    def folder_of(location):
        store = open_store(location, tmp_path, 1)
        assert type(store) is LocalStore
        return store.folder

    assert folder_of("") == tmp_path / "references"
    for location in (f"{tmp_path}/store", f"file://{tmp_path}/store", f"local://{tmp_path}/store"):
        assert folder_of(location) == tmp_path / "store"
    remote = open_store("memory://x", tmp_path, 1)
    assert isinstance(remote, RemoteStore)
    assert remote.cache.folder == tmp_path / "cache" / "references"
    with_temporary = open_store(None, tmp_path, 1)
    assert isinstance(with_temporary, TemporaryStore)
    with_temporary.close()


def test_a_command_line_is_checked_without_torch():
    code = "import sys; from qsae_bench.measure.store import parse_location; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
