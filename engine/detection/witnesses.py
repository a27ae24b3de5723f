"""Who else says that a silent guest is dead, or that it lives: one piece of evidence each.

A batch job is silent and computes, so silence and CPU shape are one witness. Each of these
is independent of it: it has another cause, and comes another way. Whatever speaks against a
death forbids to suggest an action, however much speaks for it.
"""

from engine.detection.configuration import Configuration
from engine.detection.evidence import Lived, Picture, Stillness
from engine.wire.alert import EvidenceItem
from models.kernels import standstill

_SPINNING = frozenset({"one_core", "all_cores", "mixed"})
_WORDS = {
    "watchdog": "its watchdog was not served in time",
    "agent_silent": "its guest agent, which answered before, does not answer",
    "console_panic": "its serial console shows a kernel panic",
}


def witness_items(seen: Picture, configuration: Configuration) -> list[EvidenceItem]:
    """Return what all witnesses but activity say of a VM, each once; those that know nothing not.

    Evidence of negative worth is of a guest that lives.
    """
    items = [
        balloon_item(seen, configuration),
        vcpus_item(seen, configuration),
        exits_item(seen, configuration),
        *told_items(seen, configuration),
        *said_items(seen, configuration),
        *answer_items(seen, configuration),
    ]
    return [item for item in items if item is not None]


def signs_of_life(items: list[EvidenceItem]) -> list[str]:
    """Return the names of those that speak against a death, as vetoes are called."""
    return sorted({f"{item.witness}_lives" for item in items if (item.nats or 0.0) < 0.0})


def shows_life(seen: Picture, configuration: Configuration) -> bool:
    """Return whether a VM lives in a silence that surprises, so that the silence is no death's.

    Before it surprises a guest may be silent by its habit, and die after that.
    """
    surprises = seen.run_samples >= 2 and seen.silence_nats >= configuration.silence_alert_nats
    return surprises and bool(signs_of_life(witness_items(seen, configuration)))


def balloon_item(seen: Picture, configuration: Configuration) -> EvidenceItem | None:
    """Return what the balloon says; None where it was never seen moving in this epoch.

    A report within the silence speaks for life, unless a panic was told after it.
    """
    if not seen.balloon_known:
        return None
    if seen.balloon_fresh > 0 and seen.balloon_still_s + seen.dt_s < seen.told_s:
        return EvidenceItem(
            signal="balloon",
            value=round(seen.balloon_still_s, 3),
            nats=configuration.balloon_fresh_nats,
            text="its balloon driver goes on reporting: the kernel lives",
            witness="balloon",
            minimum_nats=configuration.balloon_frozen_nats,
        )
    if _preceded(seen.balloon_still_s - seen.balloon_period_s, seen, configuration):
        return None
    periods = seen.balloon_still_s / max(seen.balloon_period_s, seen.dt_s, 0.1)
    excess = max(0.0, periods - configuration.balloon_free_periods)
    nats = min(configuration.balloon_cap_nats, excess * configuration.balloon_nats_per_period)
    return EvidenceItem(
        signal="balloon",
        value=round(seen.balloon_still_s, 3),
        limit=round(seen.balloon_period_s, 3),
        nats=round(nats, 3),
        text=f"its balloon driver has not reported for {seen.balloon_still_s:.0f} s",
        witness="balloon",
        minimum_nats=configuration.balloon_frozen_nats,
    )


def vcpus_item(seen: Picture, configuration: Configuration) -> EvidenceItem | None:
    """Return what the vCPUs say that a dead kernel would have stopped; None where not known.

    Of a guest that uses one core these are all others: if one of them gains time, a kernel
    serves its timers. Of one that uses none they are all; that they gain time is what a hung
    guest's kernel does as well, and no proof that its processes live. Where several vCPUs work
    nothing is known: they may work or spin. In a silence in which the guest showed life, which is
    that of a job, what they did in it counts: they may stand still now and then.
    """
    if seen.shape == "idle":
        # Of several vCPUs the others stand still as well, and often more is known of them.
        still = max(
            seen.whole, seen.others, key=lambda one: (one.told == standstill.STILL, one.nats)
        )
        still = still if seen.whole.told == standstill.STILL else seen.whole
        who = "none of its vCPUs has used any time"
    elif seen.shape == "one_core":
        still, who = seen.others, "all of its vCPUs but one have used no time at all"
        if still.told == standstill.MOVED:
            return EvidenceItem(
                signal="vcpus",
                nats=configuration.life_nats,
                text="other vCPUs than the busy one go on using time: the kernel lives",
                witness="vcpus",
                minimum_nats=configuration.standstill_least_nats,
            )
    else:
        return None
    if seen.lived is not None and not _outlasts(still, seen.lived, configuration):
        return None
    return _still_item("vcpus", still, who, seen, configuration)


def _outlasts(still: Stillness, lived: Lived, configuration: Configuration) -> bool:
    """Return whether vCPUs stand still for much longer than they did so far in this silence."""
    long_s = configuration.lived_ratio * lived.longest_s
    return lived.samples >= configuration.lived_samples and still.run_s >= long_s


def exits_item(seen: Picture, configuration: Configuration) -> EvidenceItem | None:
    """Return what KVM's counts say; None where they are not told or have moved.

    That they move is no proof of life: a Linux kernel takes interrupts after its panic.
    """
    who = "no interrupt was injected into it and no I/O of it served"
    return _still_item("exits", seen.exits, who, seen, configuration)


def _preceded(still_s: float, seen: Picture, configuration: Configuration) -> bool:
    """Return whether something stood still while the guest still worked: no death stopped it.

    A vCPU that was taken offline, or a balloon whose service was stopped, stands still in a
    guest that lives, and a job without I/O that begins later would look like a panic. But a vCPU
    may have slept already when its kernel died, and a request that was under way may end after it.
    """
    return still_s > seen.run_s + max(configuration.precedes_s, 2.0 * seen.dt_s)


def _still_item(
    signal: str, still: Stillness, who: str, seen: Picture, configuration: Configuration
) -> EvidenceItem | None:
    if still.told != standstill.STILL or _preceded(still.run_s, seen, configuration):
        return None
    return EvidenceItem(
        signal=signal,
        value=round(still.run_s, 3),
        nats=round(min(configuration.standstill_cap_nats, still.nats), 3),
        text=f"{who} for {still.run_s:.0f} s",
        witness=signal,
        minimum_nats=configuration.standstill_least_nats,
    )


def told_items(seen: Picture, configuration: Configuration) -> list[EvidenceItem]:
    """Return what the hypervisor holds of the VM and what its panic device said."""
    items = []
    if seen.crashed:
        items.append(
            EvidenceItem(
                signal="crashed",
                nats=configuration.told_nats,
                text="the hypervisor holds it crashed",
                witness="hypervisor",
                minimum_nats=configuration.told_nats,
            )
        )
    if seen.told in {"panicked", "crashed"}:
        items.append(
            EvidenceItem(
                signal="told",
                nats=configuration.told_nats,
                text="its panic device reported a panic",
                witness="guest",
                minimum_nats=configuration.guest_least_nats,
            )
        )
    return items


def said_items(seen: Picture, configuration: Configuration) -> list[EvidenceItem]:
    """Return what the guest said otherwise, or stopped saying, since about its silence began."""
    return [
        EvidenceItem(
            signal=kind,
            nats=getattr(configuration, f"{kind}_nats"),
            text=_WORDS[kind],
            witness="guest",
            minimum_nats=configuration.guest_least_nats,
        )
        for kind in seen.said
        if kind in _WORDS
    ]


def answer_items(seen: Picture, configuration: Configuration) -> list[EvidenceItem]:
    """Return who answered after the silence began, and that no probe is answered any more."""
    items = [
        EvidenceItem(
            signal="answer",
            nats=configuration.life_nats,
            text=f"it answered a {who} after it had fallen silent: it lives",
            witness="probe" if who == "probe" else "guest",
            minimum_nats=configuration.probe_least_nats,
        )
        for who in seen.answered
    ]
    if seen.probe_silent and "probe" not in seen.answered:
        items.append(
            EvidenceItem(
                signal="probe",
                nats=configuration.probe_silent_nats,
                text="it does not answer the probe that it answered before",
                witness="probe",
                minimum_nats=configuration.probe_least_nats,
            )
        )
    return items
