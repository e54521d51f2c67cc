"""Kills and faults without mercy, and the proof that nothing was lost: `make chaos`, or `python -m chaos` in `tests`.

Producers, workers and schedulers run as real processes against a real server. Each writes what it sees into an
append-only history of its own, outside Redis. A seeded nemesis strikes them, the server and the network. Afterwards all
is drained, and `checker` proves the promises of docs/reliability.md from the histories and from what stands in Redis.
"""
