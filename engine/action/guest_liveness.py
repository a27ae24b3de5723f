"""The node's record of a guest: how long its vCPUs are idle, and its signs of life.

Pure: all times come with the samples and answers, by the node's monotonic clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple

from flatline.engine.preflight_data import ObservedGuest, PreflightSample, Rest, Sign, Signs

# The most that an idle vCPU of a live kernel runs, as a share of a core (measured: below 7 %, in
# guests whose emulation makes timers expensive).
_IDLE_SHARE: Final = 0.1
# A missing answer is a sign of death only if the guest answered within this time. Otherwise it may
# have another cause: a disconnected network card, or an owner who no longer permits the probe.
ANSWERED_WITHIN_NS: Final = 600 * 10**9
# Answers are reported once in five minutes, so that a healthy node writes little to the log.
_REPORT_AGAIN_NS: Final = 300 * 10**9
# On a bridge that works, another guest must have answered within this time: two rounds of guest
# probing (10 s each), and a margin for a slow round.
BRIDGE_NS: Final = 25 * 10**9
# Consecutive missing answers after which a guest is reported as silent: a single answer may be lost
# in a full queue of the bridge or of the guest.
_MISSES: Final = 2

# If a counter stopped more than this before the guest's last I/O, it stopped while the guest lived,
# so death did not stop it. Rounds are 10 s apart, so each of the two times is known to within 10 s;
# the other 5 s are for a request in progress that completes after the death.
PRECEDES_S: Final = 25.0

Channel = Literal["probe", "agent"]
ProbeReport = Literal["answered", "silent"]


class _Still(NamedTuple):
    """A counter of a guest, and since when it is unchanged; other fields are as in `Rest`."""

    value: int
    since_ns: int
    longest_s: float = 0.0
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to one way of probing a guest; None means never.

    `missed_ns` is when the first of the missing answers was requested.
    """

    answered_ns: int | None = None
    misses: int = 0
    missed_ns: int | None = None
    reported: ProbeReport | None = None
    reported_ns: int = 0


@dataclass(frozen=True, slots=True)
class Guest:
    """One boot of a VM under observation."""

    instance: int
    boots_seen: int
    seen_ns: int
    stills: tuple[_Still, ...] = ()
    interrupts: _Still | None = None
    # The I/O counter, None if not known, and when it last changed, None if never.
    moved: int | None = None
    moved_ns: int | None = None
    probe: Answers = field(default_factory=Answers)
    agent: Answers = field(default_factory=Answers)
    # The panic line in the console's text at its first reading in this boot, "" if it had none;
    # None before that reading.
    console_old: str | None = None
    console_panic: bool = False


def seen(before: Guest | None, now: ObservedGuest) -> Guest:
    """Return the guest after one more sample; a boot or a new run discards all earlier state.

    `before` is None for a guest that was not observed yet.
    """
    run = (now.instance, now.boots_seen)
    if before is None or (before.instance, before.boots_seen) != run:
        before = Guest(*run, now.mono_ns)
    worked = None not in (now.moved, before.moved) and now.moved != before.moved
    rested_ns = now.mono_ns - before.seen_ns if now.moved == before.moved is not None else 0
    stills = tuple(_Still(wanted, now.mono_ns) for wanted in now.vcpu_wanted_ns)
    if len(before.stills) == len(stills):
        most_ns = round(_IDLE_SHARE * rested_ns)
        pairs = zip(before.stills, stills, strict=True)
        stills = tuple(_after(*pair, rested_ns=rested_ns, most=most_ns) for pair in pairs)
    return replace(
        before,
        seen_ns=now.mono_ns,
        stills=stills,
        interrupts=_interrupts(before.interrupts, now, rested_ns),
        moved=before.moved if now.moved is None else now.moved,
        moved_ns=now.mono_ns if worked else before.moved_ns,
    )


def _interrupts(before: _Still | None, now: ObservedGuest, rested_ns: int) -> _Still | None:
    if now.kvm_irq_injections is None:
        return None
    after = _Still(now.kvm_irq_injections, now.mono_ns)
    if before is None:
        return after
    return _after(before, after, rested_ns=rested_ns, most=now.kvm_irq_injections)


def _after(still: _Still, now: _Still, *, rested_ns: int, most: int) -> _Still:
    """Return a counter's record after one more sample, before which I/O rested for `rested_ns`.

    `most` is the largest gain with which a live kernel counts as idle.
    """
    gained = now.value - still.value
    if gained == 0:
        return still
    if gained < 0:
        return now
    # An upper bound: when exactly the counter moved within the last interval is not known.
    longest_s = max(still.longest_s, (now.since_ns - still.since_ns) / 1e9)
    idle_s = still.idle_s + (rested_ns / 1e9 if gained <= most else 0.0)
    return now._replace(longest_s=longest_s, idle_s=idle_s)


def heard(
    guest: Guest, channel: Channel, sign: Sign, *, now_ns: int
) -> tuple[Guest, ProbeReport | None]:
    """Return the guest after an answer or a missing answer, and the report that is due, if any.

    A missing answer counts only if the guest answered lately. The sign "unknown" changes nothing.
    `now_ns` is the node's monotonic clock.
    """
    answers = guest.probe if channel == "probe" else guest.agent
    reported: ProbeReport | None = None
    if sign == "answered":
        due = answers.reported != "answered" or now_ns - answers.reported_ns >= _REPORT_AGAIN_NS
        reported = "answered" if due else None
        answers = replace(answers, answered_ns=now_ns, misses=0, missed_ns=None)
    elif sign == "silent" and _answered_lately(answers, now_ns):
        missed_ns = now_ns if answers.missed_ns is None else answers.missed_ns
        answers = replace(answers, misses=answers.misses + 1, missed_ns=missed_ns)
        if answers.misses >= _MISSES and answers.reported != "silent":
            reported = "silent"
    if reported is not None:
        answers = replace(answers, reported=reported, reported_ns=now_ns)
    if channel == "probe":
        return replace(guest, probe=answers), reported
    return replace(guest, agent=answers), reported


def on_bridge(sign: Sign, answered_ns: Mapping[bytes, int], vm: bytes, *, now_ns: int) -> Sign:
    """Return the result of probing one network card; silence counts only if its bridge works.

    A disconnected bridge or uplink silences the guest's traffic and its answers alike, so another
    guest must have answered on the same bridge within `BRIDGE_NS`. Otherwise silence is "unknown".

    Parameters
    ----------
    answered_ns
        When each guest last answered on the card's bridge, by UUID.
    vm
        UUID of the guest with the card.
    now_ns
        The clock of `answered_ns`.
    """
    works = any(
        now_ns - moment_ns <= BRIDGE_NS for other, moment_ns in answered_ns.items() if other != vm
    )
    return "unknown" if sign == "silent" and not works else sign


def _answered_lately(answers: Answers, now_ns: int) -> bool:
    last_ns = answers.answered_ns
    return last_ns is not None and now_ns - last_ns <= ANSWERED_WITHIN_NS


def signs_of(
    guest: Guest | None,
    sample: PreflightSample,
    *,
    probe: Sign = "unknown",
    agent: Sign = "unknown",
) -> Signs:
    """Return the signs of life of a guest at the time of a preflight sample.

    Parameters
    ----------
    guest
        None if the node has not watched the guest.
    probe, agent
        The results of probing the guest now. Silence counts only if the guest answered lately.
    """
    if guest is None or (guest.instance, guest.boots_seen) != (sample.instance, sample.boots_seen):
        return Signs(probe=_only_life(probe), agent=_only_life(agent))
    interrupts, injected = guest.interrupts, sample.kvm_irq_injections
    return Signs(
        probe=_sign(guest, guest.probe, probe, sample.mono_ns),
        agent=_sign(guest, guest.agent, _as_reported(guest.agent, agent), sample.mono_ns),
        console_panic=guest.console_panic,
        rests=_rests(guest, sample),
        interrupts=interrupts and _rest(interrupts, injected, sample.mono_ns),
        quiet_s=_quiet_s(guest, sample),
    )


def _quiet_s(guest: Guest, sample: PreflightSample) -> float | None:
    if sample.moved is not None and guest.moved is not None and sample.moved != guest.moved:
        return 0.0
    return None if guest.moved_ns is None else (sample.mono_ns - guest.moved_ns) / 1e9


def _only_life(sign: Sign) -> Sign:
    return "answered" if sign == "answered" else "unknown"


def _as_reported(answers: Answers, sign: Sign) -> Sign:
    """Return `sign`; an unknown one is `silent` if the guest agent missed the last rounds.

    A preflight check is too short to wait for the timeout of a guest agent.
    """
    missed = answers.reported == "silent" and answers.misses >= _MISSES
    return "silent" if sign == "unknown" and missed else sign


def _sign(guest: Guest, answers: Answers, sign: Sign, now_ns: int) -> Sign:
    """Return `sign`; `silent` becomes `unknown` after I/O, or if the guest did not answer lately.

    I/O that follows the first missing answer shows that the guest lived without answering.
    """
    if sign != "silent":
        return sign
    moved_ns, missed_ns = guest.moved_ns, answers.missed_ns
    worked = (
        moved_ns is not None and missed_ns is not None and moved_ns - missed_ns > PRECEDES_S * 1e9
    )
    return "unknown" if worked or not _answered_lately(answers, now_ns) else sign


def _rests(guest: Guest, sample: PreflightSample) -> dict[int, Rest]:
    if not len(guest.stills) == len(sample.vcpu_time_ns) == len(sample.vcpu_delay_ns):
        return {}
    wanted = [sum(both) for both in zip(sample.vcpu_time_ns, sample.vcpu_delay_ns, strict=True)]
    return {
        place: _rest(still, now_ns, sample.mono_ns)
        for place, (still, now_ns) in enumerate(zip(guest.stills, wanted, strict=True))
    }


def _rest(still: _Still, value: int | None, now_ns: int) -> Rest:
    still_s = (now_ns - still.since_ns) / 1e9 if still.value == value else 0.0
    return Rest(still_s=still_s, longest_s=still.longest_s, idle_s=still.idle_s)


# The line in which a Linux kernel reports its panic, after any prefix. For Windows and the BSDs no
# line is known with enough certainty.
_PANIC: Final = "Kernel panic - not syncing"
# The most that is shown of a guest's own text.
_LINE_CHARACTERS: Final = 200


def console_read(guest: Guest, text: str) -> tuple[Guest, str]:
    """Return the guest after its console was read, and the line of its kernel panic, "" if none.

    A panic line in the text of a boot's first reading may be of an earlier boot, so it does not
    count. A line is reported once, without control characters and cut to `_LINE_CHARACTERS`.
    `text` is the end of the console's output.
    """
    line = next((one for one in reversed(text.splitlines()) if _PANIC in one), "")
    if guest.console_old is None:
        return replace(guest, console_old=line), ""
    if not line or line == guest.console_old or guest.console_panic:
        return guest, ""
    shown = "".join(c for c in line[line.index(_PANIC) :] if c.isprintable())
    return replace(guest, console_panic=True), shown[:_LINE_CHARACTERS]
