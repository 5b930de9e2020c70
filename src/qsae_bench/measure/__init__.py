"""Measure cells: token sequences, the stored reference, the one pass that everything is computed from, and
clocks.

Imports from ``models``, ``stats``, ``registry``, ``metrics`` and the root modules; decides nothing, which
is ``gate``'s part, and knows neither tests nor run documents.

Entry points:
    model_context.ModelContext: a model's token sequences, SAEs and stored reference.
    loaded_model.LoadedModel: the one loaded model.
    evaluation.evaluate: a pass over a cell, which returns a
    :class:`qsae_bench.metrics.measurement.Measurement`. store.open_store, corpus.cache.load_corpus: what
    outlives a run. resources.estimate_need: what a cell will take, from the registry alone.
    generation.generation_values: how a cell writes, token by token.
    device_state.watch, clock, workloads: timing, and whether the device was disturbed meanwhile.

They are imported from their modules: re-exporting them here would make every import of the package one of
torch.
"""
