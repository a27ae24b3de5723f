"""How a process reaches Kafka and what it expects there."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from engine.wire.topics import TOPICS, Topic

Protocol = Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


@dataclass(frozen=True, slots=True)
class KafkaSecurity:
    """How the connection is protected and who connects.

    Attributes
    ----------
    ca_file
        Certificates of the authorities that sign the brokers; None takes the system's.
    cert_file, key_file
        What this client shows to brokers that ask for a certificate.
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
    """One installation on a Kafka cluster, as one process sees it.

    Attributes
    ----------
    bootstrap
        `host:port` of one or more brokers, separated by commas.
    topic_prefix
        Put before every topic's name, so that installations can share a cluster.
    partitions
        How many partitions the topics keyed by cell get when they are created.
    create_topics
        Whether entering the log creates what is missing; else that is `doctor`'s business.
    instance_id
        Makes the group membership static: a restart within the session takes its partitions
        up again without a rebalance. Unique in the group.
    session_timeout_s
        How long the group waits for a member that was killed. Brokers refuse less than 6 s
        unless told otherwise.
    append_timeout_s
        After how long an append that nobody acknowledged is called unreachable. Longer than a
        broker's session (9 s) and the election after it.
    connect_timeout_s
        How long entering the log tries before it gives up.
    away_limit_s
        How long readers bridge an absence by themselves, and say so in the log meanwhile.
    stall_limit_s
        How long a partition may have records that are not delivered, with a reader that asks.
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
        """The brokers' addresses, one each."""
        return [server.strip() for server in self.bootstrap.split(",") if server.strip()]
