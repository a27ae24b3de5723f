"""Control records: what people and breakers tell every planner and agent.

One compacted record per key; the last word on a key holds. An agent reads the topic to its
current end before each call, so a pause that stands in the log is a pause that holds.
"""

from typing import Final, Literal

import msgspec

from engine.wire import limits
from engine.wire.envelope import decode_json

# A quarantine closes one VM to machines until a person takes it back; an approval is a
# person's word for one incident.
ControlKind = Literal["pause", "maintenance", "silence", "mode", "policy", "quarantine", "approval"]
ControlScope = Literal["site", "zone", "cell", "node", "pool", "network", "tenant", "vm"]
Mode = Literal["observe", "approve", "auto"]

# Who speaks where a record says something that this release cannot read.
UNREADABLE: Final = "unreadable"
# Who speaks where a record was refused and may have displaced a restriction.
REFUSED: Final = "refused"
# Who speaks in the place of words that are too many to be kept.
TOO_MANY: Final = "one too many"
HOLDS: Final = frozenset({UNREADABLE, REFUSED, TOO_MANY})
# Before the key of a hold, so that it stands beside the word under the same key.
_HOLD_PREFIX: Final = b"\0"
# Of a key that may be as long as a record can be, so much tells which one it is.
_SHOWN_BYTES: Final = 100


class Control(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One word on one scope.

    Attributes
    ----------
    subject
        What of the scope: a cell's name, a VM's UUID text; empty for the whole site. Of an
        approval the incident's id.
    active
        False takes the word back.
    until_ms
        Wall time at which it ends by itself; None holds until taken back.
    mode, action
        Only for kind `mode`: which mode, for which action class (None: all).
    policy
        Only for kind `policy`: the hash of the policy in force.
    source
        Who speaks where it is not an operator: words of two sources on one scope both stand.
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
        """Return the record key: a later word with the same key replaces this one."""
        parts = (self.kind, self.scope, self.subject, self.action or "")
        return "/".join((*parts, self.source) if self.source else parts).encode()

    def holds(self, *, now_ms: int) -> bool:
        """Return whether the word is in force at `now_ms`."""
        return self.active and (self.until_ms is None or now_ms < self.until_ms)


def unreadable(key: bytes, *, time_ms: int, why: str) -> Control:
    """Return what a record holds as that cannot be read: a pause of the whole site.

    It may be a pause in the words of a newer release, or one that was cut short.
    """
    name = key[:_SHOWN_BYTES].decode(errors="replace")
    return Control(
        kind="pause",
        scope="site",
        subject="",
        active=True,
        by="a control record that is unreadable and holds as a pause",
        reason=f"key {name!r}, {limits.clipped(why)}, until an operator writes that key again or"
        " ends the site's pause",
        time_ms=time_ms,
        source=UNREADABLE,
    )


def hold_key(key: bytes) -> bytes:
    """Return under which key a hold for records with key `key` stands among the words in force."""
    return _HOLD_PREFIX + key


def held_key(key: bytes) -> bytes:
    """Return the record key that a hold is for, from the key under which it stands."""
    return key.removeprefix(_HOLD_PREFIX)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Control)


def encode_control(control: Control) -> bytes:
    """Return the bytes of one control record."""
    return _encoder.encode(control)


def decode_control(value: bytes) -> Control:
    """Return the control record that `value` stands for, or raise `RecordRejected`."""
    return decode_json(value, _decoder)
