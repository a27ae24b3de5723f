import pytest
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
)

from flatline.connectors.kafka.failures import named
from flatline.engine.errors import LogError, LogRefused, LogUnreachable


@pytest.mark.parametrize(
    ("raised", "meant"),
    [
        (TopicAuthorizationFailedError("orders"), LogRefused),
        (GroupAuthorizationFailedError("engine"), LogRefused),
        (KafkaConnectionError("gone"), LogUnreachable),
        (RequestTimedOutError(), LogUnreachable),
        (TimeoutError(), LogUnreachable),
    ],
)
def test_an_error_is_named_for_what_the_caller_can_do(
    raised: KafkaError | TimeoutError, meant: type[LogError]
) -> None:
    with pytest.raises(meant, match=r"^reading orders: ") as caught, named("reading orders"):
        raise raised
    assert caught.value.__cause__ is raised
