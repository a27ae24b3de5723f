"""Words of control as planner, agent and command line read them: one function, so all agree.

Whoever may write the topic may make the rules stricter: a pause, a maintenance or a quarantine
needs no signature. What makes them looser needs an operator's: taking such a word back or ending
it earlier, an approval, a mode, a policy, and writing under another word's key.

The topic is compacted, so a record that is refused has still displaced the word before it. Who
read that word goes on holding it, and a planner writes it back. Who only finds the refused record
holds a restriction in its place, until an operator's word stands under that key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, get_args

import msgspec

from engine.action.keys import Headers, TrustedKeys, check_life
from engine.action.layered import Layered, layered
from engine.action.question import CLOCK_SLACK_MS
from engine.errors import RecordRejected
from engine.wire import limits
from engine.wire.control import (
    HOLDS,
    REFUSED,
    TOO_MANY,
    Control,
    ControlKind,
    ControlScope,
    decode_control,
    hold_key,
    unreadable,
)
from engine.wire.order import KEY_HEADER, check_signature

# What anybody who may write the topic may say, as long as it is in force and not taken back.
_RESTRICTIONS: Final[frozenset[ControlKind]] = frozenset({"pause", "maintenance", "quarantine"})
# A word that makes rules looser is appended as soon as it is signed. One that is older is a copy:
# today's pause must not end by the bytes that ended last week's. Kerberos allows clocks as much.
_FRESH_MS: Final = 300_000
# One that is dated ahead of the log could be copied onto what is said until that date comes.
_AHEAD_MS: Final = CLOCK_SLACK_MS
_KEY_PARTS: Final = 4
# A site has some hundred words; an owner who patches thousands of VMs says one for each. Words that
# are over are dropped when there are so many, in which case a tenth must go: else each further
# record would cost a look at all of them.
_MOST_WORDS: Final = 10_000
_MOST_IN_FORCE: Final = 9_000
# The longest key of a word: three texts of 4 bytes a character.
_MOST_KEY_BYTES: Final = 16_384
_TOO_MANY_KEY: Final = b"too-many-words"


@dataclass(frozen=True, slots=True)
class Heard:
    """What one record of control comes to.

    Attributes
    ----------
    word
        To be folded in with `with_word`; None changes nothing. Its time is the append time.
    by_operator
        Whether an operator signed it: only then it ends what was refused or unreadable.
    rejected
        Why the record itself was not taken, None where it was.
    displaces
        Whether it stands in the log in the place of a word that goes on holding.
    """

    word: Control | None
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
    """Return what a record of control says to a reader that holds `controls`.

    Parameters
    ----------
    time_ms
        Append time of the record.
    controls
        The words in force by key, as `with_word` gives them.
    """
    try:
        control = decode_control(value)
    except RecordRejected as error:
        hold = unreadable(key, time_ms=time_ms, why=error.detail)
        # An empty value deletes a key when the topic is compacted; nobody of ours writes one.
        return Heard(hold, rejected=error, displaces=not value and _stands(controls.get(key)))
    # Nobody speaks as a hold.
    source = "" if control.source in HOLDS else control.source
    control = msgspec.structs.replace(control, source=source)
    held, own = controls.get(control.key()), key == control.key()
    operator, fault = _operator(value, headers, trusted=trusted, time_ms=time_ms)
    stale = _stale(control, (held, controls.get(hold_key(key))), time_ms)
    if loosens(control, held) or not own:
        if operator is None and fault is None:
            fault = RecordRejected("bad_signature", f"{_told(control)} needs an operator's key")
        # A planner that writes a word back says again what holds anyway.
        if fault or (stale and not (own and held and _says_the_same(control, held))):
            return _refused(key, fault or stale, time_ms=time_ms, controls=controls)
    # What later words are held against: the log's clock, since an author's may be behind or ahead.
    control = msgspec.structs.replace(control, time_ms=time_ms)
    displaces = not own and _stands(controls.get(key))
    if operator is None:
        author, reason = _author(control, headers, value, trusted), limits.clipped(control.reason)
        word = msgspec.structs.replace(control, by=author, reason=reason)
        return Heard(word, displaces=displaces)
    name = trusted.names.get(operator, control.by)
    word = msgspec.structs.replace(control, by=name)
    return Heard(word, by_operator=stale is None, displaces=displaces)


def loosens(control: Control, held: Control | None) -> bool:
    """Return whether a word, said in the place of `held`, takes anything back."""
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
    """Return the id of the operator's key that signed a word, or why it does not count."""
    if not any(header == KEY_HEADER for header, _ in headers):
        return None, None
    try:
        name = check_signature(value, headers, trusted=trusted.operators)
        check_life(name, trusted=trusted, time_ms=time_ms)
    except RecordRejected as error:
        return None, error
    return name, None


def _author(control: Control, headers: Headers, value: bytes, trusted: TrustedKeys) -> str:
    """Return who a restriction is said to be by; one that no planner signed is marked."""
    try:
        check_signature(value, headers, trusted=trusted.planners)
    except RecordRejected:
        return f"{control.by} (not signed)"
    return control.by


def _stale(
    control: Control, held: tuple[Control | None, ...], time_ms: int
) -> RecordRejected | None:
    """Return why a word's signature may be a copy of an earlier record, None where it is new.

    Parameters
    ----------
    control
        As it was signed, with its author's time.
    held
        What it would end, with the log's append times.
    """
    old_ms, why = time_ms - control.time_ms, ""
    if old_ms > _FRESH_MS:
        why = (
            f"was signed {old_ms / 1000:.0f} s before the log took it ({_FRESH_MS // 1000} s at"
            " most), so it may be a copy of an old record"
        )
    elif old_ms < -_AHEAD_MS:
        why = (
            f"is dated {-old_ms / 1000:.0f} s after the log took it ({_AHEAD_MS // 1000} s at"
            " most), so copies of it could end what is said until then: set its author's clock"
        )
    elif any(one and _ends(one) and control.time_ms < one.time_ms for one in held):
        why = "is older than the word that it would end"
    return RecordRejected("bad_signature", f"{_told(control)} {why}") if why else None


def _ends(held: Control) -> bool:
    """Return whether a word in the place of `held` takes anything back."""
    return held.active or held.kind not in _RESTRICTIONS


def _says_the_same(control: Control, held: Control) -> bool:
    return msgspec.structs.replace(control, time_ms=held.time_ms, by=held.by) == held


def _told(control: Control) -> str:
    end = "" if control.active else "the end of "
    return f"{end}{control.kind} of {control.scope} {control.subject[:100]!r}"


def _refused(
    key: bytes, error: RecordRejected | None, *, time_ms: int, controls: Mapping[bytes, Control]
) -> Heard:
    """Return what a refused record comes to: what stood before it goes on, else a hold."""
    assert error is not None
    if _stands(controls.get(key)):
        return Heard(None, rejected=error, displaces=True)
    return Heard(_hold(key, error, time_ms=time_ms), rejected=error)


def _stands(held: Control | None) -> bool:
    return held is not None and held.active


def _hold(key: bytes, error: RecordRejected, *, time_ms: int) -> Control | None:
    """Return the restriction that `key` may have held before it was displaced; None: none."""
    parts = key.decode("utf-8", "replace").split("/")
    kinds, scopes = get_args(ControlKind), get_args(ControlScope)
    if not (len(parts) == _KEY_PARTS and parts[0] in kinds and parts[1] in scopes):
        if len(parts) == _KEY_PARTS + 1 and parts[0] in _RESTRICTIONS and parts[-1]:
            parts = parts[:_KEY_PARTS]  # a word with a source of its own
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
            "by": "a control record that was refused and holds as a restriction",
            "reason": f"{limits.clipped(error.detail)}; an operator's word on it ends this",
            "time_ms": time_ms,
            "source": REFUSED,
        },
        Control,
    )


def fold_word(
    controls: Mapping[bytes, Control], key: bytes, heard: Heard
) -> Mapping[bytes, Control]:
    """Return the words in force by key after a record was heard."""
    if heard.word is None:
        return controls
    return with_word(controls, key, heard.word, by_operator=heard.by_operator)


def with_word(
    controls: Mapping[bytes, Control], key: bytes, word: Control, *, by_operator: bool = True
) -> Mapping[bytes, Control]:
    """Return the words in force by key after one more, read from a record with key `key`.

    What is held for that key, because a record under it was unreadable or refused, ends with an
    operator's word alone. Words that are not an operator's are kept up to a bound: beyond it one
    pause of the whole site holds in their place.
    """
    kept = layered(controls)
    if word.source in HOLDS:
        return _bounded(kept, hold_key(key), word)
    if by_operator:
        return kept.without(hold_key(key)).with_entry(word.key(), word)
    return _bounded(kept, word.key(), word)


def _bounded(kept: Layered[bytes, Control], place: bytes, word: Control) -> Layered[bytes, Control]:
    """Return the words with one more that is not an operator's, or with a pause of the site."""
    instead = hold_key(_TOO_MANY_KEY)
    if place not in kept and len(kept) >= _MOST_WORDS and instead not in kept:
        standing = {key: one for key, one in kept.items() if _matters(one, word.time_ms)}
        if len(standing) <= _MOST_IN_FORCE:
            kept = layered(standing)
    if place in kept or (len(kept) < _MOST_WORDS and len(place) <= _MOST_KEY_BYTES):
        return kept.with_entry(place, word)
    return kept.with_entry(instead, _too_many(word))


def _matters(word: Control, time_ms: int) -> bool:
    """Return whether a word is in force, or keeps copies of an earlier one from being so."""
    if word.kind in _RESTRICTIONS:
        return word.holds(now_ms=time_ms)
    return word.until_ms is None or time_ms < word.until_ms


def _too_many(word: Control) -> Control:
    """Return the pause of the site in place of a word that is not kept.

    It counts from that word's time, so that an end which was signed before does not end it.
    """
    return Control(
        kind="pause",
        scope="site",
        subject="",
        active=True,
        by="a bound on words of control that are not an operator's",
        reason=f"{_MOST_WORDS} words of control are kept, and {_told(word)} is not one of them: end"
        " what is over (flatline pause show), pause again what must stay paused, then end the"
        " site's pause",
        time_ms=word.time_ms,
        source=TOO_MANY,
    )
