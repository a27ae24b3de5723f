"""The replacement of topic ids where a broker has none."""

import asyncio
from typing import Any, cast

from aiokafka.client import AIOKafkaClient

from flatline.connectors.kafka.topic_ids import topic_ids


class _OldBroker:
    """A client whose broker supports metadata up to a version."""

    def __init__(self, newest: int) -> None:
        self._versions = {3: (0, newest)}

    def get_random_node(self) -> int:
        return 0

    async def send(self, node: int, request: Any) -> Any:
        return request.prepare(self._versions)


def test_a_broker_without_ids_leaves_them_empty() -> None:
    client = cast(AIOKafkaClient, _OldBroker(newest=9))
    assert asyncio.run(topic_ids(client, ["a", "b"])) == ("", "")
