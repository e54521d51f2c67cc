"""Signals: each started worker of a process hears them, and the handlers of before come back when the last one ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class Signals:
    """Calls `heard` for each signal that asks to stop, while entered. Only in the main thread; nothing elsewhere.

    Several stack: each hands a signal on to the one that was there before, as long as that one is still entered.
    """

    def __init__(self, heard: Callable[[], None]) -> None:
        self._heard = heard
        self._before: dict[signal.Signals, Any] = {}
        self._active = False

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._active = True
            for number in STOPS:
                self._before[number] = signal.signal(number, self._on)
        return self

    def __exit__(self, *exc: object) -> None:
        self._active = False
        for number, before in self._before.items():
            # Another one that came later hands on to us; it restores what was before us when it leaves.
            if _owner(signal.getsignal(number)) is self:
                signal.signal(number, _first_active(before, number))

    def _on(self, number: int, frame: FrameType | None) -> None:
        if self._active:
            self._heard()
        before: Any = self._before.get(signal.Signals(number))
        if _owner(before) is not None:
            before(number, frame)


def _owner(handler: Any) -> Signals | None:
    owner = getattr(handler, "__self__", None)
    return owner if isinstance(owner, Signals) else None


def _first_active(handler: Any, number: signal.Signals) -> Any:
    """The handler that was there before, passing over those that have left."""
    while (owner := _owner(handler)) is not None and not owner._active:
        handler = owner._before[number]
    return handler if handler is not None else signal.SIG_DFL
