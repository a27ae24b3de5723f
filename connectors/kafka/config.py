"""Connection settings for Kafka and the expected state of the cluster."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flatline.engine.wire.topics import TOPICS, Topic

Protocol = Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


@dataclass(frozen=True, slots=True)
class KafkaSecurity:
    """Encryption and authentication of a connection.

    Attributes
    ----------
    ca_file
        Certificates of the authorities that sign the brokers' certificates; None takes the
        system's.
    cert_file, key_file
        Certificate and key for brokers that request a client certificate.
    """

    protocol: Protocol = "plaintext"
    mechanism: Mechanism = "SCRAM-SHA-512"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaConfig:
    """Settings of one process for one installation on a Kafka cluster.

    Attributes
    ----------
    bootstrap
        `host:port` of one or more brokers, separated by commas.
    topic_prefix
        Prefix of every topic's name, so that installations can share a cluster.
    partitions
        Number of partitions of the topics keyed by cell when they are created.
    create_topics
        Whether entering the log creates missing topics; if not, `flatline doctor --create-topics`
        creates them.
    instance_id
        Makes the group membership static: a process that restarts within the session timeout keeps
        its partitions without a rebalance. The id must be unique in the group.
    session_timeout_s
        How long the group waits for a member that was killed. Brokers reject less than 6 s unless
        configured otherwise.
    append_timeout_s
        Time without acknowledgement after which an append fails as unreachable. It is longer than a
        broker's session (9 s) plus the election of a new leader.
    connect_timeout_s
        How long entering the log keeps trying.
    away_limit_s
        How long readers tolerate that no broker answers; they log the outage meanwhile.
    stall_limit_s
        How long a polling reader may receive nothing from a partition that has more records; then
        it counts as stalled.
    """

    bootstrap: str
    security: KafkaSecurity = KafkaSecurity()
    client_id: str = "flatline"
    topic_prefix: str = ""
    topics: tuple[Topic, ...] = TOPICS
    partitions: int = 1
    replication: int = 1
    create_topics: bool = False
    instance_id: str | None = None
    session_timeout_s: float = 10.0
    append_timeout_s: float = 30.0
    connect_timeout_s: float = 60.0
    away_limit_s: float = 300.0
    stall_limit_s: float = 60.0

    @property
    def servers(self) -> list[str]:
        """The brokers' addresses."""
        return [server.strip() for server in self.bootstrap.split(",") if server.strip()]
