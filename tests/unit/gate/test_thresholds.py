"""thresholds.toml: which entry decides, what is refused, and that writing and reading agree."""

from __future__ import annotations

import datetime
import tomllib
from dataclasses import replace

import pytest
import tomlkit
from hypothesis import example, given
from hypothesis import strategies as st

from builders import one_line
from paths import ROOT
from qsae_bench.errors import QsaeError
from qsae_bench.gate.thresholds import (
    Provenance,
    Threshold,
    Thresholds,
    load_thresholds,
    parse_thresholds,
    table_name,
    toml_entry,
)
from qsae_bench.metrics import METRICS
from qsae_bench.registry.entries import load_registry

MODELS = ("gemma3_12b", "tiny_gemma3")
QUANTIZATIONS = ("nf4", "int8")


def parse(text: str) -> Thresholds:
    return parse_thresholds(tomllib.loads(text), "t.toml", MODELS, QUANTIZATIONS)


LAYERED = """
schema = 1
[defaults.nf4]
perplexity_increase_pct = { max = 1.0, source = "defaults" }
cross_entropy_delta = { max = 1.1, source = "defaults" }
fvu_drift = { max = 1.2, source = "defaults" }
mse = { max = 1.3, source = "defaults" }
fvu = { max = 1.4, source = "defaults" }
[defaults.nf4.layer24]
fvu_drift = { max = 2.2, source = "defaults layer" }
fvu = { max = 2.4, source = "defaults layer" }
[gemma3_12b.nf4]
perplexity_increase_pct = { max = 3.0, source = "model" }
fvu = { max = 3.4, source = "model" }
reconstruction_cosine = { min = 0.5, source = "model" }
[gemma3_12b.nf4.layer24]
fvu = { max = 4.4, source = "model layer" }
"""


@pytest.mark.parametrize(
    ("model", "quantization", "metric", "layer", "bound"),
    [
        ("gemma3_12b", "nf4", "fvu", 24, 4.4),  # the layer's own
        ("gemma3_12b", "nf4", "fvu", 25, 3.4),  # another layer: the model's
        ("tiny_gemma3", "nf4", "fvu", 24, 2.4),  # another model: the defaults' layer
        ("tiny_gemma3", "nf4", "fvu", 25, 1.4),
        ("gemma3_12b", "nf4", "fvu_drift", 24, 2.2),  # the model says nothing about it
        ("gemma3_12b", "nf4", "mse", 24, 1.3),
        ("gemma3_12b", "nf4", "perplexity_increase_pct", None, 3.0),
        ("gemma3_12b", "nf4", "cross_entropy_delta", None, 1.1),
        ("gemma3_12b", "int8", "fvu", 24, None),  # another quantization has none
        ("gemma3_12b", "nf4", "l0_ratio", 24, None),
        ("tiny_gemma3", "nf4", "reconstruction_cosine", 24, None),
    ],
)
def test_the_most_special_entry_decides(model, quantization, metric, layer, bound):
    found = parse(LAYERED).find(model, quantization, metric, layer)
    assert (found.bound if found else None) == bound


def test_what_a_threshold_says_of_itself():
    found = parse(LAYERED).find("gemma3_12b", "nf4", "reconstruction_cosine", 24)
    expected = Threshold("reconstruction_cosine", "min", 0.5, "model", False, "gemma3_12b.nf4")
    assert found == expected
    assert str(found) == "≥ 0.5 ([gemma3_12b.nf4]: model)"


def test_provisional_is_kept_and_shown():
    text = 'schema = 1\n[defaults.nf4]\nfvu = { max = 1, source = "s", provisional = true }\n'
    found = parse(text).find("gemma3_12b", "nf4", "fvu", 24)
    assert found is not None and found.provisional
    assert "provisional" in str(found)


def test_metrics_for_a_cell_and_for_a_layer():
    thresholds = parse(LAYERED)
    assert thresholds.metrics_for("gemma3_12b", "nf4", None) == {
        "perplexity_increase_pct", "cross_entropy_delta",
    }  # fmt: skip
    assert thresholds.metrics_for("gemma3_12b", "nf4", 3) == {
        "fvu", "fvu_drift", "mse", "reconstruction_cosine",
    }  # fmt: skip
    assert thresholds.metrics_for("gemma3_12b", "int8", None) == frozenset()


HARDWARE = """
schema = 1
[defaults.nf4]
fvu = { max = 1, source = "s" }
mse = { max = 1, source = "s" }
[defaults.nf4.layer24]
fvu = { max = 2, source = "s" }
[defaults.nf4.hardware."NVIDIA H100"]
fvu = { max = 3, source = "s" }
[gemma3_12b.nf4]
kl_divergence = { max = 4, source = "s" }
l0 = { max = 4, source = "s" }
[gemma3_12b.nf4.hardware."NVIDIA H100"]
kl_divergence = { max = 5, source = "s" }
[gemma3_12b.nf4.hardware."NVIDIA H100".layer24]
l0 = { max = 6, source = "s" }
"""
H100, H200 = "NVIDIA H100", "NVIDIA H200"


@pytest.mark.parametrize(
    ("model", "metric", "layer", "hardware", "bound", "fallback"),
    [
        ("gemma3_12b", "kl_divergence", None, H100, 5, ""),
        ("gemma3_12b", "kl_divergence", None, H200, 4, f"no entry for {H200}"),
        ("gemma3_12b", "kl_divergence", None, "", 4, ""),  # unknown hardware: nothing to fall back from
        ("gemma3_12b", "l0", 24, H100, 6, ""),
        ("gemma3_12b", "l0", 25, H100, 4, ""),  # no hardware has an entry for this layer
        ("gemma3_12b", "l0", 24, H200, 4, f"no entry for {H200}"),
        ("tiny_gemma3", "fvu", 24, H100, 3, ""),  # this hardware beats the general table of the layer
        ("tiny_gemma3", "fvu", 24, H200, 2, f"no entry for {H200}"),
        ("gemma3_12b", "mse", 24, H200, 1, ""),  # no hardware has one: ordinary output stays as it is
    ],
)
def test_hardware_has_tables_of_its_own(model, metric, layer, hardware, bound, fallback):
    found = parse(HARDWARE).find(model, "nf4", metric, layer, hardware)
    assert (found.bound, found.fallback) == (bound, fallback)


def test_a_general_bound_that_stands_in_says_so():
    found = parse(HARDWARE).find("gemma3_12b", "nf4", "kl_divergence", None, H200)
    assert str(found) == "≤ 4 ([gemma3_12b.nf4], general: no entry for NVIDIA H200; s)"
    found = parse(HARDWARE).find("gemma3_12b", "nf4", "kl_divergence", None, H100)
    assert str(found) == '≤ 5 ([gemma3_12b.nf4.hardware."NVIDIA H100"]: s)'


def test_metrics_for_known_hardware():
    text = 'schema = 1\n[gemma3_12b.nf4.hardware."NVIDIA H100"]\nfvu = { max = 1, source = "s" }\n'
    assert parse(text).metrics_for("gemma3_12b", "nf4", 3, H100) == {"fvu"}
    assert parse(text).metrics_for("gemma3_12b", "nf4", 3) == frozenset()
    assert parse(text).metrics_for("gemma3_12b", "nf4", None, H100) == frozenset()


MEASURED = """
schema = 1
[gemma3_12b.nf4]
fvu = { max = 1, source = "2 × high", measured = 0.5, low = 0.25, high = 0.75, tokens = 100, hardware = "NVIDIA H200", versions = "torch 2", date = 2026-11-24, run = "r", reason = "new kernel" }
mse = { max = 1, source = "s", measured = 1 }
"""


def test_provenance_is_read_and_shown():
    found = parse(MEASURED).find("gemma3_12b", "nf4", "fvu", 3)
    assert found.provenance == Provenance(
        0.5, 0.25, 0.75, 100, H200, "torch 2", datetime.date(2026, 11, 24), "r", "new kernel"
    )
    assert str(found) == (
        "≤ 1 ([gemma3_12b.nf4]: 2 × high; measured 0.5 [0.25, 0.75] on 100 tokens, NVIDIA H200, 2026-11-24, "
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
        ('schema = 1\n[defaults.nf4]\nfvu = { source = "s" }\n', ["exactly one of max and min"]),
        ('schema = 1\n[defaults.nf4]\nfvu = { max = 1, min = 0, source = "s" }\n', ["exactly one of max"]),
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
        (f'schema = 1\n[defaults.nf4.hardware."a\\nb".hardware.c]\nfvu = {GOOD}\n', ["'a\\nb'", "unknown"]),
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
    loaded = load_thresholds(file, registry.models, registry.quantizations)
    for path, entries in loaded.tables.items():
        assert entries, path
        if len(path) == 3 and path[0] in registry.models:
            assert path[2] in {f"layer{layer}" for layer in registry.model(path[0]).layers}, path


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
    owners = st.tuples(names, st.sampled_from(QUANTIZATIONS))
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
            metric: Threshold(
                metric,
                draw(st.sampled_from(["max", "min"])),
                draw(st.floats(allow_nan=False, allow_infinity=False)),
                draw(sources),
                draw(st.booleans()),
                table_name(path),
                draw(provenances),
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


@st.composite
def lookups(draw):
    """Thresholds in tables that could all apply to one of the cells asked for."""
    owners = [(owner, quantization) for owner in (*MODELS, "defaults") for quantization in QUANTIZATIONS]
    paths = [
        (*owner, *special, *layer)
        for owner in owners
        for special in ((), ("hardware", H100), ("hardware", H200))
        for layer in ((), ("layer3",), ("layer4",))
    ]
    chosen = draw(st.lists(st.sampled_from(paths), unique=True))
    return Thresholds(
        {
            path: {"fvu": Threshold("fvu", "max", float(number), "s", table=table_name(path))}
            for number, path in enumerate(chosen)
        }
    )


def best(thresholds, model, quantization, layer, hardware):
    """Every table that applies, ranked: the model's, then this hardware's, then the layer's. And the fallback."""
    ranked = []
    for path, found in thresholds.tables.items():
        own, special, at = path[0] == model, "hardware" in path, path[-1] == f"layer{layer}"
        applies = path[1] == quantization and (own or path[0] == "defaults")
        applies = applies and (at or not path[-1].startswith("layer"))
        if applies:
            here = special and path[3] == hardware
            ranked.append(((own, special, at), here, found["fvu"]))
    usable = [(rank, entry) for rank, here, entry in ranked if here or not rank[1]]
    if not usable:
        return None
    rank, entry = max(usable, key=lambda one: one[0])
    others = [other for other, here, _ in ranked if other[1] and not here and other[0] >= rank[0]]
    missed = bool(hardware) and not rank[1] and bool(others)
    return replace(entry, fallback=f"no entry for {hardware}" if missed else "")


@given(
    lookups(), st.sampled_from(MODELS), st.sampled_from(QUANTIZATIONS), st.sampled_from([None, 3, 4, 5]),
    st.sampled_from(["", H100, H200, "another"]),
)  # fmt: skip
def test_find_against_a_ranking_of_every_table(thresholds, model, quantization, layer, hardware):
    expected = best(thresholds, model, quantization, layer, hardware)
    assert thresholds.find(model, quantization, "fvu", layer, hardware) == expected


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
    known = (MODELS, QUANTIZATIONS) if check_names else (None, None)
    try:
        parsed = parse_thresholds(document, "t.toml", *known)
    except QsaeError as error:
        assert one_line(error).startswith("t.toml: ")
    else:
        bounds = [entry.bound for entries in parsed.tables.values() for entry in entries.values()]
        assert all(abs(bound) < float("inf") for bound in bounds)


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
