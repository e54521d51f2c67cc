"""The processes of a run: started, watched, and started again when they are gone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

import backstage
from chaos.history import Log

TESTS = Path(__file__).parents[1]
RESPAWN = 0.25
"""Seconds after which a process that is gone gets a successor."""


class Member(msgspec.Struct, eq=False):
    name: str
    role: str
    place: int
    process: Any
    busy: bool = False
    """Something is being done to it."""

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


def spawn(folder: Path, name: str, role: str, settings: dict[str, Any], **options: Any) -> Member:
    """A process of `chaos.actor`; its log is `<name>.log` in the folder."""
    told = {"folder": str(folder), "name": name, "role": role, "settings": settings, **options}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("REDIS_", "BACKSTAGE_", "PYTHONPATH"))}
    paths = [str(TESTS), str(Path(backstage.__file__).parents[1])]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "chaos.actor", json.dumps(told)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=kept | {"PYTHONPATH": os.pathsep.join(paths)},
        )  # fmt: skip
    return Member(name, role, 0, process)


class Fleet:
    """`crew` has for each place the role, its settings, and its other options."""

    def __init__(self, folder: Path, log: Log, crew: list[tuple[str, dict[str, Any], dict[str, Any]]]) -> None:
        self._folder, self._log, self._crew = folder, log, crew
        self._counts = [0] * len(crew)
        self.members: list[Member | None] = [None] * len(crew)
        self.closing: set[str] = set()
        """Roles that get no successors any more."""
        self.next_point = ""
        """A kill point for the next worker that is started."""

    def start(self, place: int) -> Member:
        role, settings, options = self._crew[place]
        self._counts[place] += 1
        name = f"{role}{place}-{self._counts[place]}"
        options = dict(options)
        if role == "worker":
            settings = settings | {"worker_id": name}
            if self.next_point:
                options |= {"point": self.next_point, "passes": 20}
                self.next_point = ""
        if role == "producer":
            options["seed"] = f"{options['seed']}-{name}"
            if self._counts[place] > 1:
                options.pop("crash", None)
        member = spawn(self._folder, name, role, settings, **options)
        member.place = place
        self.members[place] = member
        return member

    def history(self, name: str) -> Path:
        """The file with what this process saw."""
        return self._folder / f"{name}.history"

    def of(self, role: str) -> list[Member]:
        return [member for member in self.members if member is not None and member.role == role and member.alive]

    def size(self, role: str) -> int:
        """How many there are when all are well."""
        return sum(each == role for each, _, _ in self._crew)

    async def watch(self) -> None:
        """Notes who is gone, and starts successors. For ever."""
        while True:
            for place, member in enumerate(self.members):
                if member is not None and not member.alive:
                    self._log("down", target=member.name, number=member.process.returncode)
                    self.members[place] = None
                    if member.role not in self.closing:
                        asyncio.get_running_loop().call_later(RESPAWN, self._again, place)
            await asyncio.sleep(0.01)

    def _again(self, place: int) -> None:
        if self._crew[place][0] not in self.closing:
            self.start(place)

    async def dismiss(self, role: str, timeout: float = 15.0) -> None:
        """SIGTERM for all of a role, until none is left; SIGKILL for whoever does not mind it."""
        self.closing.add(role)
        for member in self.of(role):
            self._log("strike", note="term", target=member.name)
            member.signal(signal.SIGTERM)
        deadline = asyncio.get_running_loop().time() + timeout
        while left := [member for member in self.members if member is not None and member.role == role]:
            if asyncio.get_running_loop().time() > deadline:
                deadline += timeout
                for member in left:
                    self._log("stuck", target=member.name)
                    member.signal(signal.SIGKILL)
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """SIGKILL for whoever is left."""
        for member in self._left():
            member.process.kill()
            member.process.wait()

    def _left(self) -> Iterator[Member]:
        return (member for member in self.members if member is not None)
