"""The keys of simulated sites, and records signed with them as the shipped roles sign theirs."""

from collections.abc import Iterable
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flatline.engine.action.keys import TrustedKeys
from flatline.engine.keyring import Signer
from flatline.engine.ports import Headers
from flatline.engine.wire.alert import Alert, encode_alert
from flatline.engine.wire.control import Control, encode_control
from flatline.engine.wire.order import key_id, signed
from flatline.engine.wire.score import Scores, encode_scores


def _key(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(31) + bytes([number]))


PLANNER_KEY: Final = _key(1)
AGENT_KEY: Final = _key(2)
FOREIGN_KEY: Final = _key(3)
ENGINE_KEY: Final = _key(4)
OPERATOR_KEY: Final = _key(5)
KEYS: Final[dict[Signer, Ed25519PrivateKey]] = {
    "planner": PLANNER_KEY, "agent": AGENT_KEY, "engine": ENGINE_KEY, "operator": OPERATOR_KEY,
}  # fmt: skip
OPERATOR: Final = "ann"
TRUSTED: Final = TrustedKeys.of(
    planners=[PLANNER_KEY.public_key()],
    agents=[AGENT_KEY.public_key()],
    engines=[ENGINE_KEY.public_key()],
    operators=[OPERATOR_KEY.public_key()],
    names={key_id(OPERATOR_KEY.public_key()): OPERATOR},
)


def said(alert: Alert, *, key: Ed25519PrivateKey = ENGINE_KEY) -> tuple[bytes, Headers]:
    """Return value and headers of an alert, as an engine publishes it."""
    return with_signature(encode_alert(alert), key)


def scored(scores: Scores, *, key: Ed25519PrivateKey = ENGINE_KEY) -> tuple[bytes, Headers]:
    """Return value and headers of a minute of scores, as an engine publishes it."""
    return with_signature((encode_scores(scores), ()), key)


def with_signature(
    record: tuple[bytes, Iterable[tuple[str, bytes]]], key: Ed25519PrivateKey = ENGINE_KEY
) -> tuple[bytes, Headers]:
    """Return value and headers with a signature added."""
    value, headers = record
    return value, (*headers, *signed(value, key))


def word(control: Control, *, key: Ed25519PrivateKey = OPERATOR_KEY) -> tuple[bytes, Headers]:
    """Return value and headers of a control command, as an operator's command writes it."""
    return with_signature((encode_control(control), ()), key)
