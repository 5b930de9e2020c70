"""Silence known noise of third-party libraries: log records, output during imports, progress bars.

Everything that is silenced is named here, so that a library's other warnings are seen.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Iterator
from typing import Any

KNOWN_NOISE = {
    # for each linear layer of an int8 model, if the model computes in anything but float16
    "bitsandbytes.autograd._functions": r"MatMul8bitLt: inputs will be cast from",
    # at import, if the optional package `kernels` is not installed
    "bitsandbytes.backends.cpu.ops": r"Failed to load CPU gemm_4bit_forward from kernels-community",
    # lists weights that are left on disk; unquantized.load warns of those that are not a vision tower's
    "transformers.modeling_utils": r"(?s).* LOAD REPORT",
    # at import: kernels of other GPUs, and what torchao registers twice
    "torchao": r"Failed to load .*_C_\w+",
    "torch.utils._pytree": r"<enum '\w+'> is an Enum subclass and is now natively supported",
}
"""logger -> pattern of the beginning of the records that are dropped"""

TORCH_DEPRECATION = "ignore:`torch.jit.script_method` is:DeprecationWarning"
"""warning filter for torch's own import of torch.utils.mkldnn, which warns fourteen times"""


def install_log_filters() -> None:
    """Let each logger of :data:`KNOWN_NOISE` drop those records; a second call changes nothing."""
    for name, pattern in KNOWN_NOISE.items():
        logger = logging.getLogger(name)
        if not any(isinstance(present, _NoiseFilter) for present in logger.filters):
            logger.addFilter(_NoiseFilter(pattern))


class _NoiseFilter(logging.Filter):
    def __init__(self, pattern: str) -> None:
        super().__init__()
        self._pattern = re.compile(pattern)

    def filter(self, record: logging.LogRecord) -> bool:
        return self._pattern.match(record.getMessage()) is None


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Suppress output and log records while sae-lens, hqq, quanto or torchao is imported.

    Their dependencies print on import. Errors are still raised.
    """
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Disable tqdm: compressed-tensors and transformers' GGUF reader have no switch for their bars."""
    from tqdm import tqdm

    original = tqdm.__init__

    def disabled(bar: Any, *arguments: Any, **keywords: Any) -> None:
        original(bar, *arguments, **(keywords | {"disable": True}))

    tqdm.__init__ = disabled
    try:
        yield
    finally:
        tqdm.__init__ = original
