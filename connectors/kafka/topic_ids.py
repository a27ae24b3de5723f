"""Query topic ids: a topic that is deleted and created again has another id.

aiokafka supports the metadata request up to version 5. Topic ids came with version 10 (KIP-516), so
this module declares version 10 with aiokafka's types.

Source: Kafka protocol guide, "Metadata API (Key: 3)", version 10.
"""

import base64
import struct
from collections.abc import Sequence
from typing import Final

from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

_API_KEY: Final = 3
_API_VERSION: Final = 10
_UUID: Final = Schema(("high", Int64), ("low", Int64))
_NO_ID: Final = (0, 0)
_TAGS: Final = ("tags", TaggedFields)


class _MetadataResponse(Response):  # type: ignore[misc] # aiokafka has no types
    API_KEY = _API_KEY
    API_VERSION = _API_VERSION
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                _TAGS,
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString("utf-8")),
                ("topic_id", _UUID),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        _TAGS,
                    ),
                ),
                ("topic_authorized_operations", Int32),
                _TAGS,
            ),
        ),
        ("cluster_authorized_operations", Int32),
        _TAGS,
    )


class _MetadataRequest(RequestStruct):  # type: ignore[misc] # aiokafka has no types
    API_KEY = _API_KEY
    API_VERSION = _API_VERSION
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _UUID), ("name", CompactString("utf-8")), _TAGS),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        _TAGS,
    )


class _TopicIds(Request[_MetadataRequest]):  # type: ignore[misc] # aiokafka has no types
    API_KEY = _API_KEY

    def __init__(self, names: Sequence[str], *, with_rights: bool = False) -> None:
        self._names = names
        self._with_rights = with_rights

    def build(self, request_struct_class: type[_MetadataRequest]) -> _MetadataRequest:
        no_tags: dict[int, bytes] = {}
        asked = [(_NO_ID, name, no_tags) for name in self._names]
        return request_struct_class(asked, False, False, self._with_rights, no_tags)


async def topic_ids(client: AIOKafkaClient, names: Sequence[str]) -> tuple[str, ...]:
    """Return the id of each topic as Kafka's own tools print it; empty for an invisible topic.

    Brokers before 2.8 have no topic ids: all are empty. Then a recreated topic is detected only if
    it ends before the offset up to which the old topic was read.

    `names` are with the prefix, and the result is in the same order.

    Raises
    ------
    KafkaError
        No broker answered.
    """
    try:
        answer = await client.send(client.get_random_node(), _TopicIds(names))
    except NotImplementedError:  # raised for a version that the broker does not support
        return ("",) * len(names)
    found = {name: uuid for error, name, uuid, *_ in answer.topics if not error and uuid != _NO_ID}
    return tuple(_printed(found[name]) if name in found else "" for name in names)


async def authorized_operations(
    client: AIOKafkaClient, names: Sequence[str]
) -> dict[str, int] | None:
    """Return the rights of this principal on each visible topic: one bit per operation.

    Bit n, from 0, is operation n of `connectors.kafka.rights.OPERATIONS`. `names` and the result
    are with the prefix. None if the broker does not support version 10 of the request (before 2.8).

    Raises
    ------
    KafkaError
        No broker answered.
    """
    try:
        answer = await client.send(client.get_random_node(), _TopicIds(names, with_rights=True))
    except NotImplementedError:  # raised for a version that the broker does not support
        return None
    return {name: rights for error, name, *_, rights, _tags in answer.topics if not error}


def _printed(uuid: tuple[int, int]) -> str:
    return base64.urlsafe_b64encode(struct.pack(">qq", *uuid)).decode().rstrip("=")
