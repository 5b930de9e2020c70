"""SIGKILL in the middle of a cell that is looked at again. A plugin for ``-p``.

``QSAE_KILL_AT``: ``between looks``, the first is done and the second not begun; or ``mid-extension``, the
third look's own pass is done and its splice not begun.
"""

from __future__ import annotations

import os
import signal

from qsae_bench.run.local_session import LocalSession

CELL = "tiny_gemma3-rtn_int4"


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def between_looks(real):
    def look_again(self, cell, measured):
        if cell.id == CELL and len(measured.looks) == 1:
            killed()
        return real(self, cell, measured)

    return look_again


def mid_extension(real):
    def one_pass(self, cell, *args, look=0, **options):
        found = real(self, cell, *args, look=look, **options)
        if cell.id == CELL and look == 2:
            killed()
        return found

    return one_pass


name, planted = {
    "between looks": ("_look_again", between_looks), "mid-extension": ("_pass", mid_extension),
}[os.environ["QSAE_KILL_AT"]]  # fmt: skip
setattr(LocalSession, name, planted(getattr(LocalSession, name)))
