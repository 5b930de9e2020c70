"""The one model that is loaded: what it took to load, what it stores, and what stays when it goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qsae_bench.measure.store.entry import head_digest
from qsae_bench.models import loading
from qsae_bench.models.architecture import blueprint
from qsae_bench.models.memory import born_since, live_storages
from qsae_bench.models.taps import Head
from qsae_bench.models.weights import inspection
from qsae_bench.models.weights import storage as footprint
from qsae_bench.progress import progress_of
from qsae_bench.registry.specs import Cell

if TYPE_CHECKING:
    from qsae_bench.measure.store.entry import StoredReference
    from qsae_bench.models.loading import Loaded
    from qsae_bench.models.weights.storage import Stored

LEAK_SHARE = 0.01
"""of its weights that may outlive a model unnoticed: a tensor that a library caches"""


class LoadedModel:
    """Loads a cell's model in the place of the one before."""

    def __init__(
        self,
        device: str,
        record: Callable[[Cell, str, float], None],
        warn: Callable[[Cell, str], None],
    ) -> None:
        self.device = device
        self.loaded: Loaded | None = None
        self._stored: list[Stored] = []
        self._record = record
        self._warn = warn

    def load(self, cell: Cell) -> Loaded:
        """The cell's model, loaded if it is not the one that already is.

        Raises:
            CannotRun, QsaeError: as :func:`qsae_bench.models.loading.load`.
        """
        if self.loaded is None or self.loaded.cell != cell:
            self.release()
            dtype = loading.dtype_of(cell, self.device)
            before = live_storages()
            loaded = loading.load(cell, self.device, dtype)
            head_digest(Head.of(loaded.model))  # now, and not in a pass that is timed
            self._stored = footprint.stored_matrices(loaded.model, blueprint(cell.model))
            self._record(cell, "load_seconds", loaded.load_seconds)
            self._record(cell, "weight_bytes", footprint.weight_bytes(loaded.model))
            self._record(cell, "bits_per_weight", footprint.bits_per_weight(self._stored))
            loading.first_forward(loaded, dtype)  # its weights have been counted as stored
            loaded.born = born_since(before)
            self.loaded = loaded
        return self.loaded

    def quantized(self, reference: StoredReference) -> inspection.Quantized:
        """What the loaded cell's recipe did to the decoder's weights, beside the reference's."""
        assert self.loaded is not None
        model, plan = self.loaded.model, blueprint(self.loaded.cell.model)
        dtype = loading.dtype_of(self.loaded.cell, self.device)
        with progress_of(f"{self.loaded.cell.id}: its weights beside the reference's"):
            return inspection.inspect(model, plan, self._stored, reference.weights(), dtype)

    def release(self) -> None:
        """Free the model, if there is one, and say so if something holds on to what it took."""
        if self.loaded is None:
            return
        loaded, self.loaded = self.loaded, None
        whole = sum(tensor.nbytes for tensor in loaded.model.parameters())
        held = loading.release(loaded)
        if held > LEAK_SHARE * whole:
            self._warn(
                loaded.cell,
                f"{loaded.cell.id}: {held / 1e6:,.1f} MB were not given back when its model was dropped: "
                "its backend holds on to them, and the peak memory of the cells after it includes them",
            )
