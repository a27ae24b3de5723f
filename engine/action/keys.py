"""Trusted keys: planners sign orders, agents results and claims, engines alerts and scores.

Operators sign control commands that relax a restriction; see `engine.action.commands`.
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

from flatline.engine.action.request_context import CLOCK_SLACK_MS
from flatline.engine.errors import KeyDamaged, RecordRejected, SettingsError
from flatline.engine.wire.alert import Alert, decode_alert
from flatline.engine.wire.order import (
    Claim,
    Entry,
    Order,
    OrderResult,
    check_signature,
    decode_order,
    key_id,
)
from flatline.engine.wire.score import Scores, decode_scores

_MADE_ANEW = (
    "Move the file away: the next start creates a new key. Then copy its .pub file to every "
    "trusted folder again."
)

_NAMES: Final = {Order: "an order", Claim: "a claim", OrderResult: "a result"}
Headers = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """Public keys of each role, by `key_id`; the key of a process with two roles is in both.

    Attributes
    ----------
    nodes
        For each agent's key, the nodes whose orders it may claim and close. A key that is not
        listed may do so for every node, because one process may be the agent of all nodes.
    names
        For each key, the name in its file, which replaces the author stated in a record. The
        installation's own keys have no name here.
    until_ms
        By key, when it expires (ms since the epoch); a key that is not listed does not expire.
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
        """Return the keys by id; those of `node_agents` close only the orders of their node."""
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
        """Return these keys: a fixed set does not change, unlike a folder (see `Trust`)."""
        return self


class Trust(Protocol):
    """Provides the keys trusted now: fixed `TrustedKeys`, or a folder that may change."""

    def current(self) -> TrustedKeys:
        """Return the keys trusted now.

        If a changed folder cannot be read, this is logged, and the keys read before stay in force.
        """
        ...


def check_life(name: str, *, trusted: TrustedKeys, time_ms: int) -> None:
    """Reject a record whose key had expired at the record's append time.

    Parameters
    ----------
    name
        The `key_id` of the key.
    time_ms
        Append time of the record.

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
            f"the key {name} ({trusted.names.get(name, 'unnamed')}) expired at {ended}, before "
            "the log accepted the record; create another key and copy its .pub file to every "
            "trusted folder",
        )


def open_entry(value: bytes, headers: Headers, *, trusted: TrustedKeys, time_ms: int = 0) -> Entry:
    """Return the order, claim or result in `value` after verifying that the right role signed it.

    Parameters
    ----------
    time_ms
        Append time of the record, at which the key must be valid; 0 precedes every expiry.

    Raises
    ------
    RecordRejected
        The signature is missing or wrong, or its key has expired or may not sign this entry; or the
        value is no such entry. A planner's key may sign only orders; an agent's key only claims and
        results of its nodes.
    """
    entry, name = decode_order(value, headers, trusted={**trusted.planners, **trusted.agents})
    allowed = trusted.planners if isinstance(entry, Order) else trusted.agents
    if name not in allowed:
        what = _NAMES[type(entry)]
        raise RecordRejected("bad_signature", f"the key {name} is not allowed to sign {what}")
    if not isinstance(entry, Order) and entry.node not in trusted.nodes.get(name, (entry.node,)):
        where, what = ", ".join(sorted(trusted.nodes[name])), _NAMES[type(entry)]
        raise RecordRejected(
            "bad_signature",
            f"the key {name} belongs to {where}, not to {entry.node!r}, which {what} names",
        )
    check_life(name, trusted=trusted, time_ms=time_ms)
    return entry


def open_alert(value: bytes, headers: Headers, *, trusted: TrustedKeys, time_ms: int = 0) -> Alert:
    """Return the alert in `value` after verifying that a trusted engine signed it.

    Parameters
    ----------
    time_ms
        Append time of the record, at which the key must be valid; 0 precedes every expiry.

    Raises
    ------
    RecordRejected
        The signature is missing or wrong, its key is not an engine's or has expired, or the value
        is not an alert.
    """
    _require_engine(value, headers, trusted=trusted, time_ms=time_ms)
    return decode_alert(value)


def open_scores(
    value: bytes, headers: Headers, *, trusted: TrustedKeys, site: str, time_ms: int
) -> Scores:
    """Return the scores in `value` after verifying that a trusted engine of `site` signed them.

    Parameters
    ----------
    time_ms
        Append time of the record: scores of a later minute are rejected.

    Raises
    ------
    RecordRejected
        The signature is missing or wrong, or its key is not an engine's or has expired; or the
        value is not scores, or is of another site or of a future minute.
    """
    _require_engine(value, headers, trusted=trusted, time_ms=time_ms)
    scores = decode_scores(value)
    if scores.site != site:
        raise RecordRejected(
            "bad_value",
            f"the scores are of site {scores.site!r}, but this site is {site!r}: find out which "
            "engine writes to this log",
        )
    ahead_ms = scores.minute_ms - time_ms
    if ahead_ms > CLOCK_SLACK_MS:
        raise RecordRejected(
            "bad_value",
            f"the scores of cell {scores.cell!r} are dated {ahead_ms / 1000:.0f} s ahead of the "
            "log: check the clock of the engine that signed them",
        )
    return scores


def _require_engine(value: bytes, headers: Headers, *, trusted: TrustedKeys, time_ms: int) -> None:
    name = check_signature(value, headers, trusted=trusted.engines)
    check_life(name, trusted=trusted, time_ms=time_ms)


def private_key_pem(key: Ed25519PrivateKey) -> bytes:
    """Return the PEM text (PKCS 8, not encrypted) to keep in a file of mode 0600."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_key_pem(key: Ed25519PublicKey) -> bytes:
    """Return the PEM text to be distributed to the trusted folders."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def parse_private_key(pem: bytes, *, source: str) -> Ed25519PrivateKey:
    """Return the private key in a PEM text; `source` is its origin, for messages.

    Raises
    ------
    KeyDamaged
        It is not an unencrypted Ed25519 private key.
    """
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyDamaged(f"{source} is not a private key in PEM format. {_MADE_ANEW}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyDamaged(f"{source} holds a private key, but not an Ed25519 key. {_MADE_ANEW}")
    return key


def parse_public_key(pem: bytes, *, source: str) -> Ed25519PublicKey:
    """Return the public key in a PEM text; `source` is its origin, for messages.

    Raises
    ------
    SettingsError
        It is not an Ed25519 public key.
    """
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"{source} is not a public key in PEM format: {error}.") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SettingsError(f"{source} holds a public key, but not an Ed25519 key.")
    return key
