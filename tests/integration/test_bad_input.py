"""Bad input through pytest itself: one line that says what is wrong and what to do, and no traceback."""

from __future__ import annotations

import pytest

from running import benchmarks

GOOD = '{ max = 1.0, source = "test" }'


def the_line(output, *parts):
    """The one line that holds every part."""
    lines = [line for line in output.splitlines() if all(part in line for part in parts)]
    assert lines, f"no line with {parts} in:\n{output}"
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--models", "gema3_12b"], ["unknown model 'gema3_12b'", "did you mean 'gemma3_12b'"]),
        (["--quantizations", "nf5"], ["unknown quantization 'nf5'", "did you mean 'nf4'"]),
        (["--registry", "nowhere.toml"], ["nowhere.toml", "can't be read"]),
        (["--thresholds", "nowhere.toml"], ["nowhere.toml", "can't be read"]),
        (["--tokens", "0"], ["--tokens 0"]),
    ],
)
def test_wrong_options(arguments, parts):
    status, output = benchmarks(*arguments)
    assert status == 2
    the_line(output, "ERROR", *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("schema = 1\n[defaults.nf4\n", ["not valid TOML"]),
        ("schema = 2\n", ["schema = 1 is needed"]),
        (f"schema = 1\n[defaults.nf4]\nperplexty = {GOOD}\n", ["unknown metric", "did you mean"]),
        (f"schema = 1\n[tiny_gemma.nf4]\nfvu = {GOOD}\n", ["unknown model", "'tiny_gemma3'"]),
        (f"schema = 1\n[defaults.nf5]\nfvu = {GOOD}\n", ["unknown quantization", "'nf4'"]),
        (
            'schema = 1\n[defaults.nf4]\nfvu = { maxx = 1.0, source = "x" }\n',
            ["unknown key 'maxx'", "'max'"],
        ),
        ("schema = 1\n[defaults.nf4]\nfvu = { max = 1.0 }\n", ["source is needed"]),
        (f"schema = 1\n[defaults.nf4]\nfvu_scalar_bos = {GOOD}\n", ["never gated"]),
    ],
)
def test_wrong_thresholds(tmp_path, text, parts):
    file = tmp_path / "mine.toml"
    file.write_text(text, encoding="utf-8")
    status, output = benchmarks("--thresholds", str(file))
    assert status == 2
    the_line(output, "ERROR", str(file), *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[quantizations.a]\nbackend = 'transfomers'\n", ["unknown backend", "'transformers'"]),
        ("[quantisations.a]\nbackend = 'none'\n", ["unknown table", "'quantizations'"]),
        ("[quantizations.a]\nbackend = 'rtn'\noption = {}\n", ["unknown key 'option'", "'options'"]),
        (
            "[models.m]\nsource = './m'\nn_layers = 2\nd_model = 192\nlayers = [1]\ncorpus = 'tiny'\n"
            "sae = { folder = './s', d_in = 256 }\n",
            ["d_in 256 differs from the model's width 192"],
        ),
    ],
)
def test_wrong_registry(tmp_path, text, parts):
    file = tmp_path / "mine.toml"
    file.write_text(text, encoding="utf-8")
    status, output = benchmarks("--registry", str(file))
    assert status == 2
    the_line(output, "ERROR", str(file), *parts)


def test_keyword_that_selects_nothing():
    status, output = benchmarks("-k", "gemma3_13b")
    assert status == 3
    the_line(output, "qsae-bench: -k 'gemma3_13b' leaves nothing to measure; models: tiny_gemma3")
    assert "gemma3_12b" in output


def test_nothing_measurable_is_not_green(tmp_path):
    """On a machine without a GPU every cell of this selection skips."""
    status, output = benchmarks(
        "-k", "gemma3_12b", "--qsae-dir", str(tmp_path), CUDA_VISIBLE_DEVICES="", HF_TOKEN=""
    )
    assert status == 3
    text = " ".join(output.split())  # the summary wraps its lines
    assert (
        "gemma3_12b: skipped (reference, int8, nf4, fp4): gemma3_12b needs a CUDA GPU with 27 GiB" in text
    )
    assert "run it on a GPU machine" in text


def test_strict_makes_a_skip_an_error(tmp_path):
    status, output = benchmarks(
        "--strict",
        "-k",
        "perplexity and gemma3_12b-nf4",
        "--qsae-dir",
        str(tmp_path),
        CUDA_VISIBLE_DEVICES="",
    )
    assert status == 3
    the_line(output, "--strict: gemma3_12b needs a CUDA GPU")


@pytest.mark.slow
def test_unset_threshold_fails_and_says_what_to_add(tmp_path):
    (tmp_path / "t.toml").write_text("schema = 1\n", encoding="utf-8")
    status, output = benchmarks(
        "--models", "tiny_gemma3", "--quantizations", "int8", "-k", "perplexity", "--tokens", "2032",
        "--thresholds", str(tmp_path / "t.toml"), "--qsae-dir", str(tmp_path),
    )  # fmt: skip
    assert status == 1
    the_line(output, "perplexity_increase_pct UNSET")
    the_line(output, "add perplexity_increase_pct to thresholds.toml")


@pytest.mark.slow
def test_a_missing_model_takes_one_line_from_every_benchmark(tmp_path):
    """Also from those that load and time it themselves: no traceback, nothing measured, not green."""
    (tmp_path / "r.toml").write_text(
        "[models.mine]\nsource = './nothing'\nn_layers = 6\nd_model = 192\nlayers = [1]\ncorpus = 'tiny'\n"
        "sae = { folder = 'package:tiny/data/saes', d_in = 192 }\n",
        encoding="utf-8",
    )
    status, output = benchmarks(
        "--registry", str(tmp_path / "r.toml"), "--models", "mine", "--qsae-dir", str(tmp_path / "q")
    )
    assert status == 3
    the_line(output, "model 'mine': no such folder")
    assert "mine: error (reference, int8, nf4, fp4)" in " ".join(output.split())


@pytest.mark.slow
def test_too_few_sequences_for_an_interval(tmp_path):
    status, output = benchmarks(
        "--models", "tiny_gemma3", "-k", "perplexity", "--tokens", "100", "--qsae-dir", str(tmp_path)
    )
    assert status == 3
    the_line(output, "1 sequences are too few for an interval")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entry", "parts"),
    [
        ("corpus = 'long'", ["corpus 'long'", "no document has 99999 tokens"]),
        ("n_layers = 7", ["(layers, width) (6, 192)", "(7, 192)"]),
        ("sae = { folder = './nothing', d_in = 192 }", ["no SAE of layer 1"]),
        ("source = './nothing'", ["model 'mine'", "no such folder"]),
    ],
)
def test_what_only_loading_can_find(tmp_path, entry, parts):
    fields = {
        "source": "'package:tiny/data/model'", "n_layers": "6", "d_model": "192", "layers": "[1]",
        "corpus": "'tiny'", "sae": "{ folder = 'package:tiny/data/saes', d_in = 192 }",
    }  # fmt: skip
    key, _, value = entry.partition(" = ")
    fields[key] = value
    text = "[models.mine]\n" + "".join(f"{k} = {v}\n" for k, v in fields.items())
    text += "[corpora.long]\nkind = 'grammar'\nsequence_length = 100000\ntokens = 1\nmax_tokens = 1\nbatch_size = 1\n"
    (tmp_path / "r.toml").write_text(text, encoding="utf-8")
    status, output = benchmarks(
        "--registry", str(tmp_path / "r.toml"), "--models", "mine", "--quantizations", "reference",
        "--tokens", "2032", "-k", "perplexity", "--qsae-dir", str(tmp_path / "q"),
    )  # fmt: skip
    assert status == 3
    the_line(output, *parts)


def test_a_full_disk_is_an_os_error_whoever_noticed_it(tmp_path):
    """safetensors raises its own exception, which no ``except OSError`` would see."""
    import numpy as np
    from safetensors.numpy import save_file

    from qsae_bench.files import os_errors

    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"\S") as caught, os_errors():
        save_file({"a": np.zeros(3)}, tmp_path / "folder")  # a folder can't be written as a file
    assert caught.value.strerror
    with pytest.raises(KeyError), os_errors():
        raise KeyError("another fault stays what it is")
