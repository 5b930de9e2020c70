"""TOML entries become specs, or one line that says which file, which table, which key."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import tomlkit
from hypothesis import example, given, settings
from hypothesis import strategies as st

from builders import one_line
from qsae_bench.errors import QsaeError
from qsae_bench.measure import resources
from qsae_bench.registry.entries import Registry, load_registry
from qsae_bench.registry.sae_spec import Bounds, SaeSpec
from qsae_bench.registry.specs import Cell, CorpusSpec, ModelSpec, QuantizationSpec, Selection

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

EVERY = 'sae_every = { folder = "./all", d_in = 8, layers = { from = 0, to = 3 } }\n'
ARCHITECTURE = (
    'architecture = { model_type = "llama", tie_word_embeddings = true, num_attention_heads = 2, '
    "vocab_size = 9 }\n"
)


def with_sae(more: str, folder: bool = True) -> str:
    """The model above, its SAEs described by ``more`` as well."""
    ours = 'folder = "./saes", ' if folder else ""
    return MODEL.replace('folder = "./saes", d_in = 8', f"{ours}d_in = 8, {more}")


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
    assert gemma.reference_bounds["fvu"].contains(0.3) and not gemma.reference_bounds["fvu"].contains(
        float("nan")
    )
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
        (
            MODEL.replace("n_layers = 4", 'n_layers = "4"'),
            ["[models.mine]", "n_layers must be a whole number"],
        ),
        (MODEL.replace("n_layers = 4", "n_layers = true"), ["n_layers must be a whole number"]),
        (MODEL.replace("[1, 2]", "[1, true]"), ["[models.mine]", "layers.1 must be a whole number"]),
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
        (MODEL.replace('folder = "./saes",', ""), [".sae", "release or a folder"]),
        (MODEL.replace('folder = "./saes"', 'release = "r"'), [".sae", "id_template"]),
        (
            MODEL.replace('folder = "./saes"', 'release = "r", id_template = "{depth}"'),
            [".sae", "id_template '{depth}'", "{layer}"],
        ),
        (with_sae('hook = "blocks.{depth}"'), [".sae", "hook 'blocks.{depth}'", "{next_layer}"]),
        (with_sae('hook = "blocks.{layer[0]}"'), ["hook 'blocks.{layer[0]}'", "{next_layer}"]),
        (with_sae('hook = "blocks.{"'), [".sae", "hook 'blocks.{'"]),
        (
            with_sae('release = "r_{size}", id_template = "i"', folder=False),
            ["release 'r_{size}'", "{width}"],
        ),
        (with_sae('release = "r"'), [".sae", "either a release or a folder"]),
        (with_sae("layers = [1]"), ["[models.mine]", "no SAE for layers [2]", "sae.layers lacks them"]),
        (with_sae("layers = [1, 2, 4]"), ["[models.mine]", "layers [1, 2, 4]", "0..3"]),
        (with_sae("layers = [2, 1, 2]"), ["[models.mine]", "layers [2, 1, 2]", "twice"]),
        (with_sae("layers = { from = 0, to = 4 }"), ["[models.mine]", "layers [0, 1, 2, 3, 4]", "0..3"]),
        (with_sae("layers = { from = 0 }"), [".sae", "{ from = 0, to = 47 }"]),
        (with_sae("layers = { from = 0, to = 3, step = 1 }"), [".sae", "{ from = 0, to = 47 }"]),
        (with_sae("layers = { from = 0, to = true }"), [".sae", "{ from = 0, to = 47 }"]),
        (with_sae("layers = { from = 3, to = 1 }"), [".sae", "{ from = 0, to = 47 }"]),
        (with_sae(f"layers = {{ from = 0, to = {2**62} }}"), [".sae", "{ from = 0, to = 47 }"]),
        (with_sae("widths = [16]"), [".sae", "widths.0 must be text"]),
        (with_sae("expected_l0 = { big = 60 }"), ["[models.mine].sae.expected_l0.big", "[min, max]"]),
        (with_sae("expected_l0 = { big = [60, 40] }"), [".sae.expected_l0.big", "[min, max]"]),
        (with_sae("expected_l0 = [60, 40]"), [".sae", "expected_l0 must be a table"]),
        (MODEL + EVERY.replace("d_in = 8", "d_in = 9"), ["[models.mine]", "d_in 9", "another model"]),
        (MODEL + EVERY.replace("to = 3", "to = 4"), ["[models.mine]", "[0, 1, 2, 3, 4]", "0..3"]),
        (MODEL + EVERY.replace("folder", "foldr"), ["[models.mine].sae_every", "'foldr'", "'folder'"]),
        (MODEL + 'sae_every = "all"\n', ["[models.mine]", "sae_every must be a table"]),
        (MODEL + "architecture = { vocab_size = 9 }\n", ["[models.mine]", "architecture needs model_type"]),
        (MODEL + ARCHITECTURE.replace("= 9", '= "9"'), ["architecture needs vocab_size", "int"]),
        (MODEL + ARCHITECTURE.replace("= 9", "= 0"), ["architecture.vocab_size", "at least 1"]),
        (MODEL + ARCHITECTURE.replace(" }", ", head_dim = 1.5 }"), ["architecture.head_dim", "int"]),
        (MODEL + 'published = { nf4 = { "a\\nb" = "1" } }\n', ["published.nf4.'a\\nb'", "a finite number"]),
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
        (QUANTIZATION + 'gpu_dtype = "half"\n', ["[quantizations.mine]", "gpu_dtype must be"]),
        (QUANTIZATION + "requires = [1]\n", ["[quantizations.mine]", "requires.0 must be text"]),
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
        (CORPUS.replace("batch_size = 2", "batch_size = 0.5"), ["batch_size must be a whole number"]),
        (CORPUS.replace("batch_size = 2", "batch_size = 0"), ["[corpora.mine]", "batch_size ≥ 1"]),
        (
            f"{CORPUS}sequences_per_document = 0\n",
            ["[corpora.mine]", "sequences_per_document 0", "at least 1"],
        ),
        (CORPUS.replace("tokens = 150", "tokens = 0"), ["[corpora.mine]", "tokens ≥ 1"]),
        (CORPUS + 'packing = "concatenate"\n', ["packing 'concatenate'", "did you mean 'concatenated'?"]),
        (CORPUS + 'path = "./x.txt"\n', ["[corpora.mine]", 'kind "textfile", and only it, needs a path']),
        (CORPUS.replace("grammar", "textfile"), ["[corpora.mine]", 'kind "textfile"', "needs a path"]),
        (CORPUS + 'chat = true\npacking = "concatenated"\n', ["chat = true", 'must be "documents"']),
        (CORPUS + "chat = 1\n", ["[corpora.mine]", "chat must be true or false"]),
        ("models = [", ["not valid TOML"]),
        (f"x = 1{'0' * 5000}", ["not valid TOML"]),
        (b"\xff\xfe", ["not UTF-8"]),
    ],
)
def test_bad_input_takes_one_line(file, text, parts):
    message = refusal(file, text)
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize(("name", "reason"), [("extra.toml", "No such file"), (".", "Is a directory")])
def test_a_file_that_can_not_be_read(tmp_path, name, reason):
    with pytest.raises(QsaeError, match=f"can't be read: {reason}") as caught:
        load_registry([tmp_path / name])
    assert one_line(caught.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize(
    ("kind", "name", "meant"),
    [("model", "gemma3_12", "gemma3_12b"), ("quantization", "nf5", "nf4"), ("corpus", "pile10", "pile10k")],
)
def test_unknown_name_is_answered_with_the_near_one(kind, name, meant):
    registry = load_registry()
    with pytest.raises(QsaeError) as caught:
        getattr(registry, kind)(name)
    assert one_line(caught.value) == f"unknown {kind} {name!r} (did you mean {meant!r}?)"


def test_a_name_like_no_other_lists_what_is_known():
    with pytest.raises(QsaeError, match="unknown model 'zzz' .*gemma3_12b") as caught:
        load_registry().select(Selection(models=("zzz",)))
    one_line(caught.value)


def test_layers_may_be_written_as_a_range(file):
    file.write_text(with_sae("layers = { from = 1, to = 3 }") + EVERY)
    mine = load_registry([file]).model("mine")
    assert mine.sae.layers == (1, 2, 3)
    assert mine.sae_every.layers == (0, 1, 2, 3)


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


@pytest.mark.parametrize("asked", [("nf4", "reference"), ("reference", "nf4")])
def test_reference_comes_first_among_a_models_cells(asked):
    cells = load_registry().select(Selection(("gemma3_12b", "tiny_gemma3"), asked))
    assert [cell.id for cell in cells] == [
        "gemma3_12b-reference", "gemma3_12b-nf4", "tiny_gemma3-reference", "tiny_gemma3-nf4",
    ]  # fmt: skip


def test_defaults_are_chosen_where_nothing_is_named(file):
    file.write_text(MODEL + QUANTIZATION)
    chosen = {cell.id for cell in load_registry([file]).select()}
    assert "tiny_gemma3-nf4" in chosen
    assert not {name for name in chosen if "mine" in name}


def test_a_cell_named_twice_is_one_cell():
    cells = load_registry().select(Selection(("tiny_gemma3", "tiny_gemma3"), ("nf4", "nf4")))
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


def test_a_corpus_file_is_anchored_too(tmp_path, monkeypatch):
    (tmp_path / "extra.toml").write_text(CORPUS.replace("grammar", "textfile") + 'path = "./mine.txt"\n')
    monkeypatch.chdir("/")
    assert load_registry([tmp_path / "extra.toml"]).corpus("mine").path == str(tmp_path / "mine.txt")


def test_hub_ids_and_absolute_paths_stay_as_they_are(file):
    file.write_text(MODEL.replace("./saes", "/data/saes"))
    mine = load_registry([file]).model("mine")
    assert (mine.source, mine.sae.folder) == ("some/model", "/data/saes")


# -- layers, widths and l0s by the command line ------------------------------------------------------

CHOOSY = ModelSpec(
    "choosy", "some/model", n_layers=12, d_model=8, layers=(6,), corpus="tiny",
    sae=SaeSpec(
        8, release="some", id_template="{layer}-{width}-{l0}", layers=(3, 6, 9), width="16k",
        widths=("16k", "65k"), l0="medium", expected_l0={"medium": Bounds(30, 60), "big": Bounds(90, 150)},
    ),
    sae_every=SaeSpec(
        8, release="some-all", id_template="{layer}-{width}-{l0}", layers=tuple(range(12)), width="16k",
        l0="small", expected_l0={"small": Bounds(6, 12)},
    ),
)  # fmt: skip
PLAIN = replace(
    CHOOSY, name="plain", sae=SaeSpec(8, folder="./saes"), layers=(1, 2), sae_every=None,
    reference_bounds={"l0": Bounds(5, 7), "fvu": Bounds(0, 1)},
)  # fmt: skip


@pytest.mark.parametrize(
    ("model", "choice", "layers", "ids"),
    [
        (CHOOSY, "", (6,), ["6-16k-medium"]),
        (CHOOSY, "all", (3, 6, 9), ["3-16k-medium", "6-16k-medium", "9-16k-medium"]),
        (CHOOSY, "every", tuple(range(12)), [f"{layer}-16k-small" for layer in range(12)]),
        (CHOOSY, "9,3", (9, 3), ["9-16k-medium", "3-16k-medium"]),
        (CHOOSY, " 9 , 9", (9,), ["9-16k-medium"]),
        (PLAIN, "", (1, 2), ["layer1", "layer2"]),
        (PLAIN, "all", (1, 2), ["layer1", "layer2"]),
        (PLAIN, "every", (1, 2), ["layer1", "layer2"]),
        (PLAIN, "2", (2,), ["layer2"]),
    ],
)
def test_layers_that_can_be_chosen(model, choice, layers, ids):
    tapped = model.with_layers(choice)
    assert tapped.layers == layers
    assert [tapped.sae.sae_id(layer) for layer in tapped.layers] == ids


def test_width_and_l0_fill_the_template():
    tapped = CHOOSY.with_layers("3", width="65k", l0="big")
    assert tapped.sae.sae_id(3) == "3-65k-big"
    assert CHOOSY.sae.width == "16k", "the entry itself stays"


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (CHOOSY, ("4",), "model 'choosy': no SAE for layer 4, only for 3, 6, 9; --layers every has one for each"),
        (CHOOSY, ("3,4,5",), "model 'choosy': no SAE for layer 4, 5, only for 3, 6, 9; --layers every has one for each"),
        (CHOOSY, ("4,12",), "model 'choosy': no SAE for layer 4, 12, only for 3, 6, 9"),
        (CHOOSY, ("-3",), "model 'choosy': no SAE for layer -3, only for 3, 6, 9"),
        (PLAIN, ("3",), "model 'plain': no SAE for layer 3, only for 1, 2"),
        (CHOOSY, ("most",), "--layers 'most': all, every, or numbers such as 9,17"),
        (CHOOSY, ("3,",), "--layers '3,': all, every, or numbers such as 9,17"),
        (CHOOSY, ("3-9",), "--layers '3-9': all, every, or numbers such as 9,17"),
        (CHOOSY, ("", "1m"), "model 'choosy': --sae-width 1m: its SAEs come in 16k, 65k"),
        (CHOOSY, ("every", "65k"), "model 'choosy': --sae-width 65k: its SAEs come in 16k"),
        (CHOOSY, ("", "", "small"), "model 'choosy': --sae-l0 small: its SAEs come in medium, big"),
        (CHOOSY, ("every", "", "medium"), "model 'choosy': --sae-l0 medium: its SAEs come in small"),
        (PLAIN, ("", "16k"), "model 'plain': --sae-width 16k: its SAEs come in one only"),
        (PLAIN, ("", "", "big"), "model 'plain': --sae-l0 big: its SAEs come in one only"),
    ],
)  # fmt: skip
def test_what_can_not_be_chosen(model, arguments, message):
    with pytest.raises(QsaeError) as caught:
        model.with_layers(*arguments)
    assert one_line(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "bounds"),
    [(("",), Bounds(10, 180)), (("", "", "big"), Bounds(30, 450)), (("every",), Bounds(2, 36))],
)
def test_a_sane_l0_is_within_three_times_what_the_saes_were_trained_to(arguments, bounds):
    assert CHOOSY.with_layers(*arguments).reference_bounds["l0"] == bounds


def test_an_entrys_own_bounds_stay():
    model = replace(CHOOSY, reference_bounds={"l0": Bounds(5, 7)})
    assert model.with_layers("all").reference_bounds["l0"] == Bounds(5, 7)
    assert PLAIN.with_layers("all").reference_bounds == PLAIN.reference_bounds


@pytest.mark.parametrize(
    ("changes", "features"),
    [
        ({"width": "16k"}, 16384), ({"width": "65k"}, 65536), ({"width": "64k"}, 65536),
        ({"width": "1m"}, 1048576), ({"width": "8x"}, 64), ({"width": "16k", "d_sae": 100}, 100),
        ({"width": ""}, 0), ({"width": "wide"}, 0), ({"width": "0k"}, 0),
    ],
)  # fmt: skip
def test_features_by_width(changes, features):
    assert replace(CHOOSY.sae, **changes).features == features


# -- what a command line selects ---------------------------------------------------------------------


def made_up(*models: ModelSpec) -> Registry:
    quantizations = [
        QuantizationSpec(name, "none", default=name != "spare") for name in ("nf4", "spare", "reference")
    ]
    corpora = [
        CorpusSpec("tiny", "grammar", 16, 150, 300, 2),
        CorpusSpec("talk", "pile10k", 512, 100, 200, 4, chat=True),
    ]
    return Registry(
        {model.name: model for model in models},
        {quantization.name: quantization for quantization in quantizations},
        {corpus.name: corpus for corpus in corpora},
    )


TWO = made_up(replace(CHOOSY, default=True), replace(PLAIN, default=True), replace(PLAIN, name="third"))


def ids(selection: Selection, registry: Registry = TWO) -> list[str]:
    return [cell.id for cell in registry.select(selection)]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), ["choosy-reference", "choosy-nf4", "plain-reference", "plain-nf4"]),
        (Selection(quantizations=("spare",)), ["choosy-spare", "plain-spare"]),
        (Selection(models=("third",), quantizations=("nf4",)), ["third-nf4"]),
        (Selection(layers="9"), ["choosy-reference", "choosy-nf4"]),
        (Selection(layers="1"), ["plain-reference", "plain-nf4"]),
        (Selection(sae_width="65k"), ["choosy-reference", "choosy-nf4"]),
        (Selection(sae_l0="big"), ["choosy-reference", "choosy-nf4"]),
        (Selection(layers="all"), ["choosy-reference", "choosy-nf4", "plain-reference", "plain-nf4"]),
    ],
)  # fmt: skip
def test_selection(selection, expected):
    assert ids(selection) == expected


@pytest.mark.parametrize(
    ("keyword", "models", "quantizations"),
    [
        ("nf4", ["choosy", "plain"], ["reference", "nf4"]),
        ("third", ["choosy", "plain", "third"], ["reference", "nf4"]),
        ("third-nf4 or layer6", ["choosy", "plain", "third"], ["reference", "nf4"]),
        ("test_fvu[third-spare-layer1]", ["choosy", "plain", "third"], ["reference", "nf4", "spare"]),
        ("not (Third and SPARE)", ["choosy", "plain", "third"], ["reference", "nf4", "spare"]),
        ("thir or spar or third_x", ["choosy", "plain"], ["reference", "nf4"]),
    ],
)
def test_a_keyword_that_names_an_entry_in_full_selects_it_too(keyword, models, quantizations):
    """-k itself only narrows: without this, naming a model that is no default would leave nothing."""
    cells = TWO.select(Selection(keyword=keyword))
    assert list(dict.fromkeys(cell.model.name for cell in cells)) == models
    assert list(dict.fromkeys(cell.quantization.name for cell in cells)) == quantizations


def test_a_keyword_adds_nothing_to_what_is_named():
    assert ids(Selection(("plain",), ("nf4",), keyword="third and spare")) == ["plain-nf4"]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (
            Selection(models=("choosy", "plain"), layers="9"),
            "model 'plain': no SAE for layer 9, only for 1, 2",
        ),
        (Selection(layers="11"), "no SAE for layer 11"),
        (Selection(layers="most"), "--layers 'most': all, every, or numbers"),
        (Selection(models=("plain",), synthetic=True), "model 'plain': --synthetic needs its architecture"),
    ],
)
def test_a_choice_that_a_named_model_or_every_model_lacks_is_refused(selection, message):
    with pytest.raises(QsaeError, match=message) as caught:
        TWO.select(selection)
    one_line(caught.value)


def test_selected_cells_are_tapped_as_asked():
    cells = TWO.select(Selection(models=("choosy",), layers="9,3", sae_width="65k", sae_l0="big"))
    assert {cell.model.layers for cell in cells} == {(9, 3)}
    assert {cell.model.sae.sae_id(9) for cell in cells} == {"9-65k-big"}


def test_random_weights_are_of_models_with_an_architecture():
    registry = made_up(
        replace(CHOOSY, architecture={"model_type": "llama"}, default=True), replace(PLAIN, default=True)
    )
    cells = registry.select(Selection(synthetic=True))
    assert {(cell.model.name, cell.model.synthetic) for cell in cells} == {("choosy", True)}


def test_every_built_in_model_can_be_made_of_random_weights():
    registry = load_registry()
    cells = registry.select(Selection(models=tuple(registry.models), synthetic=True))
    assert {cell.model.name for cell in cells} == set(registry.models)


# -- what a model is measured on ----------------------------------------------------------------------

TINY = TWO.corpora["tiny"]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), TINY),
        (Selection(corpus="talk"), TWO.corpora["talk"]),
        (Selection(tokens=200), replace(TINY, tokens=200, max_tokens=200)),  # so many, and no more
        (Selection(tokens=200, max_tokens=250), replace(TINY, tokens=200, max_tokens=250)),
        (Selection(sequences_per_document=5), replace(TINY, sequences_per_document=5)),
        (Selection(tokens=301), replace(TINY, tokens=301, max_tokens=301)),
        (Selection(sequence_length=64, batch_size=1), replace(TINY, sequence_length=64, batch_size=1)),
        (
            Selection(protocol="study"),
            replace(
                TINY, name="tiny (study)", packing="concatenated", every_position=True, max_tokens=TINY.tokens
            ),
        ),
        (Selection(synthetic=True), replace(TINY, name="random", kind="random")),
        (
            Selection(synthetic=True, corpus="talk", sequence_length=128),
            replace(TWO.corpora["talk"], name="random", kind="random", chat=False, sequence_length=128),
        ),
        (
            Selection(corpus="textfile:./a:b.txt"),
            CorpusSpec("textfile", "textfile", 512, 130_816, 511_000, 4, path="./a:b.txt"),
        ),
        (
            Selection(corpus="textfile:a.txt", protocol="study", tokens=10),
            CorpusSpec(
                "textfile (study)", "textfile", 512, 10, 10, 4, path="a.txt", packing="concatenated",
                every_position=True,
            ),
        ),
    ],
)  # fmt: skip
def test_corpus_as_selected(selection, expected):
    assert TWO.corpus_of(CHOOSY, selection) == expected


def test_the_study_measures_what_its_protocol_says():
    """50 000 tokens in chunks of 512, batches of 4, as ../shared/facts.md has it."""
    registry = load_registry()
    corpus = registry.corpus_of(registry.model("gemma3_4b"), Selection(protocol="study"))
    assert (corpus.kind, corpus.sequence_length, corpus.batch_size, corpus.seed) == ("pile10k", 512, 4, 0)
    assert (corpus.packing, corpus.every_position, corpus.chat) == ("concatenated", True, False)
    assert 50_000 <= corpus.tokens <= 51_200


@pytest.mark.parametrize(
    ("selection", "part"),
    [
        (Selection(corpus="tinny"), "unknown corpus 'tinny' (did you mean 'tiny'?)"),
        (Selection(corpus="textfile:"), "textfile:PATH"),
        (Selection(sequence_length=1), "--sequence-length ≥ 2"),
        (Selection(tokens=-1), "--tokens ≥ 1"),
        (Selection(batch_size=-1), "--batch-size ≥ 1"),
        (Selection(sequences_per_document=-1), "--sequences-per-document ≥ 1"),
    ],
)
def test_a_corpus_that_can_not_be(selection, part):
    with pytest.raises(QsaeError) as caught:
        TWO.corpus_of(CHOOSY, selection)
    assert part in one_line(caught.value)


# -- any file ----------------------------------------------------------------------------------------

words = st.sampled_from(
    ["models", "quantizations", "corpora", "mine", "nf4", "reference", "tiny", "sae", "layers", "backend",
     "options", "kind", "source", "d_in", "folder", "release", "id_template", "reference_bounds", "name",
     "sae_every", "architecture", "expected_l0", "hook", "widths", "path", "packing", "chat", "from", "to"]
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
    "models": tomlkit.parse(MODEL + EVERY + ARCHITECTURE).unwrap()["models"]["mine"],
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
                for choice in ("", "all", "every"):
                    tapped = model.with_layers(choice)
                    assert all(tapped.sae.hook_name(layer) for layer in tapped.layers)
                if model.architecture:
                    cell = Cell(model, registry.quantization("reference"))
                    assert (
                        resources.estimate_need(cell, registry.corpus(model.corpus), on_gpu=True).memory > 0
                    )


@settings(deadline=None)
@given(documents)
@example({"models": {"mine": {**FULL["models"], "reference_bounds": {"a\nb": 1}}}})
@example({"quantizations": {"reference": {"backend": "python", "function": ":"}}})
def test_any_document_loads_or_is_refused_in_one_line(document):
    check_loads_or_is_refused(tomlkit.dumps(document).encode())


@settings(deadline=None)
@given(st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode(errors="replace")))
@example(b"x = " + b"[" * 5000)
def test_any_bytes_load_or_are_refused_in_one_line(content):
    check_loads_or_is_refused(content)
