"""A real Kafka for tests and manual use: KRaft brokers, plain, SASL or TLS, one node or three.

``with Cluster(root) as cluster: connect(cluster.bootstrap)``; from the shell ``deploy/lab/kafka``.
Needs only the standard library.
"""

from __future__ import annotations

import json
import random
import secrets
import shutil
import socket
import ssl
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from deploy.lab.kafka_jars import PATIENCE, SOURCE, LabError, fetch, run
from deploy.lab.kafka_settings import (
    BROKER_USER,
    PROTOCOLS,
    make_certificates,
    server_properties,
    write_private,
)
from deploy.lab.server_process import ServerProcess

LOG4J = SOURCE / "log4j2.properties"
# Small enough for eight brokers on a laptop; 187 MB resident were measured after 1 GB of traffic.
JVM_OPTIONS = (
    "-Xmx256m",
    "-Xms64m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    f"-Dlog4j2.configurationFile={LOG4J}",
)


def free_port(nodes: int) -> int:
    """Return the first port of a range in which all ports of this many nodes are free now."""
    # Below the kernel's range of client ports, so that none is taken meanwhile.
    candidates = random.SystemRandom().sample(range(20000, 32000, 40), 100)
    for first in candidates:
        if all(_is_free(first + 10 * node + offset) for node in range(nodes) for offset in (0, 1)):
            return first
    raise LabError("no range of free ports between 20000 and 32000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Broker(ServerProcess):
    """One node, broker and controller in one process, which can outlive this Python process."""

    NAME = "broker"
    LOG = "broker.log"
    # A broker answers 2 s after its start on an idle machine; it was measured to need 15 s after
    # SIGKILL while eight shared two cores.
    READY_TIMEOUT_S = 90.0 * PATIENCE
    # SIGTERM takes 0.5 s; a broker without a controller waits longer and is killed after this.
    STOP_TIMEOUT_S = 15.0 * PATIENCE

    def __init__(
        self, home: Path, *, port: int, properties: Mapping[str, str], ca_file: Path | None
    ) -> None:
        self._config = home / "server.properties"
        super().__init__(home, port=port, mark=str(self._config))
        self.home = home
        self.ca_file = ca_file
        self._properties = dict(properties)

    def format(self, *, cluster_id: str, credentials: Mapping[str, str]) -> None:
        """Write the configuration and format the storage; existing storage is kept."""
        self.home.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{key}={value}\n" for key, value in self._properties.items())
        write_private(self._config, text)
        if (self.home / "log" / "meta.properties").exists():
            return
        scram = [
            word
            for user, password in credentials.items()
            for word in ("--add-scram", f"SCRAM-SHA-256=[name={user},password={password}]")
        ]
        tool = ["kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(self._config)]
        run(self._java(*tool, *scram))

    def _java(self, *words: str) -> list[str]:
        return ["java", *JVM_OPTIONS, "-cp", f"{fetch()}/*", *words]

    def start(self) -> Self:
        """Start it without waiting; do nothing if it runs."""
        if self.pid is None:
            self.launch(self._java("kafka.Kafka", str(self._config)))
        return self

    def answers(self) -> bool:
        """Whether it answers an ApiVersions request, which Kafka serves before any login."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0) as connection:
                if self.ca_file is None:
                    return _api_versions(connection)
                context = ssl.create_default_context(cafile=str(self.ca_file))
                with context.wrap_socket(connection, server_hostname="127.0.0.1") as encrypted:
                    return _api_versions(encrypted)
        except OSError:
            return False


def _api_versions(connection: socket.socket) -> bool:
    # Request 18 in version 0, correlation id 1, client id "lab"; any complete header is an answer.
    request = struct.pack(">hhih3s", 18, 0, 1, 3, b"lab")
    connection.sendall(struct.pack(">i", len(request)) + request)
    return len(connection.recv(8)) == 8


class Cluster:
    """One broker or three, with the same security, in one folder.

    Parameters
    ----------
    root
        Folder of all state. A cluster that already exists in it is reused with its own settings,
        ports and credentials; the other arguments are then ignored.
    nodes
        1, or 3 with replication 3 and two required in-sync replicas.
    security
        ``plain``, ``sasl`` (SCRAM-SHA-256) or ``tls`` (the same inside TLS).
    first_port
        Client port of node 1, whose controller takes the next one; each further node is 10 higher.
        None takes free ones.
    users
        SCRAM users beside the broker's own; their passwords are random.
    properties
        Added to every node's server.properties; they override the lab's settings.
    """

    def __init__(
        self,
        root: Path,
        *,
        nodes: int = 1,
        security: str = "plain",
        first_port: int | None = None,
        users: tuple[str, ...] = ("flatline",),
        properties: Mapping[str, str] | None = None,
    ) -> None:
        if security not in PROTOCOLS:
            raise LabError(f"security {security!r} is not one of {', '.join(PROTOCOLS)}")
        self.root = root.resolve()
        state = self.root / "cluster.json"
        if not state.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            names = () if security == "plain" else (BROKER_USER, *users)
            settings = {
                "nodes": nodes,
                "security": security,
                "first_port": first_port if first_port is not None else free_port(nodes),
                # 16 bytes in 22 characters of URL-safe base64: no leading dash, which the tool
                # would parse as an option, and no bits set beyond the last byte.
                "cluster_id": "A" + secrets.token_urlsafe(16)[1:-1] + "A",
                "credentials": {name: secrets.token_hex(16) for name in names},
                "properties": dict(properties or {}),
            }
            write_private(state, json.dumps(settings, indent=2))
        self._settings = json.loads(state.read_text())
        self.security: str = self._settings["security"]
        self.credentials: dict[str, str] = self._settings["credentials"]
        self.ca_file = self.root / "tls" / "ca.crt" if self.security == "tls" else None
        count: int = self._settings["nodes"]
        self.brokers = [self._broker(node, count) for node in range(1, count + 1)]

    @property
    def bootstrap(self) -> str:
        """The bootstrap servers of a client: every node's address, separated by commas."""
        return ",".join(f"127.0.0.1:{broker.port}" for broker in self.brokers)

    def _broker(self, node: int, count: int) -> Broker:
        port = self._port(node)
        home = self.root / f"node{node}"
        properties = server_properties(
            node=node,
            ports=[self._port(other) for other in range(1, count + 1)],
            log_dir=home / "log",
            security=self.security,
            broker_password=self.credentials.get(BROKER_USER, ""),
            tls_dir=self.root / "tls",
        )
        merged: dict[str, str] = properties | self._settings["properties"]
        return Broker(home, port=port, properties=merged, ca_file=self.ca_file)

    def _port(self, node: int) -> int:
        first: int = self._settings["first_port"]
        return first + 10 * (node - 1)

    def start(self) -> Self:
        """Format unformatted nodes and start every node that does not run."""
        if self.ca_file is not None:
            make_certificates(self.ca_file.parent)
        for broker in self.brokers:
            broker.format(cluster_id=self._settings["cluster_id"], credentials=self.credentials)
        for broker in self.brokers:
            broker.start()
        return self

    def wait(self, timeout_s: float | None = None) -> Self:
        """Return once every node serves requests."""
        for broker in self.brokers:
            broker.wait(timeout_s)
        return self

    def stop(self) -> None:
        """Stop all nodes in parallel and wait for their end."""
        for broker in self.brokers:
            broker.terminate()
        for broker in self.brokers:
            broker.stop()

    def kill(self) -> None:
        """Kill every node by SIGKILL and wait for its end."""
        for broker in self.brokers:
            broker.kill()

    def remove(self) -> None:
        """Stop every node and delete the folder."""
        self.stop()
        shutil.rmtree(self.root)

    def __enter__(self) -> Self:
        try:
            return self.start().wait()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()
