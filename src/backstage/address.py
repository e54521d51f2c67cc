"""Addresses: what a URL says of where Redis is, and whether it can be right."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from backstage.errors import ConfigError

Node: TypeAlias = tuple[str, int]
"""Host and port."""

_SCHEMES = (
    "redis://",
    "rediss://",
    "unix://",
    "embedded://",
    "sentinel://",
    "sentinels://",
    "cluster://",
    "clusters://",
)
_PORTS = {"sentinel": 26_379, "cluster": 6_379}
_NODE = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:@/?#\s]+))(?::([0-9]{1,5}))?", re.ASCII)


@dataclass(frozen=True, repr=False)
class Several:
    """An address of several nodes: Sentinels, or nodes of a cluster. The right one is found at each connecting."""

    kind: str
    """`sentinel` or `cluster`."""
    nodes: tuple[Node, ...]
    master: str
    """The name by which Sentinels know the master; empty for a cluster."""
    db: int
    plain: str
    """The URL of the first node as redis-py reads it: login, database and options hold for whichever node it is."""
    login: dict[str, str]
    """For the Sentinels themselves: username and password, where given."""

    @property
    def tls(self) -> bool:
        return self.plain.startswith("rediss:")


def several(url: str) -> Several | None:
    """The nodes of a `sentinel://` or `cluster://` URL that was checked; None for any other."""
    parts = urlsplit(url)
    kind = parts.scheme.rstrip("s")
    if kind not in _PORTS:
        return None
    user, at, hosts = parts.netloc.rpartition("@")
    nodes = tuple(_node(text, _PORTS[kind]) for text in hosts.split(","))
    master, _, db = parts.path[1:].partition("/") if kind == "sentinel" else ("", "", "")
    options = dict(parse_qsl(parts.query))
    login = {
        name: options.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in options
    }
    scheme = "rediss" if parts.scheme.endswith("s") else "redis"
    query = f"?{urlencode(options, quote_via=quote)}" if options else ""
    plain = f"{scheme}://{user}{at}{_shown_node(nodes[0])}/{int(db or 0)}{query}"
    return Several(kind, nodes, master, int(db or 0), plain, login)


def check_url(value: Any, name: str) -> str | None:
    """Checked for form alone. No part of it is ever told: a password that isn't percent-encoded may be in any."""
    if value is None:
        return None
    problem = "must be text"
    if isinstance(value, str):
        try:
            problem = _problem(value, urlsplit(value))
        except ValueError:
            problem = (
                "the host, port (1 to 65535) or query can't be read (percent-encode special characters in a password)"
            )
    if problem:
        raise ConfigError(
            f"{name}: {problem}; it must look like redis://user:password@host:6379/0, rediss://… (TLS), "
            "unix:///run/redis.sock, sentinel://host:26379,host:26379/master, cluster://host:6379,host:6379 or "
            "embedded:///folder"
        )
    return str(value)


def shown(url: str) -> str:
    """A URL that was checked, for people: without password and options."""
    parts = urlsplit(url)
    user = parts.username if parts.password else None  # alone it may well be a password in the wrong place
    if (found := several(url)) is not None:
        hosts = ",".join(map(_shown_node, found.nodes))
        tail = f"/{found.master}/{found.db}" if found.kind == "sentinel" else ""
        return f"{parts.scheme}://{f'{unquote(user)}@' if user else ''}{hosts}{tail}"
    db = int(dict(parse_qsl(parts.query)).get("db") or 0)
    if parts.scheme in ("unix", "embedded"):
        return f"{parts.scheme}://{parts.path}{f'?db={db}' if db else ''}"
    db = db or int(parts.path[1:] or 0)
    return shown_parts(parts.scheme, user and unquote(user), parts.hostname or "localhost", parts.port or 6379, db)


def shown_parts(scheme: str, user: str | None, host: str, port: int, db: int) -> str:
    return f"{scheme}://{f'{user}@' if user else ''}{_shown_node((host, port))}/{db}"


def tagged(prefix: str) -> bool:
    """Whether all keys with this prefix are in one slot of a cluster, by the rule for hash tags."""
    return re.match(r"[^{]*\{[^}]+\}", prefix) is not None


def _problem(url: str, parts: SplitResult) -> str:
    """What is wrong with a URL; empty if nothing is. ValueError where even its parts can't be read."""
    if not url.isprintable() or " " in url:
        return "contains a space or a control character"
    if not url.startswith(_SCHEMES):
        scheme = re.match(r"[A-Za-z][A-Za-z0-9+-]{0,20}(?=://)", url)
        return f"unknown scheme {scheme[0]!r}" if scheme else "has no scheme"
    if parts.fragment:
        return "contains a # (percent-encode special characters in a password)"
    options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    if not re.fullmatch(r"[0-9]{0,9}", options.get("db", ""), re.ASCII):
        return "db= must be a number"
    if parts.scheme.rstrip("s") in _PORTS:
        return _problem_of_several(parts, options)
    if parts.scheme in ("unix", "embedded"):
        if not parts.path.strip("/"):
            return f"has no path (write {parts.scheme}:///path, with three slashes)"
        if parts.hostname:
            return f"a host makes no sense there (write {parts.scheme}:///path, with three slashes)"
        return ""
    if parts.port == 0:
        return "the port must be from 1 to 65535"
    if not re.fullmatch(r"(/[0-9]{0,9})?", parts.path, re.ASCII):
        return "what follows the host must be the number of a database, like /0"
    return ""


def _problem_of_several(parts: SplitResult, options: dict[str, str]) -> str:
    kind = parts.scheme.rstrip("s")
    for text in parts.netloc.rpartition("@")[2].split(","):
        _node(text, _PORTS[kind])
    if "db" in options:
        return "the database belongs behind the master's name, like /master/0"
    if kind == "cluster":
        return "" if parts.path in ("", "/", "/0") else "a cluster has no databases but 0, so nothing follows the hosts"
    if not re.fullmatch(r"/[A-Za-z0-9._-]+(/[0-9]{0,9})?", parts.path, re.ASCII):  # the names that Sentinels allow
        return "the name of the master must follow the hosts, and perhaps the number of a database, like /master/0"
    return ""


def _node(text: str, port: int) -> Node:
    """`host`, `host:port`, `[address]:port`; ValueError for anything else."""
    found = _NODE.fullmatch(text)
    if found is None or not 1 <= int(found[3] or port) <= 65_535:
        raise ValueError(text)
    return found[1] or found[2], int(found[3] or port)


def _shown_node(node: Node) -> str:
    host, port = node
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
