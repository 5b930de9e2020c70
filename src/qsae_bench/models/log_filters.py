"""Libraries that talk while they are imported or at work, silenced at the place where they do it.

Each thing that is silenced is named here, with what it says: a library's other warnings surface.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Iterator
from typing import Any

CHATTER = {
    # for each linear layer of an int8 model, where the model computes in anything but float16
    "bitsandbytes.autograd._functions": r"MatMul8bitLt: inputs will be cast from",
    # at import, where the optional package `kernels` is not installed
    "bitsandbytes.backends.cpu.ops": r"Failed to load CPU gemm_4bit_forward from kernels-community",
    # of weights that are left on disk; none.load says what of them is no vision tower
    "transformers.modeling_utils": r"(?s).* LOAD REPORT",
    # at import: kernels of other GPUs, and what torchao registers twice
    "torchao": r"Failed to load .*_C_\w+",
    "torch.utils._pytree": r"<enum '\w+'> is an Enum subclass and is now natively supported",
}
"""logger -> the beginning of what it need not say"""

DEPRECATED = "ignore:`torch.jit.script_method` is:DeprecationWarning"
"""warning filter: torch's own import of torch.utils.mkldnn, fourteen times"""


def hush() -> None:
    """Let each logger of :data:`CHATTER` drop those records, once and for all."""
    for name, pattern in CHATTER.items():
        logger = logging.getLogger(name)
        if not any(isinstance(one, _Drops) for one in logger.filters):
            logger.addFilter(_Drops(pattern))


class _Drops(logging.Filter):
    def __init__(self, pattern: str) -> None:
        super().__init__()
        self._pattern = re.compile(pattern)

    def filter(self, record: logging.LogRecord) -> bool:
        return self._pattern.match(record.getMessage()) is None


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """For imports alone: sae-lens, hqq, quanto and torchao import libraries that print; errors still
    surface as exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """No tqdm bar: compressed-tensors and transformers' reading of GGUF draw them with no switch."""
    from tqdm import tqdm

    drawn = tqdm.__init__

    def undrawn(bar: Any, *arguments: Any, **keywords: Any) -> None:
        drawn(bar, *arguments, **(keywords | {"disable": True}))

    tqdm.__init__ = undrawn
    try:
        yield
    finally:
        tqdm.__init__ = drawn
