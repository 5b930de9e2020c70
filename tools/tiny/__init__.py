"""Builds the embedded model and its SAEs; run by hand, not part of the package."""
