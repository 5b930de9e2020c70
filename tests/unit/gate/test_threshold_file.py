"""thresholds.toml: what is refused, and that writing and reading agree."""

from __future__ import annotations

import datetime
import tomllib
from dataclasses import replace

import pytest
import tomlkit
from hypothesis import example, given
from hypothesis import strategies as st

import bounds
from builders import one_line
from paths import ROOT
from qsae_bench.errors import QsaeError
from qsae_bench.gate.known_names import KnownNames
from qsae_bench.gate.threshold_file import load_thresholds, parse_thresholds, toml_entry
from qsae_bench.gate.thresholds import Provenance, Thresholds, table_name
from qsae_bench.metrics import METRICS
from qsae_bench.registry.entries import load_registry

MODELS = ("gemma3_12b", "tiny_gemma3")
QUANTIZATIONS = ("nf4", "int8", "reference")
KNOWN = KnownNames({"gemma3_12b": (3, 24), "tiny_gemma3": (1, 3, 4)}, QUANTIZATIONS)
H200 = "NVIDIA H200"


def parse(text: str) -> Thresholds:
    return parse_thresholds(tomllib.loads(text), "t.toml", KNOWN)


MEASURED = """
schema = 1
[gemma3_12b.nf4]
fvu = { max = 1, source = "2 × high", measured = 0.5, low = 0.25, high = 0.75, tokens = 100, hardware = "NVIDIA H200", versions = "torch 2", date = 2026-11-24, run = "r", reason = "new kernel", corpus = "tiny", fingerprint = "ab", sequence_length = 128 }
mse = { max = 1, source = "s", measured = 1 }
"""


def test_provenance_is_read_and_shown():
    found = parse(MEASURED).find("gemma3_12b", "nf4", "fvu", 3)
    assert found.provenance == Provenance(
        0.5,
        0.25,
        0.75,
        100,
        H200,
        "torch 2",
        datetime.date(2026, 11, 24),
        "r",
        "new kernel",
        "tiny",
        "ab",
        128,
    )
    assert str(found) == (
        "≤ 1 ([gemma3_12b.nf4]: 2 × high; measured 0.5 [0.25, 0.75] on 100 tokens of tiny in sequences of 128, NVIDIA H200, 2026-11-24, "
        "loosened: new kernel)"
    )
    assert (
        str(parse(MEASURED).find("gemma3_12b", "nf4", "mse", 3)) == "≤ 1 ([gemma3_12b.nf4]: s; measured 1)"
    )


GOOD = '{ max = 1, source = "s" }'


def entry(more: str) -> str:
    return f'schema = 1\n[defaults.nf4]\nfvu = {{ max = 1, source = "s", {more} }}\n'


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["schema = 1", "None"]),
        ("schema = 2", ["schema = 1", "2"]),
        ("schema = true", ["schema = 1", "True"]),
        (f"schema = 0x{'f' * 5000}", ["schema = 1", "found int"]),
        ("schema = [1]", ["schema = 1", "found list"]),
        ("schema = 1\n[gemma3_12.nf4]\n", ["[gemma3_12]", "did you mean 'gemma3_12b'?"]),
        ("schema = 1\n[default.nf4]\n", ["[default]", "did you mean 'defaults'?"]),
        ("schema = 1\n[defaults.nf5]\n", ["[defaults.nf5]", "did you mean 'nf4'?"]),
        ("schema = 1\n[defaults]\nnf4 = 3\n", ["[defaults.nf4]", "table"]),
        ("schema = 1\ndefaults = 3\n", ["[defaults]", "table"]),
        ('schema = 1\n["two\\nlines".nf4]\n', ["two\\nlines"]),
        (f"schema = 1\n[defaults.nf4]\nfuv = {GOOD}\n", ["[defaults.nf4] fuv", "did you mean 'fvu'?"]),
        (f'schema = 1\n[defaults.nf4]\n"a\\nb" = {GOOD}\n', ["[defaults.nf4] 'a\\nb'"]),
        ("schema = 1\n[defaults.nf4]\nlayer3 = 1\n", ["[defaults.nf4.layer3]", "table"]),
        (
            f"schema = 1\n[defaults.nf4.layer03]\nfvu = {GOOD}\n",
            ["[defaults.nf4] layer03", "unknown metric"],
        ),
        (f'schema = 1\n[defaults.nf4."layer1٣"]\nfvu = {GOOD}\n', ["layer1٣", "unknown metric"]),
        (f"schema = 1\n[defaults.nf4.layer3.layer4]\nfvu = {GOOD}\n", ["layer4", "unknown metric"]),
        (f"schema = 1\n[defaults.nf4]\nfvu_scalar_bos = {GOOD}\n", ["fvu_scalar_bos", "never gated"]),
        (
            f"schema = 1\n[defaults.nf4.layer3]\nperplexity = {GOOD}\n",
            ["[defaults.nf4.layer3] perplexity", "one value a cell"],
        ),
        ("schema = 1\n[defaults.nf4]\nfvu = 0.3\n", ["fvu", "{ max = …"]),
        (
            'schema = 1\n[defaults.nf4]\nfvu = { maks = 1, source = "s" }\n',
            ["[defaults.nf4] fvu", "unknown key 'maks'", "did you mean 'max'?"],
        ),
        ('schema = 1\n[defaults.nf4]\nfvu = { source = "s" }\n', ["fvu: max or min is needed"]),
        (
            'schema = 1\n[defaults.nf4]\nfvu = { max = 1, min = 0.1, source = "s" }\n',
            ["fvu: min = 0.1 lets every damage pass, because lower is better: write max"],
        ),
        (
            'schema = 1\n[defaults.nf4]\ntop1_agreement = { min = 90.2, source = "s" }\n',
            ["top1_agreement: min = 90.2: never above 1, so nothing passes; 90.2% is 0.902"],
        ),
        ("schema = 1\n[tiny_gemma3.nf4.layer7]\n", ["[tiny_gemma3.nf4.layer7]", "layers: 1, 3, 4"]),
        ("schema = 1\n[defaults.nf4.layer2]\n", ["no SAE of any model", "layers: 1, 3, 4, 24"]),
        (
            'schema = 1\n[defaults.nf4.hardware."nvidia H200"]\n',
            ['[defaults.nf4.hardware."nvidia H200"]', "did you mean 'NVIDIA H200'?"],
        ),
        (
            f"schema = 1\n[defaults.reference]\nfvu = {GOOD}\n",
            ["[defaults.reference] fvu", "reference_bounds"],
        ),
        ('schema = 1\n[defaults.nf4]\nfvu = { max = nan, source = "s" }\n', ["max", "finite number"]),
        ('schema = 1\n[defaults.nf4]\nfvu = { min = -inf, source = "s" }\n', ["min", "finite number"]),
        ('schema = 1\n[defaults.nf4]\nfvu = { max = true, source = "s" }\n', ["max", "finite number"]),
        ('schema = 1\n[defaults.nf4]\nfvu = { max = "1", source = "s" }\n', ["max", "finite number"]),
        (
            f'schema = 1\n[defaults.nf4]\nfvu = {{ max = 1{"0" * 400}, source = "s" }}\n',
            ["max", "finite number"],
        ),
        ("schema = 1\n[defaults.nf4]\nfvu = { max = 1 }\n", ["fvu", "source is needed"]),
        ('schema = 1\n[defaults.nf4]\nfvu = { max = 1, source = " " }\n', ["fvu", "source is needed"]),
        (
            'schema = 1\n[defaults.nf4]\nfvu = { max = 1, source = "s", provisional = 1 }\n',
            ["fvu", "provisional must be true or false"],
        ),
        (entry("mesured = 1"), ["unknown key 'mesured'", "did you mean 'measured'?"]),
        (entry('measured = "1"'), ["fvu", "measured must be a finite number"]),
        (entry("low = true"), ["fvu", "low must be a finite number"]),
        (entry("high = inf"), ["fvu", "high must be a finite number"]),
        (entry("tokens = 1.5"), ["fvu", "tokens must be"]),
        (entry("tokens = 0"), ["fvu", "tokens must be"]),
        (entry("tokens = true"), ["fvu", "tokens must be"]),
        (entry(f"tokens = 0x{'f' * 5000}"), ["fvu", "tokens must be"]),
        (entry("hardware = 1"), ["fvu", "hardware must be text"]),
        (entry('reason = " "'), ["fvu", "reason must be text"]),
        (entry("corpus = 1"), ["fvu", "corpus must be text"]),
        (entry("sequence_length = 0"), ["fvu", "sequence_length must be"]),
        (entry("versions = { torch = 2 }"), ["fvu", "versions must be text"]),
        (entry('date = "2026-11-24"'), ["fvu", "date must be a TOML date, without quotes"]),
        (entry("date = 2026-11-24T10:00:00"), ["fvu", "date must be a TOML date"]),
        ("schema = 1\n[defaults.nf4]\nhardware = 1\n", ["[defaults.nf4.hardware]", "table"]),
        (
            f"schema = 1\n[defaults.nf4.hardware]\nfvu = {GOOD}\n",
            ["[defaults.nf4.hardware.fvu] max: unknown"],
        ),
        (f'schema = 1\n[defaults.nf4.hardware." "]\nfvu = {GOOD}\n', ["hardware's name can't be empty"]),
        (
            f'schema = 1\n[defaults.nf4.hardware."NVIDIA H200".layer3]\nperplexity = {GOOD}\n',
            ['[defaults.nf4.hardware."NVIDIA H200".layer3] perplexity', "one value a cell"],
        ),
        (f"schema = 1\n[defaults.nf4.layer3.hardware.a]\nfvu = {GOOD}\n", ["hardware", "unknown metric"]),
        (
            f'schema = 1\n[defaults.nf4.hardware."a\\nb".hardware.c]\nfvu = {GOOD}\n',
            ["'a\\nb'", "no hardware has such a name"],
        ),
    ],
)
def test_bad_files_take_one_line(text, parts):
    with pytest.raises(QsaeError) as caught:
        parse(text)
    message = one_line(caught.value)
    assert [part for part in ["t.toml: ", *parts] if part not in message] == [], message


def test_a_missing_file_takes_one_line(tmp_path):
    with pytest.raises(QsaeError, match="can't be read") as caught:
        load_thresholds(tmp_path / "none.toml")
    assert "none.toml" in one_line(caught.value)


def test_the_repositorys_own_thresholds_fit_its_registry():
    registry = load_registry()
    file = ROOT / "thresholds.toml"
    for path, entries in load_thresholds(file, KnownNames.of(registry)).tables.items():
        assert entries, path


def test_no_gate_of_the_embedded_model_rests_on_a_default():
    """--strict takes none, and `make bench-backends` is strict."""
    registry = load_registry()
    loaded = load_thresholds(ROOT / "thresholds.toml", KnownNames.of(registry))
    own = {path[1] for path in loaded.tables if path[0] == "tiny_gemma3"}
    assert {"int8", "nf4", "rtn_int3"} <= own
    for quantization in own:
        for layer in (None, *registry.model("tiny_gemma3").layers):
            for metric in loaded.metrics_for("tiny_gemma3", quantization, layer):
                found = loaded.find("tiny_gemma3", quantization, metric, layer)
                assert not found.is_provisional, (quantization, metric, layer)


gateable = sorted(key for key, metric in METRICS.items() if metric.gateable)
gateable_layer = [key for key in gateable if METRICS[key].scope == "layer"]
names = st.sampled_from([*MODELS, "defaults", "a.b", "x_1"])
sources = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)


numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
texts = st.just("") | sources
provenances = st.just(Provenance()) | st.builds(
    Provenance, numbers, numbers, numbers, st.none() | st.integers(1, 2**63 - 1), texts, texts,
    st.none() | st.dates(min_value=datetime.date(1000, 1, 1)), texts, texts,
)  # fmt: skip


@st.composite
def tables(draw):
    """Typed thresholds, as any file could give them, with the tables in any order."""
    found = {}
    owners = st.tuples(names, st.sampled_from(("nf4", "int8")))
    special = st.just(()) | sources.map(lambda name: ("hardware", name))
    layers = st.just(()) | st.integers(0, 60).map(lambda layer: (f"layer{layer}",))
    paths = st.tuples(owners, special, layers).map(lambda parts: sum(parts, ()))
    for path in draw(st.lists(paths, unique=True, max_size=5)):
        metrics = draw(
            st.lists(
                st.sampled_from(gateable_layer if path[-1].startswith("layer") else gateable),
                unique=True, min_size=1, max_size=3,
            )
        )  # fmt: skip
        found[path] = {
            metric: replace(
                draw(bounds.thresholds(metric, sources)),
                provisional=draw(st.booleans()),
                table=table_name(path),
                provenance=draw(provenances),
            )
            for metric in metrics
        }
    return Thresholds(found)


def dumped(thresholds: Thresholds) -> str:
    document = tomlkit.document()
    document["schema"] = 1
    for path, entries in thresholds.tables.items():
        table = document
        for name in path:
            table = table.setdefault(name, tomlkit.table())
        for metric, threshold in entries.items():
            table[metric] = tomlkit.inline_table()
            table[metric].update(toml_entry(threshold))
    return tomlkit.dumps(document)


@given(tables())
def test_what_is_written_reads_back_the_same(thresholds):
    text = dumped(thresholds)
    assert parse_thresholds(tomllib.loads(text), "t.toml") == thresholds


keys = st.sampled_from(
    [*MODELS, "defaults", "nf4", "layer3", "fvu", "perplexity", "max", "source", "schema"]
)
leaves = (
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
)  # fmt: skip
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(keys | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=10,
)
entries = st.dictionaries(st.sampled_from(["max", "min", "source", "provisional"]), leaves | trees)
tables_of_entries = st.dictionaries(st.sampled_from(["fvu", "perplexity", "layer3"]), entries | trees)


@given(
    st.dictionaries(keys | st.text(max_size=4), trees, max_size=3)
    | st.dictionaries(
        st.sampled_from([*MODELS, "defaults"]),
        st.dictionaries(st.sampled_from(QUANTIZATIONS), tables_of_entries),
    ),
    st.booleans(),
)
@example({"defaults": {"nf4": {"fvu": {"max": 10**400, "source": "s"}}}}, False)
def test_any_document_parses_or_is_refused_in_one_line(document, check_names):
    document = {"schema": 1} | document
    try:
        parsed = parse_thresholds(document, "t.toml", KNOWN if check_names else None)
    except QsaeError as error:
        assert one_line(error).startswith("t.toml: ")
    else:
        found = [entry.bound for entries in parsed.tables.values() for entry in entries.values()]
        assert all(abs(bound) < float("inf") for bound in found)


@given(st.dictionaries(keys | st.text(max_size=4), trees, max_size=3))
def test_any_toml_file_loads_or_is_refused_in_one_line(tmp_path_factory, document):
    file = tmp_path_factory.mktemp("t") / "t.toml"
    file.write_text(tomlkit.dumps(document), encoding="utf-8")
    try:
        loaded = load_thresholds(file)
    except QsaeError as error:
        assert one_line(error).startswith(str(file))
    else:
        assert document["schema"] == 1
        assert {path[0] for path in loaded.tables} <= set(document)
