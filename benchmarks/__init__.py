"""How fast Backstage is, and against what: `python -m benchmarks`, or `make bench`. See docs/benchmarks.md."""
