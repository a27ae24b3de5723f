"""Settings of a lab broker: its server.properties, its certificates and their file modes."""

from __future__ import annotations

import os
from pathlib import Path

from deploy.lab.kafka_jars import run

PROTOCOLS = {"plain": "PLAINTEXT", "sasl": "SASL_PLAINTEXT", "tls": "SASL_SSL"}
BROKER_USER = "broker"


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, from its first byte on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


def server_properties(
    *,
    node: int,
    ports: list[int],
    log_dir: Path,
    security: str,
    broker_password: str,
    tls_dir: Path,
) -> dict[str, str]:
    """Return one node's server.properties (Kafka documentation, section Broker Configs)."""
    port = ports[node - 1]
    replicas = len(ports)
    in_sync = max(1, replicas - 1)
    voters = ",".join(f"{other}@127.0.0.1:{at + 1}" for other, at in enumerate(ports, start=1))
    properties: dict[str, object] = {
        "process.roles": "broker,controller",
        "node.id": node,
        "controller.quorum.voters": voters,
        "controller.listener.names": "CONTROLLER",
        "listeners": f"CLIENT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{port + 1}",
        "advertised.listeners": f"CLIENT://127.0.0.1:{port}",
        "listener.security.protocol.map": f"CLIENT:{PROTOCOLS[security]},CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "CLIENT",
        "log.dirs": log_dir,
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": replicas,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync,
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": 0,
        # Tests need a dead consumer detected within seconds; the default rejects sessions below 6
        # s.
        "group.min.session.timeout.ms": 1000,
        # After SIGKILL the restarted broker is admitted when its old session has expired, after 9 s
        # by default.
        "broker.session.timeout.ms": 2000,
        "broker.heartbeat.interval.ms": 500,
        "num.network.threads": 2,
        "num.io.threads": 2,
        # The default of 128 MB does not fit into this heap.
        "log.cleaner.dedupe.buffer.size": 2 * 1024 * 1024,
        "log.segment.bytes": 64 * 1024 * 1024,
    }
    if security != "plain":
        login = "org.apache.kafka.common.security.scram.ScramLoginModule required"
        properties |= {
            "sasl.enabled.mechanisms": "SCRAM-SHA-256",
            "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-256",
            "listener.name.client.scram-sha-256.sasl.jaas.config": (
                f'{login} username="{BROKER_USER}" password="{broker_password}";'
            ),
        }
    if security == "tls":
        properties |= {
            "listener.name.client.ssl.keystore.type": "PEM",
            "listener.name.client.ssl.keystore.location": tls_dir / "broker.pem",
            "listener.name.client.ssl.truststore.type": "PEM",
            "listener.name.client.ssl.truststore.location": tls_dir / "ca.crt",
        }
    return {key: str(value) for key, value in properties.items()}


def make_certificates(home: Path) -> None:
    """Create a new authority (``ca.crt``) and the brokers' key and chain (``broker.pem``)."""
    if (home / "broker.pem").exists():
        return
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    (home / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    new_key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc"
    for step in (
        f"req -x509 {new_key} -days 30 -subj /CN=flatline-lab -keyout ca.key -out ca.crt",
        f"req {new_key} -subj /CN=127.0.0.1 -keyout broker.key -out broker.csr",
        "x509 -req -in broker.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30"
        " -extfile names -out broker.crt",
    ):
        run(["openssl", *step.split()], cwd=home)
    chain = "".join((home / name).read_text() for name in ("broker.key", "broker.crt", "ca.crt"))
    write_private(home / "broker.pem", chain)
