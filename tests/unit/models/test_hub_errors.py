"""Causes of what the hub's libraries raise, told apart, and no token in what is printed."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qsae_bench.models import hub_errors

TOKEN = "hf_FAKEtokenFAKEtoken123"


@pytest.fixture(autouse=True)
def nobody(monkeypatch):
    """No token, and not offline, whatever this machine has."""
    monkeypatch.setattr(hub_errors, "_token", lambda: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)


def raised(name, text="", base=Exception, status=None):
    """An exception of a class by this name, as a library would raise it."""
    error = type(name, (base,), {})(text)
    if status is not None:
        error.response = SimpleNamespace(status_code=status)
    return error


def caused(outer, inner):
    outer.__cause__ = inner
    return outer


PRIVATE = (
    "401 Client Error.\nRepository Not Found.\nIf you are trying to access a private or gated repo, log in"
)

CAUSES = [
    (OSError(errno.ENOSPC, "No space left on device"), "the disk is full: free space, or move the cache"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
    (PermissionError(errno.EACCES, "Permission denied"), "can't be written: name a writable folder"),
    (OSError(errno.EROFS, "Read-only file system"), "the cache can't be written"),
    (raised("GatedRepoError", "Cannot access gated repo", status=401), "it is gated: accept its licence"),
    (OSError("You are trying to access a gated repo.\nMake sure"), "it is gated: accept its licence"),
    (raised("DatasetNotFoundError", "Dataset 'a/b' is a gated dataset on the Hub."), "it is gated"),
    (raised("HfHubHTTPError", "Forbidden", status=403), "it is gated"),
    (raised("RevisionNotFoundError", status=404), "no such revision: correct the entry's revision"),
    (raised("RepositoryNotFoundError", PRIVATE, status=401), "see it (401): check the name and HF_TOKEN"),
    (raised("RepositoryNotFoundError", PRIVATE, status=404), "see it (404): check the name and HF_TOKEN"),
    (raised("HfHubHTTPError", "Invalid credentials", status=401), "may not see it (401)"),
    (raised("DatasetNotFoundError", "doesn't exist"), "may not see it: check the name and HF_TOKEN"),
    (raised("RemoteEntryNotFoundError", status=404), "no such file (404): check the entry's source"),
    (raised("DataFilesNotFoundError"), "the hub has no such file (404)"),
    (raised("HTTPError", status=404), "the hub has no such file (404)"),
    (raised("HTTPError", status=500), "the hub answered with its own error (500): try again later"),
    (raised("HfHubHTTPError", status=503), "the hub answered with its own error (503): try again later"),
    (OSError("Consistency check failed: file should be of size 2"), "download was cut short: run again"),
    (TimeoutError("the hub stopped answering"), "does not answer in time: run again, or raise HF_HUB"),
    (raised("ReadTimeout"), "the hub does not answer in time"),
    (raised("RemoteProtocolError"), "the download was cut short: run again"),
    (raised("ChunkedEncodingError"), "the download was cut short"),
    (raised("ConnectError"), "and the cache lacks it: check the network and HF_ENDPOINT"),
    (RuntimeError("Cannot send a request, as the client has been closed."), "the hub can't be reached"),
    (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "the hub can't be reached"),
    (raised("LocalEntryNotFoundError", base=FileNotFoundError), "the hub can't be reached"),
    (raised("ArrowInvalid", base=ValueError), "its data arrived damaged: run again to download it"),
    (OSError("Corrupt snappy compressed data."), "its data arrived damaged"),
    (raised("OfflineModeIsEnabled", base=ConnectionError), "HF_HUB_OFFLINE is set: unset it"),
]


@pytest.mark.parametrize("error,words", CAUSES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("wrapped", [False, True], ids=["itself", "as a cause"])
def test_a_cause_is_named(error, words, wrapped):
    outer = caused(OSError("Can't load the configuration of 'a/b'"), error) if wrapped else error
    message = hub_errors.explain(outer)
    assert words in message
    assert len(message.splitlines()) == 1


def test_a_cause_is_found_below_from_none():
    try:
        try:
            raise raised("HfHubHTTPError", status=500)
        except Exception:
            raise FileNotFoundError("Couldn't find the file") from None
    except FileNotFoundError as error:
        assert "(500)" in hub_errors.explain(error)


def test_a_chain_that_is_a_circle_ends():
    one, other = OSError("one"), OSError("other")
    one.__cause__, other.__cause__ = other, one
    assert hub_errors.explain(one) == "one"


def test_with_a_token_the_gate_is_the_accounts(monkeypatch):
    monkeypatch.setattr(hub_errors, "_token", lambda: TOKEN)
    assert "this HF_TOKEN has no access: accept its licence with the token's account" in hub_errors.explain(
        raised("GatedRepoError", status=403)
    )


def test_offline_is_the_cause_of_whatever_is_not_found(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in hub_errors.explain(
        raised("LocalEntryNotFoundError", base=FileNotFoundError)
    )


def test_what_is_not_known_is_shown_by_its_first_line():
    assert hub_errors.explain(ValueError("no such\nthing")) == "no such"
    assert hub_errors.explain(ValueError()) == "ValueError"


NAMES = sorted({type(error).__name__ for error, _ in CAUSES} | {"ValueError", "Unheard"})
printable = st.text(st.characters(codec="utf-8"), max_size=30)


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), printable, printable), min_size=1, max_size=3),
    st.sampled_from([None, 400, 401, 403, 404, 418, 429, 500, 503]),
    st.sampled_from([TOKEN, "api_org_secretsecret", "s3cr3t-of-mine"]),
)
@example([("ValueError", "Bearer ", "")], None, "s3cr3t-of-mine")
def test_no_exception_brings_the_token_out(links, status, token):
    chain = None
    for name, before, after in links:
        error = raised(name, f"{before}{token}{after}", status=status)
        error.__cause__ = chain
        chain = error
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_errors, "_token", lambda: token)
        message = hub_errors.explain(chain)
    assert token not in message
    assert len(message.splitlines()) <= 1


@pytest.mark.parametrize("text", [f"Authorization: Bearer {TOKEN}", f"https://user:{TOKEN}@host/x", TOKEN])
def test_a_token_that_is_not_this_machines_is_hidden_too(text):
    assert TOKEN not in hub_errors.explain(ValueError(text))


def test_what_is_remote():
    assert hub_errors.is_hub_error(OSError())
    assert hub_errors.is_hub_error(caused(ValueError(), OSError()))
    assert hub_errors.is_hub_error(type("Odd", (Exception,), {"__module__": "httpx._exceptions"})())
    assert not hub_errors.is_hub_error(KeyError("w_enc"))
    assert not hub_errors.is_hub_error(RuntimeError("shape mismatch"))
