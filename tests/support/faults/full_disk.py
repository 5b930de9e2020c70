"""A disk that is full from some moment on: every write below a folder ends as the kernel ends it.

A plugin for ``-p``. Stands in at the calls by which files get their name there.
"""

from __future__ import annotations

import errno
import os

import pytest

FOLDER, FROM = os.environ["QSAE_FULL_DISK"], os.environ["QSAE_FULL_FROM"]
real = {name: getattr(os, name) for name in ("replace", "mkdir", "fsync")}
state = {"full": FROM == "from the start", "cells": 0}


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop():
    result = yield
    state["full"] = True
    return result


def limited(name):
    def call(path, *rest, **more):
        inside = name == "fsync" or str(rest[0] if name == "replace" else path).startswith(FOLDER)
        if name == "replace" and "/journal/" in str(rest[0]):
            state["cells"] += 1
            # the reference's entry and its cell's are the first two
            state["full"] |= FROM == "at the second cell" and state["cells"] > 2
        if state["full"] and inside:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real[name](path, *rest, **more)

    return call


for name in real:
    setattr(os, name, limited(name))
