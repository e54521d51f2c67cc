"""The command line, `backstage`. It speaks to the public API and the Inspector only, and nothing imports it."""

from backstage.cli.app import main

__all__ = ["main"]
