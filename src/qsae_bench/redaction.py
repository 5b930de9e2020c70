"""Mask passwords in URLs before anything is printed or stored."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

_USER = re.compile(r"(\b[a-zA-Z][\w+.-]*://)([^\s'\"/?#:]*):[^\s'\"]*@")
_QUERY = re.compile(r"([?&](?:password|passwd|sslpassword)=)[^&\s'\"]*", re.IGNORECASE)
_OWN_USER = re.compile(r"([a-zA-Z][\w+.-]*://[^:]*):.*@", re.DOTALL)
_OWN_QUERY = re.compile(r"([?&](?:password|passwd|passfile|sslpassword|sslkey)=)[^&]*", re.IGNORECASE)


def mask_passwords(text: str) -> str:
    """Return the text with the password of every URL in it replaced by ``***``."""
    return _QUERY.sub(r"\1***", _USER.sub(r"\1\2:***@", text))


def mask_argument(argument: str) -> str:
    """Return one argument of a command with the password of the URL in it replaced by ``***``.

    The limits of an argument are known, so everything from the first colon to the last @ is masked as the
    password, whatever it contains: masking too much is better than showing a part of a password.
    """
    if "://" not in argument:
        return argument
    return _OWN_QUERY.sub(r"\1***", _OWN_USER.sub(r"\1:***@", argument))


def masked_command(arguments: Iterable[str]) -> str:
    """Return the command as it would be typed, with passwords masked.

    Masking comes before quoting, because quotes would cut a password into pieces.
    """
    return shlex.join(map(mask_argument, arguments))
