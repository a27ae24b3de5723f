"""Orders, claims and results of orders: the records on `flatline.orders.v1`.

The exact bytes are signed with Ed25519 (RFC 8032); the headers carry the signature and the id of
the key. A reader verifies before it parses.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Final, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from flatline.engine.errors import RecordRejected
from flatline.engine.wire import limits
from flatline.engine.wire.alert import Counted, CpuShape
from flatline.engine.wire.envelope import decode_json

Action = Literal["save_evidence", "reboot", "reset", "migrate", "move_disk"]
Outcome = Literal["returned", "refused", "unknown", "expired", "not_attempted"]

# An order older than this is void, whatever its `expires_ms` says. The value leaves time for the
# preflight check (≥ 4 s) and a busy log, and prevents actions that are based on outdated evidence.
MAX_LIFETIME_MS: Final = 60_000

KEY_HEADER: Final = "flatline-key"
SIGNATURE_HEADER: Final = "flatline-signature"


class Order(msgspec.Struct, frozen=True, kw_only=True, tag="order", omit_defaults=True):
    """One action on one VM.

    Attributes
    ----------
    incident, step
        Together the idempotency key: only the first order for a pair is valid.
    instance
        The run of the VM that was judged. If the node has another run of the VM, the order is void.
    expires_ms
        Wall time after which no agent may start the action.
    deadline_ms
        Wall time until which the order counts as in flight if no result ends it earlier.
    data_ms
        Append time of the newest sample that the decision is based on.
    counted
        The VM's counters as of `data_ms`. If those of the live VM differ, the guest is alive. None:
        only the samples of the preflight check are compared.
    dry_run
        Whether the agent does everything except the call to the hypervisor.
    opened_ms
        Append time of the record that opened the incident; 0 is unknown.
    history_s
        For how long the VM had been observed when it was judged; None is unknown.
    attested
        The VM's own panic device or watchdog, or its hypervisor, reported a crash.
    target
        Destination node of a migration, or destination pool of a disk; else None.
    disk
        Target device (`vda`) of the disk to be moved; else None.
    zone, pools, networks
        Further scopes of the VM: a pause of one of them also stops this order. Empty is unknown.
    witnesses
        Witnesses of the death (`engine.wire.alert.WITNESSES`). Orders of an earlier release have
        `signals` instead, which readers ignore.
    cell_vms, site_vms
        Number of VMs of the cell and of the site that the planner knew; budgets are shares of these
        numbers. 0 is unknown.
    group_sick
        Number of other members of the VM's group with an incident.
    source_load_ratio, target_load_ratio
        Load of the source and target node of a migration when it was ordered; None is unknown.
    """

    incident: limits.Word
    step: limits.Count
    action: Action
    vm: limits.Text
    instance: int
    site: limits.Text
    cell: limits.Text
    node: limits.Text
    kind: limits.Word
    cpu_shape: CpuShape
    issued_ms: limits.TimeMs
    expires_ms: limits.TimeMs
    deadline_ms: limits.TimeMs
    data_ms: limits.TimeMs
    dry_run: bool
    planner: limits.Text
    policy: limits.Text
    sentence: limits.Sentence
    v: Literal[1] = 1
    target: limits.Text | None = None
    tenant: limits.Text | None = None
    group: limits.Text | None = None
    opened_ms: limits.TimeMs = 0
    history_s: limits.Figure | None = None
    attested: bool = False
    disk: limits.Text | None = None
    zone: limits.Text = ""
    pools: limits.Texts = ()
    networks: limits.Texts = ()
    witnesses: limits.Texts = ()
    cell_vms: limits.Count = 0
    site_vms: limits.Count = 0
    group_sick: limits.Count = 0
    source_load_ratio: limits.Figure | None = None
    target_load_ratio: limits.Figure | None = None
    counted: Counted | None = None


class OrderResult(msgspec.Struct, frozen=True, kw_only=True, tag="closed", omit_defaults=True):
    """The agent's result, which ends an order: it is no longer in flight."""

    incident: limits.Word
    step: limits.Count
    vm: limits.Text
    node: limits.Text
    agent: limits.Text
    outcome: Outcome
    dry_run: bool
    time_ms: limits.TimeMs
    sentence: limits.Sentence
    v: Literal[1] = 1


class Claim(msgspec.Struct, frozen=True, kw_only=True, tag="claim", omit_defaults=True):
    """An agent's lock on a step that it is about to execute; only the first in the log is valid.

    `agent` names one run of one agent process.
    """

    incident: limits.Word
    step: limits.Count
    vm: limits.Text
    node: limits.Text
    agent: limits.Text
    dry_run: bool
    time_ms: limits.TimeMs
    v: Literal[1] = 1


Entry = Order | OrderResult | Claim


class _Place(msgspec.Struct):
    node: str = ""


_place_decoder = msgspec.json.Decoder(_Place)


def names_node(value: bytes, node: str) -> bool:
    """Return whether bytes, which may not be a valid order, name this node."""
    try:
        return _place_decoder.decode(value).node == node
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        return False


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)


def key_id(key: Ed25519PublicKey) -> str:
    """Return the short name of a public key: 16 hex digits of its BLAKE2b hash."""
    return blake2b(key.public_bytes(Encoding.Raw, PublicFormat.Raw), digest_size=8).hexdigest()


def encode_order(
    entry: Entry, key: Ed25519PrivateKey
) -> tuple[bytes, tuple[tuple[str, bytes], ...]]:
    """Return the value of an entry and the headers with its signature."""
    value = _encoder.encode(entry)
    return value, signed(value, key)


def signed(value: bytes, key: Ed25519PrivateKey) -> tuple[tuple[str, bytes], ...]:
    """Return the headers that carry the signature of `value`."""
    return (
        (KEY_HEADER, key_id(key.public_key()).encode()),
        (SIGNATURE_HEADER, key.sign(value)),
    )


def check_signature(
    value: bytes,
    headers: tuple[tuple[str, bytes], ...],
    *,
    trusted: Mapping[str, Ed25519PublicKey],
) -> str:
    """Return the id of the trusted key that signed exactly `value`.

    Callers must use this id and not read the headers, because a record may repeat a header.

    Raises
    ------
    RecordRejected
        `bad_signature`: a header is missing or repeated, the key is not trusted, or the signature
        does not match.
    """
    names = [content for header, content in headers if header == KEY_HEADER]
    signatures = [content for header, content in headers if header == SIGNATURE_HEADER]
    if len(names) > 1 or len(signatures) > 1:
        detail = (
            f"it has {len(names)} headers {KEY_HEADER} and {len(signatures)} headers "
            f"{SIGNATURE_HEADER}"
        )
        raise RecordRejected("bad_signature", f"{detail}, but exactly one of each is allowed")
    name = names[0][:64].decode("ascii", "replace") if names else ""
    if not signatures or name not in trusted:
        raise RecordRejected("bad_signature", f"no signature by a trusted key (key {name!r})")
    try:
        trusted[name].verify(signatures[0], value)
    except InvalidSignature as error:
        raise RecordRejected(
            "bad_signature", f"the signature by key {name} is not valid"
        ) from error
    return name


def decode_order(
    value: bytes,
    headers: tuple[tuple[str, bytes], ...],
    *,
    trusted: Mapping[str, Ed25519PublicKey],
) -> tuple[Entry, str]:
    """Return the entry that `value` encodes, after its signature is verified, and the key id.

    Parameters
    ----------
    trusted
        Public keys by `key_id`: those of planners for orders, those of agents for claims and
        results.

    Raises
    ------
    RecordRejected
        `bad_signature` as in `check_signature`; else as in `engine.wire.envelope`.
    """
    name = check_signature(value, headers, trusted=trusted)
    return decode_json(value, _decoder), name
