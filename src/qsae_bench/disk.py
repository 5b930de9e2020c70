"""What writing a file can raise, made one."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator


@contextlib.contextmanager
def os_errors() -> Iterator[None]:
    """safetensors has an exception of its own for a full disk: here it is an OSError like others."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        first = (str(error).strip() or "can't be written").splitlines()[0]
        number = errno.ENOSPC if "No space left" in first else errno.EIO
        raise OSError(number, first) from None
