"""Translate the errors of aiokafka into those of Flatline."""

from collections.abc import Iterator
from contextlib import contextmanager

from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from engine.errors import LogError, LogRefused, LogUnreachable

_RIGHTS = {
    TopicAuthorizationFailedError: "this principal may not do that on the topic: grant it the ACL",
    GroupAuthorizationFailedError: "this principal may not read in that group: grant it the ACL",
    # Error of a producer that may not write to any topic.
    ClusterAuthorizationFailedError: "this principal may not write here: grant it WRITE on a topic",
    SaslAuthenticationFailed: "the broker no longer takes this password",
    UnknownTopicOrPartitionError: "the topic or partition is not there: create the topics first",
}


def meaning(error: KafkaError, doing: str) -> LogError:
    """Return Flatline's error for one of aiokafka's; `doing` names the operation."""
    for kind, advice in _RIGHTS.items():
        if isinstance(error, kind):
            return LogRefused(f"{doing}: {advice} ({type(error).__name__})")
    return LogUnreachable(f"{doing}: Kafka did not do it ({error!r}); trying again may help")


@contextmanager
def named(doing: str) -> Iterator[None]:
    """Translate the errors that aiokafka raises in the block into Flatline's."""
    try:
        yield
    except KafkaError as error:
        raise meaning(error, doing) from error
    except TimeoutError as error:
        raise LogUnreachable(f"{doing}: no answer from Kafka in time") from error
