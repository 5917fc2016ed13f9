"""Measurements of Esper against its targets: `python -m bench NAME`. See docs/benchmarks.md."""
