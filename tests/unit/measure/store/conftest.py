"""A small model, and stores in a folder, in memory and on S3 to put its reference in."""

from __future__ import annotations

import pytest

import s3_server
import stand_ins
from store_places import KINDS, Place


@pytest.fixture(scope="package")
def model():
    return stand_ins.gemma3()


@pytest.fixture
def make_place(tmp_path, monkeypatch):
    def make(kind):
        if kind == "s3":
            for name, value in s3_server.environment().items():
                monkeypatch.setenv(name, value)
        return Place(kind, tmp_path)

    return make


@pytest.fixture(params=KINDS)
def place(request, make_place):
    return make_place(request.param)


@pytest.fixture(params=[kind for kind in KINDS if kind != "folder"])
def remote_place(request, make_place):
    return make_place(request.param)


@pytest.fixture
def small_shards(monkeypatch):
    """One a batch: of ten sequences three."""
    monkeypatch.setattr("qsae_bench.measure.store.entry_writing.SHARD_BYTES", 1)
