"""Soak: a mixed load for a long time, after which nothing has grown. `make soak`."""
