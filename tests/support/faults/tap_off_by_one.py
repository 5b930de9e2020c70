"""pytest plugin: every tap reads the block before the one it names."""

from __future__ import annotations


def pytest_configure(config):
    from qsae_bench.models import taps

    right = taps.decoder_layers
    # the pass hooks layer L of what this returns; backends that quantize see the same modules
    taps.decoder_layers = lambda model: [right(model)[0], *right(model)]
