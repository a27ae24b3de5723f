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

from flatline.engine.errors import LogError, LogRefused, LogUnreachable

_RIGHTS = {
    TopicAuthorizationFailedError: "this principal is not authorised for the topic: add the ACL",
    GroupAuthorizationFailedError: (
        "this principal is not authorised to read in that group: add the ACL"
    ),
    # Error of a producer that may not write to any topic.
    ClusterAuthorizationFailedError: (
        "this principal is not authorised to write: add WRITE on a topic"
    ),
    SaslAuthenticationFailed: "the broker no longer accepts this password",
    UnknownTopicOrPartitionError: "the topic or partition does not exist: create the topics first",
}


def meaning(error: KafkaError, doing: str) -> LogError:
    """Return Flatline's error for one of aiokafka's; `doing` names the operation."""
    for kind, advice in _RIGHTS.items():
        if isinstance(error, kind):
            return LogRefused(f"{doing}: {advice} ({type(error).__name__})")
    return LogUnreachable(f"{doing}: Kafka failed ({error!r}); a retry may succeed")


@contextmanager
def named(doing: str) -> Iterator[None]:
    """Translate the errors that aiokafka raises in the block into Flatline's.

    `doing` names the operation in the message.

    Raises
    ------
    LogRefused
        This principal may not do this, its password is wrong, or the topic does not exist.
    LogUnreachable
        Any other error of Kafka, or a timeout.
    """
    try:
        yield
    except KafkaError as error:
        raise meaning(error, doing) from error
    except TimeoutError as error:
        raise LogUnreachable(f"{doing}: Kafka did not answer in time") from error
