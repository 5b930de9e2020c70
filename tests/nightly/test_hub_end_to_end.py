"""``pytest benchmarks -k MODEL`` against a local hub and then offline, in the real depth and width."""

from __future__ import annotations

import pytest

import hub_end_to_end

# the 4B's decoder is 15 GiB
pytestmark = pytest.mark.alone


@pytest.mark.parametrize("name", hub_end_to_end.MODELS)
def test_the_readmes_command_passes_with_the_hub_and_then_without(name, tmp_path):
    hub_end_to_end.check_played(hub_end_to_end.play(name, tmp_path))
