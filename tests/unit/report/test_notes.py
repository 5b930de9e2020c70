"""What stands under a model's table: what a simulation leaves out, what of a text doesn't count."""

from __future__ import annotations

from documents import run_document
from qsae_bench.report.notes import notes
from qsae_bench.results.document import QuantizedRecord

AS_FLOATS = "simulated, rounded values are kept as floats"


def test_quality_is_real_unless_something_is_left_out():
    document = run_document(["m"], ["rtn_int4", "rtn_int3", "gguf", "nf4"])
    without = {"rtn_int4": "", "rtn_int3": "", "gguf": "it also rounds activations"}
    cells = [
        cell.model_copy(
            update={
                "quantized": QuantizedRecord(share=1, simulated=True, without=without[cell.quantization])
            }
        )
        if cell.quantization in without
        else cell
        for cell in document.cells
    ]
    found = [line for line in notes(cells, document) if line.startswith("*")]
    rest = "; speed and memory are not the quantization's"
    assert found == [
        f"* rtn_int4, rtn_int3: {AS_FLOATS}: quality is real{rest}",
        f"* gguf: {AS_FLOATS}: the weights' rounding only; it also rounds activations{rest}",
    ]


def test_control_tokens_of_a_text_are_said():
    document = run_document(["m"], ["nf4"])
    assert not any("control tokens" in line for line in notes(document.cells, document))
    document.corpus["m"] = document.corpus["m"].model_copy(update={"control_tokens": 1234})
    assert any(
        line.startswith("1,234 tokens of its text are control tokens")
        for line in notes(document.cells, document)
    )
