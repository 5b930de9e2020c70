"""Replace passwords in URLs before anything is shown or stored."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

_USER = re.compile(r"(\b[a-zA-Z][\w+.-]*://)([^\s'\"/?#:]*):[^\s'\"]*@")


_QUERY = re.compile(r"([?&](?:password|passwd|sslpassword)=)[^&\s'\"]*", re.IGNORECASE)


_OWN_USER = re.compile(r"([a-zA-Z][\w+.-]*://[^:]*):.*@", re.DOTALL)


_OWN_QUERY = re.compile(r"([?&](?:password|passwd|passfile|sslpassword|sslkey)=)[^&]*", re.IGNORECASE)


def mask_passwords(text: str) -> str:
    """The text with the password of every URL in it replaced by ``***``."""
    return _QUERY.sub(r"\1***", _USER.sub(r"\1\2:***@", text))


def mask_argument(argument: str) -> str:
    """One argument of a command, the password of the URL in it replaced by ``***``.

    Where an argument begins and ends is known, so all from the first colon to the last @ is taken for the
    password, whatever it holds: rather too much than a part of one.
    """
    if "://" not in argument:
        return argument
    return _OWN_QUERY.sub(r"\1***", _OWN_USER.sub(r"\1:***@", argument))


def masked_command(arguments: Iterable[str]) -> str:
    """As it would be typed, no password in it. Masked before quoting: quotes cut a password into pieces."""
    return shlex.join(map(mask_argument, arguments))
