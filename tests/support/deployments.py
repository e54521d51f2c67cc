"""More than one server: a master and its replica under a Sentinel, a cluster, a server behind TLS."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import redis
import trustme
from redis.crc import key_slot

from support.server import Server, free_port
from support.waiting import wait_until_sync

_AT_ONCE = ("--repl-diskless-sync-delay", "0")


class Sentinel(Server):
    """A Sentinel that watches `master` under the name `jobs`, and is quick to find it dead."""

    DOWN = 500
    """Ms without an answer after which the master counts as dead."""

    def __init__(self, master: Server, *options: str) -> None:
        super().__init__(*options)
        self._master = master

    def _command(self, options: list[str]) -> list[str]:
        config = self.folder / "sentinel.conf"
        if not config.exists():
            config.write_text(
                f"sentinel monitor jobs 127.0.0.1 {self._master.port} 1\n"
                f"sentinel down-after-milliseconds jobs {self.DOWN}\n"
                "sentinel failover-timeout jobs 3000\n"
            )
        kept = [word for name, value in zip(options[::2], options[1::2], strict=True)
                if name not in ("--save", "--appendonly") for word in (name, value)]  # fmt: skip
        return [self.binary, str(config), "--sentinel", *kept]


class Replicated:
    """A master, its replica and a Sentinel. `url` names a Sentinel that is not there first."""

    def __init__(self, *options: str) -> None:
        self.master = Server(*_AT_ONCE, *options)
        self.replica = Server("--replicaof", "127.0.0.1", str(self.master.port), *_AT_ONCE, *options)
        self.sentinel = Sentinel(self.master)
        self.url = f"sentinel://127.0.0.1:{free_port()},127.0.0.1:{self.sentinel.port}/jobs"

    def __enter__(self) -> Self:
        self.master.start()
        self.replica.start()
        with self.master.client() as master:
            wait_until_sync(lambda: _replicated(master), 10.0, "the replica is in step")
        self.sentinel.start()  # not before: it would look at the replica again only after ten seconds
        with self.sentinel.client() as sentinel:
            wait_until_sync(lambda: _ready(sentinel), 10.0, "the Sentinel knows the replica")
        return self

    def __exit__(self, *exc: object) -> None:
        for server in (self.sentinel, self.replica, self.master):
            server.close()

    def switch(self) -> None:
        """A failover that is asked for: both stay alive, and the master becomes the replica."""
        with self.sentinel.client() as sentinel:
            sentinel.execute_command("SENTINEL", "FAILOVER", "jobs")


class Cluster:
    """Three masters, and a replica of the one that owns the slot of `prefix`."""

    def __init__(self, prefix: str, *options: str) -> None:
        self.slot = key_slot(prefix.encode())
        self.nodes = [
            Server(
                "--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--cluster-node-timeout", "1000",
                "--cluster-replica-validity-factor", "0", "--cluster-require-full-coverage", "no",
                *_AT_ONCE, *options,
            )
            for _ in range(4)
        ]  # fmt: skip
        self.owner = self.nodes[self.slot * 3 // 16_384]
        self.others = [node for node in self.nodes[:3] if node is not self.owner]
        self.replica = self.nodes[3]

    @property
    def url(self) -> str:
        """Names nodes that don't own the slot, and first of all one that isn't there."""
        return f"cluster://127.0.0.1:{free_port()}," + ",".join(f"127.0.0.1:{node.port}" for node in self.others)

    def __enter__(self) -> Self:
        for node in self.nodes:
            node.start()
        bounds = [0, 5462, 10_923, 16_384]
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(node.client()) for node in self.nodes]
            for at, client in enumerate(clients):
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", at + 1)
                if at < 3:
                    client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[at], bounds[at + 1] - 1)
            for node in self.nodes[1:]:
                bus = node.option("--cluster-port")
                clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
            owner = str(self.id(self.owner))
            wait_until_sync(lambda: all(_knows(client, 4) for client in clients), 15.0, "the nodes know each other")
            clients[3].execute_command("CLUSTER", "REPLICATE", owner)
            wait_until_sync(lambda: all(_ok(client) for client in clients), 15.0, "the cluster is ready")
            with self.owner.client() as client:
                wait_until_sync(lambda: _replicated(client), 15.0, "the replica is in step")
        return self

    def __exit__(self, *exc: object) -> None:
        for node in self.nodes:
            node.close()

    def node_of(self, prefix: str) -> Server:
        """The node that owns the slot of a prefix."""
        slot = key_slot(prefix.encode())
        if slot == self.slot:
            return self.owner
        return self.nodes[slot * 3 // 16_384]

    def id(self, node: Server) -> str:
        with node.client() as client:
            return str(client.execute_command("CLUSTER", "MYID"))

    def move(self, target: Server) -> None:
        """Move the slot, with all that is in it, from its owner to `target`, as an operator's tool would."""
        source_id, target_id = self.id(self.owner), self.id(target)
        with self.owner.client() as source, target.client() as destination:
            destination.execute_command("CLUSTER", "SETSLOT", self.slot, "IMPORTING", source_id)
            source.execute_command("CLUSTER", "SETSLOT", self.slot, "MIGRATING", target_id)
            while keys := source.execute_command("CLUSTER", "GETKEYSINSLOT", self.slot, 100):
                source.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            for client in (destination, source):
                client.execute_command("CLUSTER", "SETSLOT", self.slot, "NODE", target_id)
        self.others = [node for node in (*self.others, self.owner) if node is not target]
        self.owner = target


def _replicated(client: redis.Redis) -> bool:
    return bool(client.info("replication").get("slave0", {}).get("state") == "online")


def _ready(sentinel: redis.Redis) -> bool:
    return any(replica["master-link-status"] == "ok" for replica in sentinel.sentinel_slaves("jobs"))


def _knows(client: redis.Redis, count: int) -> bool:
    return sum("handshake" not in node["flags"] for node in client.cluster("NODES").values()) == count


def _ok(client: redis.Redis) -> bool:
    return bool(client.cluster("INFO")["cluster_state"] == "ok")


class Tls:
    """TLS in front of a server, for clients that have a certificate of this authority."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._server, self._folder = server, folder
        authority = trustme.CA()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.verify_mode = ssl.CERT_REQUIRED
        authority.issue_cert("127.0.0.1").configure_cert(self._context)
        authority.configure_trust(self._context)
        client = authority.issue_cert("worker@example.com")
        self.authority, self.certificate, self.key = (
            str(folder / name) for name in ("ca.pem", "client.pem", "key.pem")
        )
        authority.cert_pem.write_to_path(self.authority)
        client.cert_chain_pems[0].write_to_path(self.certificate)
        client.private_key_pem.write_to_path(self.key)
        self.clients: set[str] = set()
        """The names in the certificates that clients showed."""

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Gives the host and port."""
        passing: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            names = writer.get_extra_info("peercert")["subjectAltName"]
            self.clients.update(name for _, name in names)
            passing.add(task := asyncio.current_task())  # type: ignore[arg-type]
            there, back = await asyncio.open_unix_connection(self._server.socket)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_pass(reader, back))
                    group.create_task(_pass(there, writer))
            except* (OSError, ssl.SSLError):
                pass
            finally:
                passing.discard(task)  # type: ignore[arg-type]
                writer.close()
                back.close()

        listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=self._context)
        try:
            host, port = listener.sockets[0].getsockname()
            yield f"{host}:{port}"
        finally:
            listener.close()
            for task in passing:
                task.cancel()
            await asyncio.gather(*passing, return_exceptions=True)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bytes from one side to the other, to the end."""
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()
