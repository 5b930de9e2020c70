"""TOML entries become specs, or one line that says which file, which table, which key."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import tomlkit
from hypothesis import example, given
from hypothesis import strategies as st

from builders import one_line
from qsae_bench.errors import QsaeError
from qsae_bench.registry import load_registry

MODEL = """
[models.mine]
source = "some/model"
n_layers = 4
d_model = 8
layers = [1, 2]
corpus = "tiny"
sae = { folder = "./saes", d_in = 8 }
"""
QUANTIZATION = '[quantizations.mine]\nbackend = "rtn"\noptions = { bits = 4 }\n'
CORPUS = """
[corpora.mine]
kind = "grammar"
sequence_length = 16
tokens = 150
max_tokens = 300
batch_size = 2
"""


@pytest.fixture
def file(tmp_path):
    return tmp_path / "extra.toml"


def refusal(file: Path, text: str | bytes) -> str:
    """The one-line message with which a file of this content is refused; it names the file."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(QsaeError) as caught:
        load_registry([file])
    message = one_line(caught.value)
    assert message.startswith(f"{file}: ")
    return message.removeprefix(f"{file}: ")


def test_built_in_registry_has_what_the_readme_promises():
    registry = load_registry()
    assert set(registry.models) >= {"tiny_gemma3", "gemma3_4b", "gemma3_12b"}
    assert set(registry.quantizations) >= {"reference", "int8", "nf4", "fp4"}
    gemma = registry.model("gemma3_12b")
    assert (gemma.n_layers, gemma.d_model, gemma.layers) == (48, 3840, (24,))
    assert gemma.sae.sae_id(24) == "layer_24_width_16k_l0_medium"
    assert gemma.reference_bounds["l0"].hold(100) and not gemma.reference_bounds["l0"].hold(float("nan"))
    assert dict(registry.quantization("nf4").options)["bnb_4bit_quant_type"] == "nf4"


def test_specs_can_be_keys():
    cells = load_registry().select()
    assert len(set(cells)) == len(cells)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[model.x]\n", ["[model]", "did you mean 'models'?"]),
        ("models = 3\n", ["[models]", "must be a table"]),
        ("[models]\nmine = 3\n", ["[models.mine]", "must be a table"]),
        (MODEL.replace("d_model", "d_modle"), ["[models.mine]", "'d_modle'", "did you mean 'd_model'?"]),
        (MODEL.replace("d_in = 8", "d_in = 8, widht = '1'"), [".sae", "'widht'", "did you mean 'width'?"]),
        (MODEL.replace("n_layers = 4", 'n_layers = "4"'), ["[models.mine]", "n_layers", "int", "str"]),
        (MODEL.replace("n_layers = 4", "n_layers = true"), ["n_layers", "int", "bool"]),
        (MODEL.replace("[1, 2]", "[1, true]"), ["[models.mine]", "layers", "list of int"]),
        (MODEL.replace("[1, 2]", "[1, 4]"), ["[models.mine]", "layers [1, 4]", "0..3"]),
        (MODEL.replace("[1, 2]", "[-1]"), ["layers [-1]", "0..3"]),
        (MODEL.replace("[1, 2]", "[]"), ["[models.mine]", "layers []"]),
        (MODEL.replace("[1, 2]", "[1, 1]"), ["[models.mine]", "layers [1, 1]", "twice"]),
        (MODEL.replace("d_in = 8", "d_in = 9"), ["[models.mine]", "d_in 9", "width 8", "another model"]),
        (MODEL.replace('"tiny"', '"tinny"'), ["[models.mine]", "corpus 'tinny'", "did you mean 'tiny'?"]),
        (MODEL.replace("models.mine", "models.my-model"), ["[models.my-model]", "hyphens"]),
        (MODEL.replace("models.mine", "models.defaults"), ["[models.defaults]", "thresholds.toml"]),
        (MODEL.replace("models.mine", 'models."two\\nlines"'), ["two\\nlines"]),
        (MODEL + 'name = "other"\n', ["[models.mine]", "'name'"]),
        (MODEL.replace('source = "some/model"', ""), ["[models.mine]", "missing source"]),
        (MODEL.replace('folder = "./saes",', ""), ["[models.mine].sae", "release or a folder"]),
        (MODEL.replace('folder = "./saes"', 'release = "r"'), ["[models.mine].sae", "id_template"]),
        (
            MODEL.replace('folder = "./saes"', 'release = "r", id_template = "{depth}"'),
            ["[models.mine].sae", "id_template '{depth}'", "{layer}"],
        ),
        (MODEL + "reference_bounds = { fvu = [2, 1] }\n", [".reference_bounds.fvu", "[min, max]"]),
        (MODEL + "reference_bounds = { fvu = [nan, 1.0] }\n", [".reference_bounds.fvu", "[min, max]"]),
        (
            MODEL + f"reference_bounds = {{ fvu = [0, 1{'0' * 400}] }}\n",
            [".reference_bounds.fvu", "[min, max]"],
        ),
        (
            QUANTIZATION.replace('"rtn"', '"transformer"'),
            ["[quantizations.mine]", "backend 'transformer'", "did you mean 'transformers'?"],
        ),
        (QUANTIZATION.replace("rtn", "python"), ["[quantizations.mine]", 'function = "module:name"']),
        (QUANTIZATION + 'function = "a:b"\n', ["[quantizations.mine]", 'function = "module:name"']),
        (
            QUANTIZATION.replace("rtn", "python") + 'function = "no_colon"\n',
            ["[quantizations.mine]", 'function = "module:name"'],
        ),
        (QUANTIZATION + "requires = [1]\n", ["[quantizations.mine]", "requires", "list of str"]),
        (
            '[quantizations.reference]\nbackend = "rtn"\n',
            ["[quantizations.reference]", "can't be replaced"],
        ),
        (
            CORPUS.replace("grammar", "gramar"),
            ["[corpora.mine]", "kind 'gramar'", "did you mean 'grammar'?"],
        ),
        (CORPUS.replace("length = 16", "length = 1"), ["[corpora.mine]", "sequence_length"]),
        (CORPUS.replace("max_tokens = 300", "max_tokens = 3"), ["[corpora.mine]", "max_tokens 3", "150"]),
        (CORPUS.replace("batch_size = 2", "batch_size = 0.5"), ["batch_size", "int", "float"]),
        ("models = [", ["not valid TOML"]),
        (f"x = 1{'0' * 5000}", ["not valid TOML"]),
        (b"\xff\xfe", ["not UTF-8"]),
    ],
)
def test_bad_input_takes_one_line(file, text, parts):
    message = refusal(file, text)
    assert [part for part in parts if part not in message] == [], message


def test_missing_file(file):
    with pytest.raises(QsaeError, match=r"extra\.toml: can't be read: No such file") as caught:
        load_registry([file])
    one_line(caught.value)


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(QsaeError, match="can't be read") as caught:
        load_registry([tmp_path])
    assert str(tmp_path) in one_line(caught.value)


@pytest.mark.parametrize(
    ("kind", "name", "meant"),
    [
        ("model", "gemma3_12", "gemma3_12b"),
        ("quantization", "nf5", "nf4"),
        ("corpus", "pile10", "pile10k"),
    ],
)
def test_unknown_name_is_answered_with_the_near_one(kind, name, meant):
    registry = load_registry()
    with pytest.raises(QsaeError) as caught:
        getattr(registry, kind)(name)
    assert one_line(caught.value) == f"unknown {kind} {name!r} (did you mean {meant!r}?)"


def test_a_name_like_no_other_lists_what_is_known():
    with pytest.raises(QsaeError, match="unknown model 'zzz' .*gemma3_12b") as caught:
        load_registry().select(["zzz"])
    one_line(caught.value)


def test_user_entries_come_beside_ours(file):
    file.write_text(MODEL + QUANTIZATION + CORPUS)
    ours, layered = load_registry(), load_registry([file])
    assert set(layered.models) == {*ours.models, "mine"}
    assert layered.models["tiny_gemma3"] == ours.models["tiny_gemma3"]
    assert dict(layered.quantization("mine").options) == {"bits": 4}
    assert layered.corpus("mine").sequence_length == 16


def test_an_entry_replaces_the_whole_one_of_its_name(file):
    file.write_text('[quantizations.nf4]\nbackend = "rtn"\n')
    replaced = load_registry([file]).quantization("nf4")
    assert replaced.backend == "rtn"
    assert dict(replaced.options) == {}, "nothing of the built-in entry may shine through"
    assert replaced.requires == ()
    assert replaced.default is False


def test_the_last_file_wins(tmp_path):
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text("[quantizations.mine]\nbackend = 'rtn'\noptions = { bits = 4 }\n")
    second.write_text("[quantizations.mine]\nbackend = 'rtn'\noptions = { bits = 8 }\n")
    assert load_registry([first, second]).quantization("mine").options["bits"] == 8
    assert load_registry([second, first]).quantization("mine").options["bits"] == 4


@pytest.mark.parametrize("asked", [["nf4", "reference"], ["reference", "nf4"]])
def test_reference_comes_first_among_a_models_cells(asked):
    cells = load_registry().select(["gemma3_12b", "tiny_gemma3"], asked)
    assert [cell.id for cell in cells] == [
        "gemma3_12b-reference", "gemma3_12b-nf4", "tiny_gemma3-reference", "tiny_gemma3-nf4",
    ]  # fmt: skip


def test_defaults_are_chosen_where_nothing_is_named(file):
    file.write_text(MODEL + QUANTIZATION)
    chosen = {cell.id for cell in load_registry([file]).select()}
    assert "tiny_gemma3-nf4" in chosen
    assert not {name for name in chosen if "mine" in name}


def test_a_cell_named_twice_is_one_cell():
    cells = load_registry().select(["tiny_gemma3", "tiny_gemma3"], ["nf4", "nf4"])
    assert [cell.id for cell in cells] == ["tiny_gemma3-nf4"]


def test_relative_folders_are_anchored_at_the_file_that_names_them(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    file = home / "extra.toml"
    file.write_text(MODEL.replace('"some/model"', '"../weights"'))
    monkeypatch.chdir("/")
    mine = load_registry([file]).model("mine")
    assert mine.source == str(tmp_path / "weights")
    assert mine.sae.folder == str(home / "saes")


def test_hub_ids_and_absolute_paths_stay_as_they_are(file):
    file.write_text(MODEL.replace("./saes", "/data/saes"))
    mine = load_registry([file]).model("mine")
    assert (mine.source, mine.sae.folder) == ("some/model", "/data/saes")


words = st.sampled_from(
    ["models", "quantizations", "corpora", "mine", "nf4", "reference", "tiny", "sae", "layers", "backend",
     "options", "kind", "source", "d_in", "folder", "release", "id_template", "reference_bounds", "name"]
)  # fmt: skip
keys = words | st.text(max_size=6)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    words | texts | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.just(["a", 1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)
sections = st.sampled_from(["models", "quantizations", "corpora"])
entries = st.dictionaries(st.sampled_from(["mine", "nf4", "reference", "tiny"]), values, max_size=2)
FULL = {
    "models": tomlkit.parse(MODEL).unwrap()["models"]["mine"],
    "quantizations": tomlkit.parse(QUANTIZATION).unwrap()["quantizations"]["mine"],
    "corpora": tomlkit.parse(CORPUS).unwrap()["corpora"]["mine"],
}


@st.composite
def nearly_right(draw):
    """A good entry with one of its values, or one more, drawn at random: reaches the deep checks."""
    section = draw(sections)
    entry = dict(FULL[section])
    entry[draw(st.sampled_from(sorted(entry)) | keys)] = draw(values)
    return {section: {"mine": entry}}


documents = st.dictionaries(keys, values) | st.dictionaries(sections, entries) | nearly_right()


def check_loads_or_is_refused(content: bytes) -> None:
    """Nothing but a QsaeError of one line may come out."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "any.toml"
        file.write_bytes(content)
        try:
            registry = load_registry([file])
        except QsaeError as error:
            assert one_line(error).startswith(str(file))
        else:
            assert registry.quantization("reference").backend == "none"
            for model in registry.models.values():
                assert registry.corpus(model.corpus).sequence_length >= 2
                assert all(0 <= layer < model.n_layers for layer in model.layers)


@given(documents)
@example({"models": {"mine": {**FULL["models"], "reference_bounds": {"a\nb": 1}}}})
@example({"quantizations": {"reference": {"backend": "python", "function": ":"}}})
def test_any_document_loads_or_is_refused_in_one_line(document):
    check_loads_or_is_refused(tomlkit.dumps(document).encode())


@given(st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode(errors="replace")))
@example(b"x = " + b"[" * 5000)
def test_any_bytes_load_or_are_refused_in_one_line(content):
    check_loads_or_is_refused(content)
