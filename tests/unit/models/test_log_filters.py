"""What libraries say that nobody needs is dropped at its source; what they say of a model still surfaces."""

from __future__ import annotations

import io
import logging
import warnings
from types import SimpleNamespace

import pytest

from qsae_bench.models.backends import unquantized
from qsae_bench.models.log_filters import KNOWN_NOISE, install_log_filters, no_progress_bars, silenced

SAID = {
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast from torch.float32 to float16 during quantization",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community: No module named 'kernels'. Please make sure",
    "transformers.modeling_utils": "\x1b[1mGemma3ForCausalLM LOAD REPORT\x1b[0m from: google/gemma-3-4b-pt\nKey | Status",
    "torchao": "Failed to load /x/torchao/_C_mxfp8.cpython-310-x86_64-linux-gnu.so: Could not load this library",
    "torch.utils._pytree": "<enum 'KernelPreference'> is an Enum subclass and is now natively supported by torch.compile",
}


@pytest.mark.parametrize("name", KNOWN_NOISE)
def test_a_logger_drops_its_chatter_and_nothing_else(name, caplog):
    install_log_filters()
    install_log_filters()
    logger = logging.getLogger(name)
    assert (
        len([one for one in logger.filters if type(one).__module__ == "qsae_bench.models.log_filters"]) == 1
    )
    for text in (SAID[name], "weights are not what they should be"):
        logger.handle(logger.makeRecord(name, logging.WARNING, "f", 1, text, (), None))
    caplog_messages = [record.getMessage() for record in caplog.records if record.name == name]
    if logger.propagate:
        assert caplog_messages == ["weights are not what they should be"]
    assert not logger.filter(logger.makeRecord(name, logging.WARNING, "f", 1, SAID[name], (), None))
    assert logger.filter(logger.makeRecord(name, logging.WARNING, "f", 1, "another", (), None))


def test_other_loggers_say_the_same_aloud(caplog):
    install_log_filters()
    logging.getLogger("my.backend").warning(SAID["bitsandbytes.autograd._functions"])
    assert "inputs will be cast" in caplog.text


def test_bars_are_not_drawn_and_come_back():
    from tqdm import tqdm

    def drawn(**keywords):
        out = io.StringIO()
        assert list(tqdm(range(3), file=out, **keywords)) == [0, 1, 2]
        return out.getvalue()

    with no_progress_bars():
        assert drawn() == drawn(disable=False) == ""
    assert "3/3" in drawn()


def test_an_import_is_quiet_and_its_error_surfaces(capsys):
    with pytest.raises(ZeroDivisionError), silenced():
        print("chatter")
        logging.getLogger("x").warning("chatter")
        1 / 0  # noqa: B018
    assert capsys.readouterr() == ("", "")
    assert logging.root.manager.disable == logging.NOTSET


@pytest.mark.parametrize(
    ("multimodal", "unexpected", "warning"),
    [
        (True, ["vision_tower.a", "multi_modal_projector.b"], ""),
        (False, [], ""),
        (False, ["vision_tower.a"], "has 1 weights that Made does not use, vision_tower.a among them"),
        (True, ["model.layers.0.scale", "model.layers.1.scale", "vision_tower.a"], "has 2 weights that Made does not use"),
    ],
)  # fmt: skip
def test_weights_that_no_model_takes_are_said(monkeypatch, multimodal, unexpected, warning):
    """In place of transformers' own report, which also names the vision tower that is left on disk."""

    class Made:
        @staticmethod
        def from_pretrained(*_, **__):
            return "a model", {"missing_keys": [], "unexpected_keys": unexpected, "mismatched_keys": []}

    class Config:
        def get_text_config(self):
            return Config() if multimodal else self

    monkeypatch.setattr(unquantized, "read_config", lambda model: Config())
    monkeypatch.setattr(unquantized, "source_path", lambda model: "x")
    monkeypatch.setattr("transformers.MODEL_FOR_CAUSAL_LM_MAPPING", {Config: Made})
    model = SimpleNamespace(name="m", source="org/m", revision=None, synthetic=False)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        assert (
            unquantized.load_published(SimpleNamespace(model=model, device="cpu", dtype=None)) == "a model"
        )
    assert len(found) == bool(warning)
    assert warning in "".join(str(one.message) for one in found)
