"""Query the rights of this principal on each topic from the broker.

Brokers return a client's own rights with the metadata of topics (KIP-430), so the client needs no
permission to read ACLs.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from aiokafka.client import AIOKafkaClient

from flatline.connectors.kafka.config import KafkaConfig
from flatline.connectors.kafka.failures import named
from flatline.connectors.kafka.security import client_settings
from flatline.connectors.kafka.topic_ids import authorized_operations

# Kafka protocol guide, "ACL operations"; the operations on topics.
OPERATIONS: Final[Mapping[int, str]] = {
    3: "Read", 4: "Write", 5: "Create", 6: "Delete", 7: "Alter", 8: "Describe",
    10: "DescribeConfigs", 11: "AlterConfigs",
}  # fmt: skip


async def own_rights(
    config: KafkaConfig, topics: Sequence[str]
) -> dict[str, frozenset[str]] | None:
    """Return the rights of this principal on each topic; an empty set for an invisible topic.

    Rights are named as in `OPERATIONS`, such as "Read". Topics are named without the prefix
    `config.topic_prefix`, both in `topics` and in the result. None if the broker does not report
    rights in the request used here (before 2.8).

    Raises
    ------
    LogUnreachable, LogRefused
        No broker answered, or it rejected the login.
    """
    client = AIOKafkaClient(**client_settings(config))
    with named("reading the ACLs"):
        await client.bootstrap()
        try:
            names = [config.topic_prefix + topic for topic in topics]
            found = await authorized_operations(client, names)
        finally:
            await client.close()
    if found is None:
        return None
    return {
        topic: frozenset(
            operation for code, operation in OPERATIONS.items() if found.get(name, 0) >> code & 1
        )
        for topic, name in zip(topics, names, strict=True)
    }
