"""Control commands: one function decodes them for planner, agent and command line.

Any writer of the topic may add a restriction: a pause, a maintenance or a quarantine needs no
signature. An operator must sign a command of any other kind, a command that ends or shortens a
restriction, and a record whose key is not the key of its command.

The topic is compacted: it keeps only the newest record of a key, even if readers reject it. So a
rejected record displaces the command that had its key. A reader that has read the displaced command
keeps it in force, and a planner appends it again. A reader that finds only the rejected record
assumes a restriction in place of the lost command, until an operator writes under that key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, get_args

import msgspec

from flatline.engine.action.keys import Headers, TrustedKeys, check_life
from flatline.engine.action.layered import Layered, layered
from flatline.engine.action.request_context import CLOCK_SLACK_MS
from flatline.engine.errors import RecordRejected
from flatline.engine.wire import limits
from flatline.engine.wire.control import (
    REFUSED,
    RESTRICTIONS,
    TOO_MANY,
    Control,
    ControlKind,
    ControlScope,
    decode_control,
    restriction_key,
    unreadable,
)
from flatline.engine.wire.order import KEY_HEADER, check_signature

# Any writer of the topic may set or extend these; only an operator may end or shorten them.
_RESTRICTIONS: Final[frozenset[ControlKind]] = frozenset({"pause", "maintenance", "quarantine"})
# How long before its append a command that relaxes a restriction may have been signed. An older
# record may be a copy: the bytes that ended last week's pause must not end today's. Kerberos allows
# the same clock difference, 5 min.
_FRESH_MS: Final = 300_000
# How far a command may be dated ahead of the log. Until its date, a copy of it could end commands
# that were appended after it.
_AHEAD_MS: Final = CLOCK_SLACK_MS
_KEY_PARTS: Final = 4
# The most commands that are kept. A site has some hundred, but an owner who patches thousands of
# VMs writes one for each VM. At the limit, expired commands are dropped if that removes at least a
# tenth; if it removed fewer, almost every further record would require a scan of all commands.
_MOST: Final = 10_000
_MOST_IN_FORCE: Final = 9_000
# The longest key that is accepted: a key has up to three texts of at most 1,024 characters, with up
# to 4 bytes a character.
_MOST_KEY_BYTES: Final = 16_384
_TOO_MANY_KEY: Final = b"too-many-words"


@dataclass(frozen=True, slots=True)
class Heard:
    """The effect of one control record.

    Attributes
    ----------
    command
        The command to apply with `with_command`, dated with its append time; None changes nothing.
    by_operator
        Whether an operator signed the command, and the record is no copy of an older one. Only such
        a command ends the restriction that stands for a rejected or unreadable record.
    rejected
        Why the record was rejected, None if it was accepted.
    displaces
        Whether a command that remains in force had the same record key: the compacted log keeps
        only this record, so a planner has to append that command again.
    """

    command: Control | None
    by_operator: bool = False
    rejected: RecordRejected | None = None
    displaces: bool = False


def hear(
    key: bytes,
    value: bytes,
    headers: Headers,
    *,
    time_ms: int,
    trusted: TrustedKeys,
    controls: Mapping[bytes, Control],
) -> Heard:
    """Return the effect of a control record for a reader that holds `controls`.

    A record that is rejected or unreadable raises no error: see `Heard.rejected`.

    Parameters
    ----------
    key, value, headers
        The parts of the record.
    time_ms
        Append time of the record.
    controls
        The commands in force by key, as returned by `with_command`.
    """
    try:
        control = decode_control(value)
    except RecordRejected as error:
        hold = unreadable(key, time_ms=time_ms, why=error.detail)
        # An empty value deletes a key when the topic is compacted; Flatline never writes one.
        return Heard(hold, rejected=error, displaces=not value and _stands(controls.get(key)))
    # These sources mark restrictions that readers assume for lost commands; no record may use them.
    source = "" if control.source in RESTRICTIONS else control.source
    control = msgspec.structs.replace(control, source=source)
    held, own = controls.get(control.key()), key == control.key()
    operator, fault = _operator(value, headers, trusted=trusted, time_ms=time_ms)
    stale = _stale(control, (held, controls.get(restriction_key(key))), time_ms)
    if loosens(control, held) or not own:
        if operator is None and fault is None:
            fault = RecordRejected("bad_signature", f"{_text(control)} requires an operator key")
        # A planner that appends a displaced command again uses the old bytes. They are accepted:
        # that command is in force anyway.
        if fault or (stale and not (own and held and _says_the_same(control, held))):
            return _refused(key, fault or stale, time_ms=time_ms, controls=controls)
    # The command gets its append time, because the clock of its author may be wrong: later commands
    # are compared with this time.
    control = msgspec.structs.replace(control, time_ms=time_ms)
    displaces = not own and _stands(controls.get(key))
    if operator is None:
        author, reason = _author(control, headers, value, trusted), limits.clipped(control.reason)
        command = msgspec.structs.replace(control, by=author, reason=reason)
        return Heard(command, displaces=displaces)
    name = trusted.names.get(operator, control.by)
    command = msgspec.structs.replace(control, by=name)
    return Heard(command, by_operator=stale is None, displaces=displaces)


def loosens(control: Control, held: Control | None) -> bool:
    """Return whether `control` may relax a restriction if it replaces `held`.

    `held` is the command in force under the same key, None for none.
    """
    if control.kind not in _RESTRICTIONS or not control.active:
        return True
    if held is None or not held.active:
        return False
    if control.until_ms is None:
        return False
    return held.until_ms is None or control.until_ms < held.until_ms


def _operator(
    value: bytes, headers: Headers, *, trusted: TrustedKeys, time_ms: int
) -> tuple[str | None, RecordRejected | None]:
    """Return the id of the operator's key that signed a command, or why the key does not count.

    Both are None if the command names no key.
    """
    if not any(header == KEY_HEADER for header, _ in headers):
        return None, None
    try:
        name = check_signature(value, headers, trusted=trusted.operators)
        check_life(name, trusted=trusted, time_ms=time_ms)
    except RecordRejected as error:
        return None, error
    return name, None


def _author(control: Control, headers: Headers, value: bytes, trusted: TrustedKeys) -> str:
    """Return the stated author of a restriction, marked if no planner signed it."""
    try:
        check_signature(value, headers, trusted=trusted.planners)
    except RecordRejected:
        return f"{control.by} (not signed)"
    return control.by


def _stale(
    control: Control, held: tuple[Control | None, ...], time_ms: int
) -> RecordRejected | None:
    """Return why the signature may be a copy of an earlier record, None if it is new.

    Parameters
    ----------
    control
        The command as it was signed, with its author's time.
    held
        The commands that it would end, with the log's append times.
    """
    old_ms, why = time_ms - control.time_ms, ""
    if old_ms > _FRESH_MS:
        why = (
            f"was signed {old_ms / 1000:.0f} s before it reached the log (at most "
            f"{_FRESH_MS // 1000} s are allowed), so it may be a copy of an old record"
        )
    elif old_ms < -_AHEAD_MS:
        why = (
            f"is dated {-old_ms / 1000:.0f} s after it reached the log (at most "
            f"{_AHEAD_MS // 1000} s are allowed), so copies of it could end later commands: set "
            "the clock of its author"
        )
    elif any(one and _ends(one) and control.time_ms < one.time_ms for one in held):
        why = "is older than the command that it would end"
    return RecordRejected("bad_signature", f"{_text(control)} {why}") if why else None


def _ends(held: Control) -> bool:
    """Return whether a command that replaces `held` ends anything: a past restriction has ended."""
    return held.active or held.kind not in _RESTRICTIONS


def _says_the_same(control: Control, held: Control) -> bool:
    return msgspec.structs.replace(control, time_ms=held.time_ms, by=held.by) == held


def _text(control: Control) -> str:
    end = "" if control.active else "the end of "
    return f"{end}{control.kind} of {control.scope} {control.subject[:100]!r}"


def _refused(
    key: bytes, error: RecordRejected | None, *, time_ms: int, controls: Mapping[bytes, Control]
) -> Heard:
    """Return the effect of a rejected record: a displaced command stays, else a restriction."""
    assert error is not None
    if _stands(controls.get(key)):
        return Heard(None, rejected=error, displaces=True)
    return Heard(_restriction(key, error, time_ms=time_ms), rejected=error)


def _stands(held: Control | None) -> bool:
    return held is not None and held.active


def _restriction(key: bytes, error: RecordRejected, *, time_ms: int) -> Control | None:
    """Return the restriction that a lost command under `key` may have set, None if it set none."""
    parts = key.decode("utf-8", "replace").split("/")
    kinds, scopes = get_args(ControlKind), get_args(ControlScope)
    if not (len(parts) == _KEY_PARTS and parts[0] in kinds and parts[1] in scopes):
        if len(parts) == _KEY_PARTS + 1 and parts[0] in _RESTRICTIONS and parts[-1]:
            parts = parts[:_KEY_PARTS]  # a command with its own source
        else:
            return unreadable(key, time_ms=time_ms, why=error.detail)
    if parts[0] in {"approval", "silence"}:
        return None  # neither restricts anything
    if parts[0] == "policy":
        return unreadable(key, time_ms=time_ms, why=error.detail)
    return msgspec.convert(
        {
            "kind": parts[0],
            "scope": parts[1],
            "subject": parts[2],
            "action": parts[3] or None,
            "mode": "observe" if parts[0] == "mode" else None,
            "active": True,
            "by": "a rejected control record that stays in force as a restriction",
            "reason": (
                f"{limits.clipped(error.detail)}; an operator's command with this key ends the "
                "restriction"
            ),
            "time_ms": time_ms,
            "source": REFUSED,
        },
        Control,
    )


def fold_command(
    controls: Mapping[bytes, Control], key: bytes, heard: Heard
) -> Mapping[bytes, Control]:
    """Return the commands in force by key after one more record.

    `key` is the key of the record, and `heard` what `hear` returned for it.
    """
    if heard.command is None:
        return controls
    return with_command(controls, key, heard.command, by_operator=heard.by_operator)


def with_command(
    controls: Mapping[bytes, Control], key: bytes, command: Control, *, by_operator: bool = True
) -> Mapping[bytes, Control]:
    """Return the commands in force by key with one more, read from a record with key `key`.

    A restriction that stands for an unreadable or rejected record under that key ends only with an
    operator's command. Commands that no operator signed are limited in number: beyond the limit,
    one pause of the whole site takes the place of all further ones.
    """
    kept = layered(controls)
    if command.source in RESTRICTIONS:
        return _bounded(kept, restriction_key(key), command)
    if by_operator:
        return kept.without(restriction_key(key)).with_entry(command.key(), command)
    return _bounded(kept, command.key(), command)


def _bounded(
    kept: Layered[bytes, Control], place: bytes, command: Control
) -> Layered[bytes, Control]:
    """Add a command that no operator signed; at the limit, add a pause of the site instead."""
    instead = restriction_key(_TOO_MANY_KEY)
    if place not in kept and len(kept) >= _MOST and instead not in kept:
        standing = {key: one for key, one in kept.items() if _matters(one, command.time_ms)}
        if len(standing) <= _MOST_IN_FORCE:
            kept = layered(standing)
    if place in kept or (len(kept) < _MOST and len(place) <= _MOST_KEY_BYTES):
        return kept.with_entry(place, command)
    return kept.with_entry(instead, _too_many(command))


def _matters(command: Control, time_ms: int) -> bool:
    """Return whether a command is in force, or prevents the replay of an earlier one."""
    if command.kind in _RESTRICTIONS:
        return command.holds(now_ms=time_ms)
    return command.until_ms is None or time_ms < command.until_ms


def _too_many(command: Control) -> Control:
    """Return the pause of the site that replaces a command which is not kept.

    The pause has the time of that command, so that a withdrawal signed earlier does not end it.
    """
    return Control(
        kind="pause",
        scope="site",
        subject="",
        active=True,
        by="the limit of control commands without an operator key",
        reason=(
            f"{_MOST} control commands are kept, and {_text(command)} is not one of them: end "
            "those that are no longer needed (flatline pause show), repeat the pauses that must "
            "stay, then end the pause of the site"
        ),
        time_ms=command.time_ms,
        source=TOO_MANY,
    )
