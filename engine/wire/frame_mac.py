"""Authentication of frames: a message authentication code (MAC), checked before decoding.

The MAC is AES-256-GMAC (NIST SP 800-38D, GCM without plaintext) over exactly the value's bytes. All
keys are derived with keyed BLAKE2b (RFC 7693). The site key yields a key for each writer's name,
and that key yields one for each record key, so that a frame cannot be moved to another cell.

The nonce is 96 random bits per frame. A counter would have to survive restarts, and the collector
and the agent of a node share a key without communicating. The standard allows 2^32 random nonces
under one key, which suffices for 136 years at one frame per second.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, Literal, get_args

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from flatline.engine.errors import RecordRejected
from flatline.engine.wire.frame import Frame, Header, Role, decode_frame
from flatline.engine.wire.order import KEY_HEADER
from flatline.engine.wire.table import Widen

MAC_HEADER: Final = "flatline-mac"

# Kinds of writers that have a key. A node's key is used by its collector and its agent; an engine
# writes ticks; an owner reports work on a VM.
Kind = Literal["node", "engine", "owner"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
ROLES_OF: Final[Mapping[Kind, frozenset[Role]]] = {
    "node": frozenset({"collector", "agent"}),
    "engine": frozenset({"shell"}),
    "owner": frozenset({"owner"}),
}

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_KEY_PERSON: Final = b"flatline-name-1"
_CELL_PERSON: Final = b"flatline-cell-1"
# Form of a key name: a name as settings allow it, and ids as `new_key_id` makes them. The pattern
# also bounds the length of the header, which any writer can choose.
_NAME: Final = re.compile(
    r"(node|engine|owner)/([A-Za-z0-9][A-Za-z0-9._-]{0,127})/([0-9a-f]{16})/([0-9a-f]{16})/(\d{1,12})"
)
_KEY_HEADER_BYTES: Final = 256
# Ciphers are cached by key and cell: several for each node of a site. The cache is emptied when
# full, so that a flood of invented names cannot grow it. A new cipher takes 3 µs.
_CIPHERS_KEPT: Final = 8192


class _HeaderOnly(msgspec.Struct):
    header: Header


_header_decoder = msgspec.msgpack.Decoder(_HeaderOnly)


@dataclass(frozen=True, slots=True)
class KeyName:
    """The name of a key. The key is derived from all parts, so none can be changed in a header.

    Attributes
    ----------
    kind, name
        The writer that has the key: a node's `site.node`, an engine's name, or an owner's name.
    site_key
        Id of the site key from which the key is derived.
    serial
        Id of this key: each new key for the same name gets another serial.
    until_s
        Expiry, in s since the epoch; 0: the key does not expire.
    """

    kind: Kind
    name: str
    site_key: str
    serial: str
    until_s: int = 0

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}/{self.site_key}/{self.serial}/{self.until_s}"


def parse_key_name(text: str) -> KeyName | None:
    """Return the key name in a header or a key file, None where the text is not one."""
    found = _NAME.fullmatch(text)
    if found is None:
        return None
    kind, name, site_key, serial, until_s = found.groups()
    return KeyName(_kind(kind), name, site_key, serial, int(until_s))


def _kind(text: str) -> Kind:
    return next(kind for kind in KINDS if kind == text)


def new_key_id(*, now_ms: int, chance: bytes) -> str:
    """Return an id of 16 hex digits: the time in ms, then two random bytes; ids sort by age.

    `chance` are the random bytes; further ones are ignored.
    """
    return f"{now_ms & (1 << 48) - 1:012x}{chance[:2].hex()}"


def made_ms(key_id: str) -> int:
    """Return the creation time of the key with this id, in ms since the epoch.

    Raises
    ------
    ValueError
        The id does not begin with 12 hex digits.
    """
    return int(key_id[:12], 16)


def derive_key(site_secret: bytes, name: KeyName) -> bytes:
    """Return the 32-byte key of a name; `site_secret` is the secret of `name.site_key`."""
    return blake2b(
        str(name).encode(), key=site_secret, digest_size=KEY_BYTES, person=_KEY_PERSON
    ).digest()


def _cipher(key: bytes, record_key: bytes) -> AESGCM:
    cell_key = blake2b(record_key, key=key, digest_size=KEY_BYTES, person=_CELL_PERSON).digest()
    return AESGCM(cell_key)


class FrameSigner:
    """Computes the MAC headers for the frames of one writer.

    Parameters
    ----------
    name, key
        The name, and the key that `derive_key` returned for it.
    nonce
        Returns 12 bytes that are never repeated under this key: `os.urandom(12)`.
    """

    def __init__(self, name: KeyName, key: bytes, *, nonce: Callable[[], bytes]) -> None:
        self.name = name
        self._key = key
        self._nonce = nonce
        self._header = str(name).encode()
        self._ciphers: dict[bytes, AESGCM] = {}

    def __call__(self, record_key: bytes, value: bytes) -> tuple[tuple[str, bytes], ...]:
        """Return the headers for `value` under `record_key`."""
        cipher = self._ciphers.get(record_key)
        if cipher is None:
            cipher = self._ciphers[record_key] = _cipher(self._key, record_key)
        nonce = self._nonce()
        tag = cipher.encrypt(nonce, b"", value)
        return (KEY_HEADER, self._header), (MAC_HEADER, nonce + tag)


@dataclass(frozen=True, slots=True)
class SiteKey:
    """The secret from which all frame keys of a site are derived; without `until_ms` no expiry."""

    secret: bytes
    until_ms: int | None = None


# Prefix of the id of a signing key in the list of revoked keys.
SIGNING: Final = "key"


@dataclass(frozen=True, slots=True)
class Revoked:
    """Revoked keys.

    Attributes
    ----------
    ids
        Serials of frame keys, and ids of site keys and signing keys.
    names
        `kind/name` and a time in ms: all keys made for that name until then are revoked. Or
        `key/ID` of a signing key, and the time at which it was revoked.
    """

    ids: frozenset[str] = frozenset()
    names: Mapping[str, int] = field(default_factory=dict)

    def joined(self, other: "Revoked") -> "Revoked":
        """Return the union of both lists."""
        names = dict(self.names)
        for name, time_ms in other.names.items():
            # A signing key is revoked once, so the first time counts. The keys of a name may be
            # revoked repeatedly, so the last time counts.
            first = min if name.startswith(f"{SIGNING}/") else max
            names[name] = first(names.get(name, time_ms), time_ms)
        return Revoked(self.ids | other.ids, names)

    def covers(self, name: KeyName) -> bool:
        """Return whether frames under this key are rejected."""
        if name.serial in self.ids or name.site_key in self.ids:
            return True
        if not self.names:
            return False
        return made_ms(name.serial) <= self.names.get(f"{name.kind}/{name.name}", -1)

    def ended_ms(self, key_id: str) -> int | None:
        """Return when a signing key was revoked, None where it was not.

        Records that were appended before that time stay valid. The result is 0 for an id without a
        time: none of its records is valid.
        """
        return self.names.get(f"{SIGNING}/{key_id}", 0 if key_id in self.ids else None)


class FrameKeys:
    """The keys and rules with which a reader verifies frames.

    Parameters
    ----------
    site_keys
        Site keys by id; there are several while keys are rotated.
    accepting_unsigned
        Whether frames without a MAC are accepted: early releases wrote no MAC.
    """

    def __init__(
        self,
        site_keys: Mapping[str, SiteKey],
        *,
        revoked: Revoked | None = None,
        accepting_unsigned: bool = False,
    ) -> None:
        self._site_keys = dict(site_keys)
        self._revoked = Revoked() if revoked is None else revoked
        self._accepting_unsigned = accepting_unsigned
        self._ciphers: dict[tuple[bytes, bytes], tuple[KeyName, AESGCM]] = {}

    def writer(
        self,
        value: bytes,
        *,
        record_key: bytes,
        headers: tuple[tuple[str, bytes], ...],
        time_ms: int,
    ) -> KeyName | None:
        """Return the verified writer of a frame, None for an accepted frame without a MAC.

        Parameters
        ----------
        time_ms
            Append time of the record. Expiry is compared with it, and not with a clock, so that
            each reading of the log gives the same result.

        Raises
        ------
        RecordRejected
            `bad_mac`: the MAC is missing or wrong, or its key is unknown, expired or revoked.
        """
        stated, code = b"", b""
        for header, content in headers:
            if header == KEY_HEADER:
                stated = content
            elif header == MAC_HEADER:
                code = content
        if not stated and not code:
            if self._accepting_unsigned:
                return None
            raise _bad(f"it has no MAC and claims to be of {claimed(value)}", _GIVE_A_KEY)
        name, cipher = self._cipher_of(stated, record_key)
        self._check_life(name, time_ms)
        try:
            cipher.decrypt(code[:_NONCE_BYTES], code[_NONCE_BYTES:], value)
        except (InvalidTag, ValueError) as error:
            raise _bad(
                f"its MAC does not match key {name.serial} of {name.kind} {name.name} under "
                f"record key {record_key[:64]!r}",
                "the frame was altered, moved or forged, or the site key was created again under "
                f"the same id: find out who wrote it, and give the {name.kind} its key again",
            ) from error
        return name

    def _cipher_of(self, stated: bytes, record_key: bytes) -> tuple[KeyName, AESGCM]:
        known = self._ciphers.get((stated, record_key))
        if known is not None:
            return known
        text = stated[:_KEY_HEADER_BYTES].decode("ascii", "replace")
        name = parse_key_name(text)
        if name is None:
            raise _bad(f"its key name {text!r} is not valid", _GIVE_A_KEY)
        site_key = self._site_keys.get(name.site_key)
        if site_key is None:
            raise _bad(
                f"key {name.serial} of {name.kind} {name.name} is derived from the site key "
                f"{name.site_key}, which this machine does not have",
                f"copy that site key to this machine, or create a new key for the {name.kind}: "
                f"flatline keys create {name.kind} {name.name}",
            )
        if len(self._ciphers) >= _CIPHERS_KEPT:
            self._ciphers.clear()
        found = name, _cipher(derive_key(site_key.secret, name), record_key)
        self._ciphers[stated, record_key] = found
        return found

    def _check_life(self, name: KeyName, time_ms: int) -> None:
        if self._revoked.covers(name):
            raise _bad(f"{_text(name)} is revoked", _renew(name))
        until_ms = self._site_keys[name.site_key].until_ms
        if until_ms is not None and time_ms >= until_ms:
            raise _bad(
                f"the site key {name.site_key}, from which {_text(name)} is derived, has expired",
                _renew(name),
            )
        if name.until_s and time_ms >= name.until_s * 1000:
            raise _bad(f"{_text(name)} has expired", _renew(name))


_GIVE_A_KEY: Final = (
    "create a key with `flatline keys create node NAME` on the machine with the site key and copy "
    "it to the node, or set keys.frames to accept while releases without frame keys still run"
)


def _text(name: KeyName) -> str:
    return f"key {name.serial} of {name.kind} {name.name}"


def _renew(name: KeyName) -> str:
    return f"flatline keys create {name.kind} {name.name}, and copy the file there"


def _bad(why: str, cure: str) -> RecordRejected:
    return RecordRejected("bad_mac", f"the frame is rejected: {why}; {cure}")


def claimed(value: bytes) -> str:
    """Return the role, node and cell that an unverified frame states, for messages only.

    The result is `nobody` if they cannot be decoded.
    """
    try:
        header = _header_decoder.decode(value).header
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        return "nobody"
    return f"{header.role[:16]} {header.node[:128]!r} in cell {header.cell[:128]!r}"


def open_frame(
    value: bytes,
    *,
    record_key: bytes,
    headers: tuple[tuple[str, bytes], ...],
    time_ms: int,
    keys: FrameKeys,
    widen: Widen | None = None,
) -> Frame:
    """Return the frame of a record after its writer is verified. All readers use this function.

    Parameters
    ----------
    record_key
        Key of the record: the cell's name, `tick` for ticks.
    time_ms
        Append time of the record.

    Raises
    ------
    RecordRejected
        `bad_mac` if the MAC is not valid (see `FrameKeys.writer`), or if the frame states another
        writer than its key name, or another cell than its record key; else as in `decode_frame`.
    """
    name = keys.writer(value, record_key=record_key, headers=headers, time_ms=time_ms)
    frame = decode_frame(value, widen)
    if name is not None:
        _check_writer(frame.header, name)
    # Checked even if no MAC is required: the record key must be the cell, so that all frames of a
    # cell are in one partition.
    if frame.header.role != "shell" and record_key != frame.header.cell.encode():
        raise _bad(
            f"it is of cell {frame.header.cell[:128]!r} under record key {record_key[:64]!r}",
            _FIND_OUT,
        )
    return frame


def _check_writer(header: Header, name: KeyName) -> None:
    """Reject a frame whose node or role does not match its key."""
    if header.role not in ROLES_OF[name.kind]:
        raise _bad(f"{_text(name)} may not write frames of role {header.role}", _FIND_OUT)
    if header.node != name.name:
        raise _bad(
            f"it is of node {header.node[:128]!r} but signed with {_text(name)}",
            "give each node the key that was created for its site.node",
        )


_FIND_OUT: Final = "find out who holds that key, and revoke it: flatline keys revoke"


def encode_secret(secret: bytes) -> str:
    """Return the text form of a key for its file: base64."""
    return base64.b64encode(secret).decode()


def decode_secret(text: str) -> bytes | None:
    """Return the key in the text of a file, None where it is not the base64 form of 32 bytes."""
    try:
        secret = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return secret if len(secret) == KEY_BYTES else None
