"""What a URL's file system raises, in one line without a password."""

from __future__ import annotations

import itertools

import pytest

import s3_server
from qsae_bench.errors import QsaeError
from qsae_bench.measure.store.remote_files import MissingFile, RemoteFiles
from qsae_bench.redaction import masked_command

SECRET = "pa/ss@w:rd"
NUMBERS = itertools.count()


@pytest.fixture
def bucket(monkeypatch):
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return RemoteFiles(s3_server.bucket())


@pytest.fixture(params=["memory", "s3"])
def files(request):
    if request.param == "s3":
        return request.getfixturevalue("bucket")
    return RemoteFiles(f"memory://files-{next(NUMBERS)}")


def test_files_come_and_go(files, tmp_path):
    assert files.sizes("a") == {} and files.size("a/b") is None and files.content("a/b") is None
    files.put_content(b"new", "a/b")
    files.put_content(b"newer", "a/b")
    files.put_content(b"", "c")
    assert files.sizes("a") == {"a/b": 5} and files.sizes() == {"a/b": 5, "c": 0}
    assert files.size("a/b") == 5 and files.content("a/b") == b"newer"
    files.fetch("a/b", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"newer"
    files.remove(["a/b", "nothing"])
    assert files.sizes() == {"c": 0}
    with pytest.raises(MissingFile, match="a/b: missing"):
        files.fetch("a/b", tmp_path / "copy")


def test_what_another_process_wrote_is_listed(bucket):
    assert bucket.sizes() == {}
    RemoteFiles(bucket._url).put_content(b"x", "a")
    assert bucket.sizes() == {"a": 1}


@pytest.mark.parametrize("url", [f"s3://KEY:{SECRET}@bucket/x", f"ftp://user:{SECRET}@127.0.0.1:1/x"])
def test_a_password_is_never_shown(url, bucket):
    files = RemoteFiles(url)
    for work in (lambda: files.content("key"), lambda: files.remove(["key"])):
        with pytest.raises(QsaeError) as refused:
            work()
        message = str(refused.value)
        assert "\n" not in message
        assert "***" in message
        assert not any(part in message for part in (SECRET, "ss@w", "w:rd", "pa/s"))
    shown = masked_command(["pytest", f"--reference-store={url}"])
    assert "***" in shown
    assert "w:rd" not in shown


def test_a_server_that_is_not_there_is_one_line(monkeypatch):
    s3fs = pytest.importorskip("s3fs")
    for name, value in (s3_server.environment() | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(QsaeError, match="can't be read: .*127.0.0.1:9") as refused:
            RemoteFiles("s3://bucket/x").content("key")
        assert "\n" not in str(refused.value)
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
