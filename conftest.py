"""Load the plugin of the benchmarks: its options, fixtures and hooks."""

pytest_plugins = ["qsae_bench.app.plugin"]
