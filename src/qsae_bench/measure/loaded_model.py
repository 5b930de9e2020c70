"""Hold the one model that is loaded, record what it costs, and report what stays in memory when it goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qsae_bench.measure.store.entry import head_digest
from qsae_bench.models import loading
from qsae_bench.models.architecture import decoder_shapes
from qsae_bench.models.memory import live_storages, new_storages
from qsae_bench.models.taps import Head
from qsae_bench.models.weights import inspection, storage
from qsae_bench.progress import progress_of
from qsae_bench.registry.specs import Cell

if TYPE_CHECKING:
    from qsae_bench.measure.store.entry import StoredReference
    from qsae_bench.models.loading import Loaded

LEAK_SHARE = 0.01
"""share of a model's weights that may outlive it unreported: a tensor that a library caches"""


class LoadedModel:
    """Load a cell's model in the place of the one before."""

    def __init__(
        self,
        device: str,
        record: Callable[[Cell, str, float], None],
        warn: Callable[[Cell, str], None],
    ) -> None:
        """Begin without a model; ``record`` takes a cell, the key of a cost metric and its value."""
        self.device = device
        self.loaded: Loaded | None = None
        self._stored: list[storage.StoredMatrix] = []
        self._record = record
        self._warn = warn
        self._noted: set[str] = set()

    def load(self, cell: Cell) -> Loaded:
        """Return the cell's model, loading it unless it is the loaded one; raises as ``loading.load``."""
        if self.loaded is None or self.loaded.cell != cell:
            self.release()
            dtype = loading.dtype_of(cell, self.device)
            before = live_storages()
            loaded = loading.load(cell, self.device, dtype)
            for line in (f"{cell.id}: {note}" for note in loaded.notes):
                if line not in self._noted:  # a cell may be loaded again after another
                    self._noted.add(line)
                    self._warn(cell, line)
            head_digest(Head.of(loaded.model))  # computed now, so that no timed pass does it
            self._stored = storage.stored_matrices(loaded.model, decoder_shapes(cell.model))
            self._record(cell, "load_seconds", loaded.load_seconds)
            self._record(cell, "weight_bytes", storage.weight_bytes(loaded.model))
            self._record(cell, "bits_per_weight", storage.bits_per_weight(self._stored))
            # after its weights were counted as stored: a first forward may unpack or cache some
            loading.run_first_forward(loaded, dtype)
            loaded.storages = new_storages(before)
            self.loaded = loaded
        return self.loaded

    def quantized(self, reference: StoredReference) -> inspection.QuantizationEffect:
        """Compare the loaded cell's decoder weights with the reference's: what its quantization changed."""
        assert self.loaded is not None
        model, architecture = self.loaded.model, decoder_shapes(self.loaded.cell.model)
        dtype = loading.dtype_of(self.loaded.cell, self.device)
        with progress_of(f"{self.loaded.cell.id}: comparing its weights with the reference's"):
            return inspection.inspect(model, architecture, self._stored, reference.weights(), dtype)

    def release(self) -> None:
        """Free the model, if there is one, and warn if something holds on to its memory."""
        if self.loaded is None:
            return
        loaded, self.loaded = self.loaded, None
        whole = sum(tensor.nbytes for tensor in loaded.model.parameters())
        leaked = loading.release(loaded)
        if leaked > LEAK_SHARE * whole:
            self._warn(
                loaded.cell,
                f"{loaded.cell.id}: {leaked / 1e6:,.1f} MB were not given back when its model was dropped: "
                "its backend holds on to them, and the peak memory of the cells after it includes them",
            )
