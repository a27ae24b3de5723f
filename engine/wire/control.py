"""Control records: commands of people and circuit breakers to all planners and agents.

The topic is compacted; the last record of a key is in force. An agent reads the topic to its
current end before each call, so every pause in the log is obeyed.
"""

from typing import Final, Literal

import msgspec

from flatline.engine.wire import limits
from flatline.engine.wire.envelope import decode_json

# A quarantine closes one VM to automatic actions until a person ends it; an approval is a person's
# consent for one incident.
ControlKind = Literal["pause", "maintenance", "silence", "mode", "policy", "quarantine", "approval"]
ControlScope = Literal["site", "zone", "cell", "node", "pool", "network", "tenant", "vm"]
Mode = Literal["observe", "approve", "auto"]

# `source` where a record says something that this release cannot read.
UNREADABLE: Final = "unreadable"
# `source` where a record was rejected and may have displaced a restriction.
REFUSED: Final = "refused"
# `source` of the record that replaces control records beyond the number that is kept.
TOO_MANY: Final = "one too many"
RESTRICTIONS: Final = frozenset({UNREADABLE, REFUSED, TOO_MANY})
# Prefix of the key of a hold, so that it is kept beside the record under the same key.
_RESTRICTION_PREFIX: Final = b"\0"
# A key may be as long as a record. This many bytes of it are shown; they identify it.
_SHOWN_BYTES: Final = 100


class Control(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One control command for one scope.

    Attributes
    ----------
    subject
        The member of the scope: a cell's name, a VM's UUID text; empty for the whole site. For an
        approval the incident's id.
    active
        False ends the command.
    until_ms
        Wall time at which it expires; None holds until it is ended.
    mode, action
        Only for kind `mode`: the mode, and its action class (None: all).
    policy
        Only for kind `policy`: the hash of the policy in force.
    source
        The issuer where it is not an operator; commands of two sources on one scope are kept apart.
    """

    kind: ControlKind
    scope: ControlScope
    subject: limits.Text
    active: bool
    by: limits.Text
    reason: limits.Sentence
    time_ms: limits.TimeMs
    v: Literal[1] = 1
    until_ms: limits.TimeMs | None = None
    mode: Mode | None = None
    action: limits.Word | None = None
    policy: limits.Text | None = None
    source: limits.Text = ""

    def key(self) -> bytes:
        """Return the record key: a later record with the same key replaces this one."""
        parts = (self.kind, self.scope, self.subject, self.action or "")
        return "/".join((*parts, self.source) if self.source else parts).encode()

    def holds(self, *, now_ms: int) -> bool:
        """Return whether the command is in force at `now_ms`."""
        return self.active and (self.until_ms is None or now_ms < self.until_ms)


def unreadable(key: bytes, *, time_ms: int, why: str) -> Control:
    """Return the control command that replaces an unreadable record: a pause of the whole site.

    The record may be a pause of a newer release, or one that was cut short.
    """
    name = key[:_SHOWN_BYTES].decode(errors="replace")
    return Control(
        kind="pause",
        scope="site",
        subject="",
        active=True,
        by="an unreadable control record that counts as a pause",
        reason=(
            f"key {name!r}, {limits.clipped(why)}, until an operator writes that key again or ends "
            "the pause of the site"
        ),
        time_ms=time_ms,
        source=UNREADABLE,
    )


def restriction_key(key: bytes) -> bytes:
    """Return the key of a hold for records with key `key` among the commands in force."""
    return _RESTRICTION_PREFIX + key


def held_key(key: bytes) -> bytes:
    """Return the record key that a hold is for, given the key of the hold."""
    return key.removeprefix(_RESTRICTION_PREFIX)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Control)


def encode_control(control: Control) -> bytes:
    """Return the bytes of one control record."""
    return _encoder.encode(control)


def decode_control(value: bytes) -> Control:
    """Return the control record that `value` encodes, or raise `RecordRejected`."""
    return decode_json(value, _decoder)
