"""What a node's watch knows of a guest: how its vCPUs rest, and which signs of life it gave.

Pure: the time is that of the samples and answers, monotonic on the node.
"""

from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple

from engine.looks import Look, Rest, Sign, Signs, Watched

# What an idle vCPU of a living kernel runs at most, as a share of a core (measured below 7 % in
# guests whose emulation makes timers dear).
_IDLE_SHARE: Final = 0.1
# No answer is a sign only of a guest that answered within this time: cards are also cut off, and
# a guest's owner may forbid what was allowed an hour ago.
ANSWERED_WITHIN_NS: Final = 600 * 10**9
# One answer in five minutes is told, so that a calm node is quiet on the log.
_TOLD_AGAIN_NS: Final = 300 * 10**9
# An answer may be lost once, by a full queue of the bridge or of the guest.
_MISSES: Final = 2

Channel = Literal["probe", "agent"]
Told = Literal["answered", "silent"]


class _Still(NamedTuple):
    """One vCPU: what it wanted last, since when it stands there, and how it rested before."""

    wanted_ns: int
    since_ns: int
    longest_s: float = 0.0
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Answers:
    """What became of one way to ask a guest; None is never."""

    answered_ns: int | None = None
    misses: int = 0
    told: Told | None = None
    told_ns: int = 0


@dataclass(frozen=True, slots=True)
class Guest:
    """One boot of a VM under watch."""

    instance: int
    boots_seen: int
    seen_ns: int
    stills: tuple[_Still, ...] = ()
    probe: Answers = field(default_factory=Answers)
    agent: Answers = field(default_factory=Answers)
    # The line that stood there when the console was first read in this boot, None before that.
    console_old: str | None = None
    console_panic: bool = False


def seen(before: Guest | None, now: Watched) -> Guest:
    """Return the guest after one more sample; a boot or another run of the VM begins anew."""
    same = before is not None and (before.instance, before.boots_seen) == (
        now.instance,
        now.boots_seen,
    )
    if before is None or not same or len(before.stills) != len(now.vcpu_wanted_ns):
        fresh = Guest(now.instance, now.boots_seen, now.mono_ns)
        kept = before if before is not None and same else fresh
        stills = tuple(_Still(wanted, now.mono_ns) for wanted in now.vcpu_wanted_ns)
        return replace(kept, seen_ns=now.mono_ns, stills=stills)
    span_ns = now.mono_ns - before.seen_ns
    stills = tuple(
        _after(still, wanted, now.mono_ns, span_ns)
        for still, wanted in zip(before.stills, now.vcpu_wanted_ns, strict=True)
    )
    return replace(before, seen_ns=now.mono_ns, stills=stills)


def _after(still: _Still, wanted_ns: int, now_ns: int, span_ns: int) -> _Still:
    if wanted_ns == still.wanted_ns:
        return still
    gained_ns = wanted_ns - still.wanted_ns
    # It rested up to now at the most: where in the last interval it ran is not known.
    longest_s = max(still.longest_s, (now_ns - still.since_ns) / 1e9)
    idle = 0 < gained_ns <= _IDLE_SHARE * span_ns
    idle_s = still.idle_s + (span_ns / 1e9 if idle else 0.0)
    return _Still(wanted_ns, now_ns, longest_s, idle_s)


def heard(guest: Guest, channel: Channel, sign: Sign, *, now_ns: int) -> tuple[Guest, Told | None]:
    """Return the guest after one more answer or its lack, and what is to be told of it."""
    answers = guest.probe if channel == "probe" else guest.agent
    told: Told | None = None
    if sign == "answered":
        due = answers.told != "answered" or now_ns - answers.told_ns >= _TOLD_AGAIN_NS
        told = "answered" if due else None
        answers = replace(answers, answered_ns=now_ns, misses=0)
    elif sign == "silent" and _answered_lately(answers, now_ns):
        answers = replace(answers, misses=answers.misses + 1)
        if answers.misses >= _MISSES and answers.told != "silent":
            told = "silent"
    if told is not None:
        answers = replace(answers, told=told, told_ns=now_ns)
    if channel == "probe":
        return replace(guest, probe=answers), told
    return replace(guest, agent=answers), told


def _answered_lately(answers: Answers, now_ns: int) -> bool:
    last_ns = answers.answered_ns
    return last_ns is not None and now_ns - last_ns <= ANSWERED_WITHIN_NS


def signs_of(
    guest: Guest | None, look: Look, *, probe: Sign = "unknown", agent: Sign = "unknown"
) -> Signs:
    """Return what the watch knows of a guest as of a look.

    Parameters
    ----------
    guest
        None where the node has not watched it.
    probe, agent
        What came of asking it now. Silence counts only of a guest that answered lately.
    """
    if guest is None or (guest.instance, guest.boots_seen) != (look.instance, look.boots_seen):
        return Signs(probe=_only_life(probe), agent=_only_life(agent))
    return Signs(
        probe=_sign(guest.probe, probe, look.mono_ns),
        agent=_sign(guest.agent, _as_told(guest.agent, agent), look.mono_ns),
        console_panic=guest.console_panic,
        rests=_rests(guest, look),
    )


def _only_life(sign: Sign) -> Sign:
    return "answered" if sign == "answered" else "unknown"


def _as_told(answers: Answers, sign: Sign) -> Sign:
    """Return what the last rounds heard, where a look is too short to wait for an agent."""
    missed = answers.told == "silent" and answers.misses >= _MISSES
    return "silent" if sign == "unknown" and missed else sign


def _sign(answers: Answers, sign: Sign, now_ns: int) -> Sign:
    if sign == "silent" and not _answered_lately(answers, now_ns):
        return "unknown"
    return sign


def _rests(guest: Guest, look: Look) -> dict[int, Rest]:
    if not len(guest.stills) == len(look.vcpu_time_ns) == len(look.vcpu_delay_ns):
        return {}
    wanted = [sum(both) for both in zip(look.vcpu_time_ns, look.vcpu_delay_ns, strict=True)]
    return {
        place: Rest(
            still_s=(look.mono_ns - still.since_ns) / 1e9 if still.wanted_ns == now_ns else 0.0,
            longest_s=still.longest_s,
            idle_s=still.idle_s,
        )
        for place, (still, now_ns) in enumerate(zip(guest.stills, wanted, strict=True))
    }


# How a Linux kernel says on its console that it is dead, whatever stands before it on the line.
# Of Windows and the BSDs no line is known well enough to count.
_PANIC: Final = "Kernel panic - not syncing"
# What is shown of a guest's own text.
_LINE_CHARACTERS: Final = 200


def console_read(guest: Guest, text: str) -> tuple[Guest, str]:
    """Return the guest after its console was read, and the line in which its kernel panicked.

    What stood there at the first reading of a boot may be of an earlier one, and counts for
    nothing. The line is told once, without control characters, and cut.
    """
    line = next((one for one in reversed(text.splitlines()) if _PANIC in one), "")
    if guest.console_old is None:
        return replace(guest, console_old=line), ""
    if not line or line == guest.console_old or guest.console_panic:
        return guest, ""
    shown = "".join(c for c in line[line.index(_PANIC) :] if c.isprintable())
    return replace(guest, console_panic=True), shown[:_LINE_CHARACTERS]
