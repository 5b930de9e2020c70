"""The one loaded model: it is loaded once, its costs are recorded, and what outlives it is reported."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import stand_ins
from qsae_bench.measure import loaded_model
from qsae_bench.measure.loaded_model import LoadedModel


@pytest.fixture
def loads(monkeypatch):
    """Cells that were loaded, as stand-ins; ``loads.leaked`` bytes stay of each when it goes."""
    found = SimpleNamespace(cells=[], released=[], leaked=0, notes=[])

    def load(cell, device, dtype):
        found.cells.append(cell)
        return SimpleNamespace(
            cell=cell, model=stand_ins.gemma3(), load_seconds=1.5, notes=found.notes, born=None
        )

    def release(loaded):
        found.released.append(loaded.cell)
        return found.leaked

    monkeypatch.setattr(loaded_model.loading, "load", load)
    monkeypatch.setattr(loaded_model.loading, "release", release)
    monkeypatch.setattr(loaded_model.loading, "dtype_of", lambda cell, device: None)
    monkeypatch.setattr(loaded_model.loading, "run_first_forward", lambda loaded, dtype: None)
    monkeypatch.setattr(loaded_model, "decoder_shapes", lambda model: None)
    monkeypatch.setattr(loaded_model.storage, "stored_matrices", lambda model, decoder_shapes: [])
    monkeypatch.setattr(loaded_model.storage, "bits_per_weight", lambda stored: 16.0)
    return found


@pytest.fixture
def slot():
    slot = LoadedModel(
        "cpu", lambda *cost: slot.costs.append(cost), lambda cell, line: slot.warned.append(line)
    )
    slot.costs, slot.warned = [], []
    return slot


def test_a_cell_is_loaded_once_and_the_one_before_goes_first(loads, slot):
    a, b = stand_ins.cell("a"), stand_ins.cell("b")
    assert slot.load(a) is slot.load(a)
    slot.load(b)
    assert (loads.cells, loads.released) == ([a, b], [a])
    slot.release()
    slot.release()
    assert loads.released == [a, b] and slot.loaded is None


def test_costs_are_recorded_at_the_load(loads, slot):
    cell = stand_ins.cell()
    slot.load(cell)
    slot.load(cell)
    recorded = {key: value for _, key, value in slot.costs}
    assert len(slot.costs) == 3 and {one for one, _, _ in slot.costs} == {cell}
    assert recorded["load_seconds"] == 1.5 and recorded["bits_per_weight"] == 16.0
    assert recorded["weight_bytes"] > 0


def test_what_a_load_has_to_say_is_said_once(loads, slot):
    a, b = stand_ins.cell("a"), stand_ins.cell("b")
    loads.notes.append("its config differs")
    for cell in (a, b, a):
        slot.load(cell)
    assert slot.warned == [f"{a.id}: its config differs", f"{b.id}: its config differs"]


@pytest.mark.parametrize(("share", "warned"), [(0.0, 0), (0.009, 0), (0.02, 1)])
def test_what_outlives_a_model_is_reported_from_a_hundredth_on(loads, slot, share, warned):
    cell = stand_ins.cell()
    loaded = slot.load(cell)
    loads.leaked = int(share * sum(tensor.nbytes for tensor in loaded.model.parameters()))
    slot.release()
    assert len(slot.warned) == warned
    assert all("were not given back when its model was dropped" in line for line in slot.warned)
