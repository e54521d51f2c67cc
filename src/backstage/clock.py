"""Clock: the server's time between two of its replies."""

from __future__ import annotations

import time

import msgspec

from backstage import wire


class Clock(msgspec.Struct):
    """The server's clock, as last heard and carried on by our monotonic one. Scripts tell the time in their replies."""

    leap: int = 10_000
    """A difference of more ms than this is no delay on the way, but a clock that was set."""
    server_ms: int = 0
    heard: float = 0.0
    leapt: float = -1e9
    """When (monotonic) the server's clock was last found to have run ahead."""
    went_back: bool = False

    def hear(self, server_ms: int) -> None:
        """Take over the server's time, and notice where it was set."""
        ahead = server_ms - self.now() if self.heard else 0
        self.server_ms, self.heard = server_ms, time.monotonic()
        if ahead > self.leap:
            self.leapt = self.heard
        elif ahead < -self.leap:
            self.went_back = True

    def now(self) -> int:
        """Server time in ms; our own clock's until the server was first heard."""
        if not self.heard:
            return wire.now_ms()
        return self.server_ms + int((time.monotonic() - self.heard) * 1000)
