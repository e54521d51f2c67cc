"""Backstage: background jobs on Redis Streams."""
