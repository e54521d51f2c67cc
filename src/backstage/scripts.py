"""The Lua scripts, one file a verb (`lua/`): loaded from the package, sent by their SHA1.

Each takes its KEYS and one MessagePack blob of strings, numbers and lists, and tells in its header what they are.
"""

from __future__ import annotations

import functools
import hashlib
from importlib.resources import files

import msgspec

pack = msgspec.msgpack.Encoder().encode
"""The blob: strings and numbers only, for the servers' decoder knows no binary type."""


class Script(msgspec.Struct, frozen=True):
    name: str
    text: str
    sha: str


@functools.cache
def load(name: str) -> Script:
    """The script of that verb."""
    text = files("backstage").joinpath("lua", f"{name}.lua").read_text("utf-8")
    return Script(name, text, hashlib.sha1(text.encode()).hexdigest())  # noqa: S324  how Redis names scripts
