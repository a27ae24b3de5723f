"""Whose word counts: planners sign orders, agents marks, engines alerts and scores.

What lifts a restriction is signed by an operator; `engine.action.words` reads words of control.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Protocol, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from engine.action.question import CLOCK_SLACK_MS
from engine.errors import KeyDamaged, RecordRejected, SettingsError
from engine.wire.alert import Alert, decode_alert
from engine.wire.order import (
    Claim,
    Closed,
    Entry,
    Order,
    check_signature,
    decode_order,
    key_id,
)
from engine.wire.score import Scores, decode_scores

_MADE_ANEW = (
    "Move it away and a new one is made at the next start; the .pub beside it must then go to"
    " every trusted folder again."
)

_NAMES: Final = {Order: "an order", Claim: "a claim", Closed: "a closed mark"}
Headers = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """Public keys by `key_id`; one key may be in two, where one process is both.

    Attributes
    ----------
    nodes
        By agent's key, the nodes whose orders it may close; a key that is not here may close
        those of every node, as where one process is the agent of them all.
    names
        By key, what its file calls it: who speaks, whatever a record says. An installation's own
        keys have no name here.
    until_ms
        By key, when it ends (ms since the epoch); one that is not here does not.
    """

    planners: Mapping[str, Ed25519PublicKey]
    agents: Mapping[str, Ed25519PublicKey]
    operators: Mapping[str, Ed25519PublicKey] = field(default_factory=dict)
    nodes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    engines: Mapping[str, Ed25519PublicKey] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    until_ms: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        *,
        planners: Iterable[Ed25519PublicKey],
        agents: Iterable[Ed25519PublicKey],
        operators: Iterable[Ed25519PublicKey] = (),
        engines: Iterable[Ed25519PublicKey] = (),
        node_agents: Iterable[tuple[str, Ed25519PublicKey]] = (),
        names: Mapping[str, str] | None = None,
        until_ms: Mapping[str, int] | None = None,
    ) -> Self:
        """Return the keys, named; those of `node_agents` close the orders of their node alone."""
        everywhere = {key_id(key): key for key in agents}
        bound: dict[str, Ed25519PublicKey] = {}
        nodes: dict[str, frozenset[str]] = {}
        for node, key in node_agents:
            name = key_id(key)
            if name not in everywhere:
                bound[name] = key
                nodes[name] = nodes.get(name, frozenset()) | {node}
        return cls(
            planners={key_id(key): key for key in planners},
            agents={**bound, **everywhere},
            operators={key_id(key): key for key in operators},
            engines={key_id(key): key for key in engines},
            nodes=nodes,
            names={} if names is None else names,
            until_ms={} if until_ms is None else until_ms,
        )

    def current(self) -> "TrustedKeys":
        """Return these keys: a fixed set is its own newest state, see `Trust`."""
        return self


class Trust(Protocol):
    """Gives whose words count now; `TrustedKeys` itself does, and so does a folder that changes."""

    def current(self) -> TrustedKeys:
        """Return the keys as they are now."""
        ...


def check_life(name: str, *, trusted: TrustedKeys, time_ms: int) -> None:
    """Reject what a key signed after its end, by the log's time of the record.

    Raises
    ------
    RecordRejected
        `expired_key`.
    """
    until_ms = trusted.until_ms.get(name)
    if until_ms is not None and time_ms >= until_ms:
        ended = datetime.fromtimestamp(until_ms / 1000, UTC).isoformat(timespec="seconds")
        raise RecordRejected(
            "expired_key",
            f"the key {name} ({trusted.names.get(name, 'unnamed')}) ended at {ended}, before the"
            " log took the record; make another and put its .pub into every trusted folder",
        )


def open_entry(value: bytes, headers: Headers, *, trusted: TrustedKeys, time_ms: int = 0) -> Entry:
    """Return the order, claim or mark that `value` says, once the right role signed it.

    Parameters
    ----------
    time_ms
        Append time of the record, by which keys end; 0 is before the end of every key.

    Raises
    ------
    RecordRejected
        The signature is missing, wrong, or by a key that may not say this: an agent's key
        gives no orders and claims and closes none of another node, a planner's key neither.
    """
    entry, name = decode_order(value, headers, trusted={**trusted.planners, **trusted.agents})
    allowed = trusted.planners if isinstance(entry, Order) else trusted.agents
    if name not in allowed:
        what = _NAMES[type(entry)]
        raise RecordRejected("bad_signature", f"the key {name} may not sign {what}")
    if not isinstance(entry, Order) and entry.node not in trusted.nodes.get(name, (entry.node,)):
        where, what = ", ".join(sorted(trusted.nodes[name])), _NAMES[type(entry)]
        raise RecordRejected(
            "bad_signature",
            f"the key {name} is that of {where}, not of {entry.node!r} as {what} says",
        )
    check_life(name, trusted=trusted, time_ms=time_ms)
    return entry


def open_alert(value: bytes, headers: Headers, *, trusted: TrustedKeys, time_ms: int = 0) -> Alert:
    """Return the alert that `value` says, once a trusted engine signed it.

    Parameters
    ----------
    time_ms
        Append time of the record, by which keys end; 0 is before the end of every key.

    Raises
    ------
    RecordRejected
        The signature is missing or wrong, its key is no engine's or has ended, or the value is no
        alert.
    """
    _require_engine(value, headers, trusted=trusted, time_ms=time_ms)
    return decode_alert(value)


def open_scores(
    value: bytes, headers: Headers, *, trusted: TrustedKeys, site: str, time_ms: int
) -> Scores:
    """Return the minute that `value` says, once a trusted engine of `site` signed it.

    Parameters
    ----------
    time_ms
        Append time of the record: no minute that ended later can be told by it.

    Raises
    ------
    RecordRejected
        The signature is missing or wrong, its key is no engine's or has ended; or the value is no
        scores, of another site, or of a minute to come.
    """
    _require_engine(value, headers, trusted=trusted, time_ms=time_ms)
    scores = decode_scores(value)
    if scores.site != site:
        raise RecordRejected(
            "bad_value",
            f"scores are of site {scores.site!r}, and this is {site!r}: look at what engine writes"
            " to this log",
        )
    ahead_ms = scores.minute_ms - time_ms
    if ahead_ms > CLOCK_SLACK_MS:
        raise RecordRejected(
            "bad_value",
            f"scores of cell {scores.cell!r} are of a minute {ahead_ms / 1000:.0f} s after the log"
            " took them: look at the engine that signed them",
        )
    return scores


def _require_engine(value: bytes, headers: Headers, *, trusted: TrustedKeys, time_ms: int) -> None:
    name = check_signature(value, headers, trusted=trusted.engines)
    check_life(name, trusted=trusted, time_ms=time_ms)


def private_key_pem(key: Ed25519PrivateKey) -> bytes:
    """Return the PEM text (PKCS 8, not encrypted) to keep in a file of mode 0600."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_key_pem(key: Ed25519PublicKey) -> bytes:
    """Return the PEM text that others trust."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def parse_private_key(pem: bytes, *, source: str) -> Ed25519PrivateKey:
    """Return the key that a PEM text holds.

    Raises
    ------
    KeyDamaged
        It is no unencrypted Ed25519 private key.
    """
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyDamaged(f"{source} is no private key in PEM. {_MADE_ANEW}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyDamaged(f"{source} holds a private key, but not an Ed25519 one. {_MADE_ANEW}")
    return key


def parse_public_key(pem: bytes, *, source: str) -> Ed25519PublicKey:
    """Return the key that a PEM text holds.

    Raises
    ------
    SettingsError
        It is no Ed25519 public key.
    """
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"{source} is no public key in PEM: {error}.") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SettingsError(f"{source} holds a public key, but not an Ed25519 one.")
    return key
