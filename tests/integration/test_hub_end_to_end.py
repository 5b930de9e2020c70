"""``pytest benchmarks -k gemma3_4b`` against a local hub and then offline, as deep as the real model, but narrow."""

from __future__ import annotations

import hub_end_to_end


def test_the_readmes_command_passes_with_the_hub_and_then_without(tmp_path):
    hub_end_to_end.check_played(hub_end_to_end.play("gemma3_4b", tmp_path, width=256))
