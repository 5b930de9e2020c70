"""The command that builds the tiny model: a short run from end to end, and its refusals."""

from __future__ import annotations

import json

import pytest
from tools.tiny.train import main, replaced


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "0"], "at least 1"),
        (["--layers", "6"], "layers 0 to 5"),
        (["--sae-tokens", "many"], "invalid"),
        (["--keep-model", "--out", "/nonexistent"], "no model"),
    ],
)
def test_bad_arguments_take_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_out_must_be_a_folder(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(SystemExit):
        main(["--out", str(file)])
    assert "name a folder" in capsys.readouterr().err.splitlines()[-1]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("kept")
    with pytest.raises(RuntimeError), replaced(target) as folder:
        (folder / "new").write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (target / "old").read_text() == "kept"


def test_a_finished_write_replaces_what_was_there(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("")
    with replaced(target) as folder:
        (folder / "new").write_text("whole")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert [p.name for p in target.iterdir()] == ["new"]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_short_run_writes_everything(tmp_path, seed):
    torch = pytest.importorskip("torch")
    sae_lens = pytest.importorskip("sae_lens")
    transformers = pytest.importorskip("transformers")

    options = f"--seed {seed} --steps 20 --sae-tokens 20000 --layers 1 4 --threads 1"
    assert main([*options.split(), "--out", str(tmp_path)]) == 0

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert model.config.vocab_size == len(tokenizer)
    assert 3e6 < sum(p.numel() for p in model.parameters()) < 8e6
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"

    for layer in (1, 4):
        sae = sae_lens.SAE.load_from_disk(tmp_path / "saes" / f"layer{layer}")
        assert (sae.cfg.d_in, sae.cfg.d_sae) == (192, 2048)
        assert sae.cfg.metadata.hook_name == f"blocks.{layer}.hook_resid_post"
        assert sae.cfg.normalize_activations == "none"

    quality = json.loads((tmp_path / "quality.json").read_text())
    assert quality["model"]["heldout_cross_entropy"] < quality["model"]["unigram_entropy"] + 1
    assert set(quality["saes"]) == {"1", "4"}
    assert f"--seed {seed} --steps 20" in (tmp_path / "MODEL_CARD.md").read_text()
    assert not list(tmp_path.glob(".*"))
    stored = [p.read_text() for p in tmp_path.rglob("*.json")]
    assert not [text for text in stored if str(tmp_path) in text]
