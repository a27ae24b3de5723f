"""Whose word counts on the orders topic: planners sign orders, agents sign marks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from engine.errors import KeyDamaged, RecordRejected, SettingsError
from engine.wire.control import Control, decode_control
from engine.wire.order import (
    KEY_HEADER,
    Claim,
    Closed,
    Entry,
    Order,
    check_signature,
    decode_order,
    key_id,
)

_MADE_ANEW = (
    "Move it away and a new one is made at the next start; the .pub beside it must then go to"
    " every trusted folder again."
)

_NAMES: Final = {Order: "an order", Claim: "a claim", Closed: "a closed mark"}


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """Public keys by `key_id`; one key may be in two, where one process is both.

    Attributes
    ----------
    nodes
        By agent's key, the nodes whose orders it may close; a key that is not here may close
        those of every node, as where one process is the agent of them all.
    """

    planners: Mapping[str, Ed25519PublicKey]
    agents: Mapping[str, Ed25519PublicKey]
    operators: Mapping[str, Ed25519PublicKey] = field(default_factory=dict)
    nodes: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        *,
        planners: Iterable[Ed25519PublicKey],
        agents: Iterable[Ed25519PublicKey],
        operators: Iterable[Ed25519PublicKey] = (),
        node_agents: Iterable[tuple[str, Ed25519PublicKey]] = (),
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
            nodes=nodes,
        )


def open_entry(
    value: bytes, headers: tuple[tuple[str, bytes], ...], *, trusted: TrustedKeys
) -> Entry:
    """Return the order, claim or mark that `value` says, once the right role signed it.

    Raises
    ------
    RecordRejected
        The signature is missing, wrong, or by a key that may not say this: an agent's key
        gives no orders and claims and closes none of another node, a planner's key neither.
    """
    entry = decode_order(value, headers, trusted={**trusted.planners, **trusted.agents})
    name = dict(headers)[KEY_HEADER].decode("ascii", "replace")
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
    return entry


def open_control(
    value: bytes, headers: tuple[tuple[str, bytes], ...], *, trusted: TrustedKeys
) -> Control:
    """Return the word of control that `value` says; an approval must be signed by an operator.

    Every other word makes the rules stricter or takes such a word back, and stands for what
    the topic's rights let its writer say.

    Raises
    ------
    RecordRejected
        It is no control record, or an approval without an operator's signature.
    """
    control = decode_control(value)
    if control.kind == "approval":
        check_signature(value, headers, trusted=trusted.operators)
    return control


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
    except (ValueError, TypeError) as error:
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
    except ValueError as error:
        raise SettingsError(f"{source} is no public key in PEM: {error}.") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SettingsError(f"{source} holds a public key, but not an Ed25519 one.")
    return key
