"""The worker: small parts, one a module, wired in worker.py."""
