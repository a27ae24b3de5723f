"""Control records: commands of people and circuit breakers to all planners and agents.

The topic is compacted; the last record of a key is in force. An agent reads the topic to its
current end before each call, so every pause in the log is obeyed.
"""

from typing import Final, Literal

import msgspec

from flatline.engine.wire import limits
from flatline.engine.wire.envelope import decode_json

# A quarantine forbids automatic actions on one VM until a person ends it. An approval is a person's
# consent to the actions for one incident.
ControlKind = Literal["pause", "maintenance", "silence", "mode", "policy", "quarantine", "approval"]
ControlScope = Literal["site", "zone", "cell", "node", "pool", "network", "tenant", "vm"]
Mode = Literal["observe", "approve", "auto"]

# `source` of the pause that replaces a record which this release cannot decode.
UNREADABLE: Final = "unreadable"
# `source` of the restriction that replaces a rejected record: the rejected record may have replaced
# such a restriction in the compacted topic.
REFUSED: Final = "refused"
# `source` of the pause that replaces all further unsigned commands once their number reaches its
# limit.
TOO_MANY: Final = "one too many"
RESTRICTIONS: Final = frozenset({UNREADABLE, REFUSED, TOO_MANY})
# Prefix of the key under which readers keep a replacing restriction, so that it does not overwrite
# the command with the record's own key.
_RESTRICTION_PREFIX: Final = b"\0"
# A key may be as long as a record. This many bytes of it are shown; they identify it.
_SHOWN_BYTES: Final = 100


class Control(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One control command for one scope.

    Attributes
    ----------
    subject
        The object that the command applies to: for example the name of a cell or the UUID text of
        a VM; empty for the whole site. For an approval the id of the incident.
    active
        False ends the command.
    until_ms
        Wall time at which the command expires; None: it is in force until another record ends it.
    mode, action
        Only for kind `mode`: the mode, and its action class (None: all).
    policy
        Only for kind `policy`: the hash of the policy in force.
    source
        The issuer if it is not an operator. It is part of the key, so commands of two sources for
        one scope do not replace each other.
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

    The unreadable record may be a pause that a newer release wrote, or that was truncated.
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
    """Return the key under which readers keep the restriction that replaces a record of `key`."""
    return _RESTRICTION_PREFIX + key


def held_key(key: bytes) -> bytes:
    """Return the record key for a key that `restriction_key` returned."""
    return key.removeprefix(_RESTRICTION_PREFIX)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Control)


def encode_control(control: Control) -> bytes:
    """Return the bytes of one control record."""
    return _encoder.encode(control)


def decode_control(value: bytes) -> Control:
    """Return the control record that `value` encodes, or raise `RecordRejected`."""
    return decode_json(value, _decoder)
