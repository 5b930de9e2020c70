"""Libraries get their options, and what they refuse takes one line."""

from __future__ import annotations

import pytest

from builders import needs, one_line
from qsae_bench.errors import QsaeError


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("transformers", {"quant_method": "no such method"}, "Unknown quantization type"),
        pytest.param("hqq", {"nbits": 9}, "hqq does not take", marks=needs("hqq")),
        pytest.param("hqq", {"bits": 4}, "hqq does not take", marks=needs("hqq")),
        pytest.param(
            "quanto", {"weigths": "qint8"}, "did you mean 'weights'", marks=needs("optimum.quanto")
        ),
        pytest.param(
            "quanto", {"weights": "qint8", "activations": "qint8"}, "each would stay 1",
            marks=needs("optimum.quanto"),
        ),
        pytest.param("quanto", {"weights": "int8"}, "did you mean 'qint8'", marks=needs("optimum.quanto")),
        pytest.param(
            "torchao", {"config": "Int8WeightOnly"}, "did you mean 'Int8WeightOnlyConfig'",
            marks=needs("torchao"),
        ),
        pytest.param("torchao", {}, "torchao has no config ''", marks=needs("torchao")),
        pytest.param(
            "torchao", {"config": "Int8WeightOnlyConfig", "groups": 3}, "does not take", marks=needs("torchao")
        ),
    ],
)  # fmt: skip
def test_what_a_library_refuses_takes_one_line(loaded, backend, options, message):
    with pytest.raises(QsaeError, match=message) as caught:
        loaded("mine", backend, **options)
    assert "'mine'" in one_line(caught.value)


@needs("torchao")
def test_a_granularity_is_named():
    from torchao.quantization import PerRow

    from qsae_bench.models.backends.libraries import torchao_config

    config = torchao_config("mine", {"config": "Float8WeightOnlyConfig"})
    assert type(config).__name__ == "Float8WeightOnlyConfig"
    config = torchao_config(
        "mine", {"config": "Float8DynamicActivationFloat8WeightConfig", "granularity": "PerRow"}
    )
    assert any(isinstance(one, PerRow) for one in config.granularity)
