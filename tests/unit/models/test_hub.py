"""The hub's helpers: waiting that ends, and damage that is found and removed."""

from __future__ import annotations

import errno
import hashlib
import os
import time

import pytest

from qsae_bench.models import hub, hub_errors

# -- waiting --------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """The hub's timeout is a tenth of a second."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)


def test_in_time_hands_the_value_on():
    assert hub.with_timeout(lambda: 7) == 7
    assert hub.with_timeout(lambda: None) is None


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_in_time_hands_the_exception_on(error):
    def work():
        raise error

    with pytest.raises(type(error)) as caught:
        hub.with_timeout(work)
    assert caught.value is error


def cut_off(times):
    """(work whose client another thread closes so many times, list of its tries)"""
    from huggingface_hub import close_session, get_session

    tried = []

    def work():
        tried.append(1)
        client = get_session()
        if len(tried) <= times:
            close_session()
            client.get("http://127.0.0.1:9/")
        return "there"

    return work, tried


@pytest.mark.parametrize("times", [1, hub.TRIES - 1])
def test_in_time_asks_again_where_another_thread_closed_the_client(times):
    """huggingface_hub closes it in all threads when one can't connect."""
    work, tried = cut_off(times)
    assert hub.with_timeout(work) == "there"
    assert len(tried) == times + 1


def test_in_time_does_not_ask_for_ever():
    work, tried = cut_off(99)
    with pytest.raises(RuntimeError) as caught:
        hub.with_timeout(work)
    assert len(tried) == hub.TRIES
    assert hub_errors.is_hub_error(caught.value)


@pytest.mark.alone
def test_in_time_gives_up_what_stands_still(quick):
    import threading

    stuck = threading.Event()
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="the hub stopped answering"):
        hub.with_timeout(stuck.wait, patience=3)
    assert 0.3 <= time.monotonic() - started < 3
    stuck.set()


@pytest.mark.alone
def test_in_time_waits_for_what_moves(quick):
    steps = []

    def work():
        for step in range(10):
            time.sleep(0.1)
            steps.append(step)
        return "done"

    started = time.monotonic()
    assert hub.with_timeout(work, lambda: len(steps), patience=4) == "done"
    assert time.monotonic() - started > 0.8  # twice its patience


# -- damage ---------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A repository's cache with a whole, a damaged and a small (git) file, each linked from a snapshot."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    folder = hub.cache_folder("org/model")
    snapshot = folder / "snapshots" / "abc" / "sub"
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir()
    for name, content, blob in (
        ("whole.safetensors", b"whole", hashlib.sha256(b"whole").hexdigest()),
        ("damaged.safetensors", b"dam\x00ged", hashlib.sha256(b"damaged").hexdigest()),
        ("config.json", b"{}", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
    ):
        (folder / "blobs" / blob).write_bytes(content)
        (snapshot / name).symlink_to(os.path.relpath(folder / "blobs" / blob, snapshot))
    return folder


def test_only_what_is_damaged_is_removed(cache):
    with pytest.raises(hub.QsaeError) as caught:
        hub.verify_downloads("org/model", time.time() - 60, "mine")
    assert str(caught.value) == (
        "mine: checksum mismatch: damaged.safetensors of org/model arrived damaged and was removed; "
        "run again to download it"
    )
    assert sorted(path.name for path in cache.glob("snapshots/*/sub/*")) == [
        "config.json",
        "whole.safetensors",
    ]
    assert len(list((cache / "blobs").iterdir())) == 2
    hub.verify_downloads("org/model", time.time() - 60, "mine")


def test_what_was_there_before_is_not_hashed_again(cache):
    for blob in (cache / "blobs").iterdir():
        os.utime(blob, (1, 1))
    hub.verify_downloads("org/model", time.time(), "mine")
    assert len(list((cache / "blobs").iterdir())) == 3


def test_an_unfinished_download_is_no_damage(cache):
    for blob in (cache / "blobs").iterdir():
        if len(blob.name) == 64 and blob.read_bytes() != b"whole":
            blob.rename(blob.with_name(f"{blob.name}.abcd1234.incomplete"))
    hub.verify_downloads("org/model", time.time() - 60, "mine")
    assert hub.cached_bytes("org/model") == len(b"whole") + len(b"dam\x00ged") + len(b"{}")
    assert hub.cached_bytes("org/other") == 0
