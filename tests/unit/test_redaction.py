"""A history's password is in nothing that is kept, whatever it is made of and however it was given."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from qsae_bench.redaction import mask_argument, mask_passwords, masked_command

FEWEST = 4
"""characters of a password that are a part of it and not chance"""

GIVEN = (
    ["--history", "{}"], ["--history={}"], ["-p", "x", "--history", " {}"], ["-o", "addopts=--history={}"], ["{}"]
)  # fmt: skip

passwords = st.text(min_size=FEWEST, max_size=20) | st.text(
    "'\" \\\n\t:/?#@&=%$ab*", min_size=FEWEST, max_size=20
)


def leaks(shown: str, secret: str, url: str) -> list[str]:
    """Parts of the password in what is shown, quoted or not, that aren't in the rest of the address."""
    parts = {secret[i : i + FEWEST] for i in range(len(secret) - FEWEST + 1)}
    rest = f"pytest -p x -o addopts= --history= -k nf4 and fvu *** {url.replace(secret, chr(0))}"
    return [
        one
        for one in parts
        if any(one in text for text in (shown, *shlex.split(shown))) and one not in rest
    ]


@given(passwords, st.sampled_from(["u", "us'er", "a b", "", "ü?#"]), st.sampled_from(GIVEN))
@example("pa'ss", "u", GIVEN[0])
@example("p a s s", "u", GIVEN[1])
@example('pa"ss', "u", GIVEN[2])
@example("pa/s?s@x:y", "us'er", GIVEN[3])
def test_of_a_user(secret, user, given_as):
    url = f"postgresql+psycopg://{user}:{secret}@h/db"
    assume(url.count(secret) == 1)
    shown = masked_command(["pytest", *(one.format(url) for one in given_as), "-k", "nf4 and fvu"])
    assert leaks(shown, secret, url) == []
    assert shown.endswith("-k 'nf4 and fvu'")
    assert "@h/db" in shown


@given(
    passwords.filter(lambda secret: "&" not in secret),
    st.sampled_from(["password", "PassFile", "sslpassword"]),
)
@example("pa'ss", "password")
def test_of_a_query(secret, key):
    url = f"postgresql://u@h/db?connect_timeout=3&{key}={secret}&sslmode=require"
    assume(url.count(secret) == 1)
    shown = masked_command(["pytest", "--history", url])
    assert leaks(shown, secret, url) == []
    assert "sslmode=require" in shown


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("postgresql://u:p@h:5432/db", "postgresql://u:***@h:5432/db"),
        ("--history=postgresql://us'er:pa'ss@h/db", "--history=postgresql://us'er:***@h/db"),
        ("postgresql://u@h/db?password=pa'ss&a=b", "postgresql://u@h/db?password=***&a=b"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("sqlite:////a/b c.sqlite", "sqlite:////a/b c.sqlite"),
        ("tests/test_x.py::test_y[a:b@c]", "tests/test_x.py::test_y[a:b@c]"),
        ("none", "none"),
    ],
)
def test_the_rest_stays(argument, shown):
    assert mask_argument(argument) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:s3cr3t!@host/db", "postgresql://me:***@host/db"),
        ("a 'postgresql+psycopg://me:s3cr3t!@h:5432/db?x=1' b", "a 'postgresql+psycopg://me:***@h:5432/db?x=1' b"),
        ("postgresql://me:s3cr3t!@x@host/db", "postgresql://me:***@host/db"),
        ("postgresql://host/db?user=me&password=s3cr3t!", "postgresql://host/db?user=me&password=***"),
        ("--history=postgresql://me:s3cr3t!/y@host/db", "--history=postgresql://me:***@host/db"),
        ("sqlite:////tmp/a.sqlite", "sqlite:////tmp/a.sqlite"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
    ],
)  # fmt: skip
def test_passwords_in_a_text(text, shown):
    assert mask_passwords(text) == shown
