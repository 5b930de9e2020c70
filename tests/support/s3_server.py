"""An S3 server on loopback, for as long as the tests of one process need it."""

from __future__ import annotations

import functools
import itertools
import logging

import pytest

NUMBERS = itertools.count()


@functools.cache
def environment() -> dict[str, str]:
    """What a client's environment must have to use it; the server is started, and ends with this process."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(
        ip_address="127.0.0.1", port=0, verbose=False
    )
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    return {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "NO_PROXY": "127.0.0.1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip


def bucket() -> str:
    """The URL of a new one; the environment is that of :func:`environment`."""
    import s3fs

    name = f"bucket-{next(NUMBERS)}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}/references"
