"""``setting``: what the tests of a pass share."""

from __future__ import annotations

import pytest

import stand_ins


@pytest.fixture(scope="module")
def setting():
    """A reference, a damaged copy, their SAEs and a corpus with special tokens strewn in."""
    reference = stand_ins.gemma3()
    return {
        "r": reference,
        "q": stand_ins.damaged(reference, 0.05),
        "saes": {layer: stand_ins.jumprelu(layer) for layer in stand_ins.LAYERS},
        "corpus": stand_ins.corpus(),
    }
