"""Collect independent evidence that a silent guest is dead or alive, by witness.

A batch job is silent and computes, so silence and CPU shape together are one witness, `activity`.
Each witness here is independent of `activity`: it has another cause and is measured in another way.
A sign of life forbids to suggest an action, however strong the evidence for a death is.
"""

from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.evidence import Lived, Picture, Stillness
from flatline.engine.wire.alert import EvidenceItem
from flatline.models.kernels import standstill

_SPINNING = frozenset({"one_core", "all_cores", "mixed"})
_WORDS = {
    "watchdog": "The watchdog of the guest expired",
    "agent_silent": "The guest agent no longer answers",
    "console_panic": "The serial console shows a kernel panic",
}


def witness_items(seen: Picture, configuration: Configuration) -> list[EvidenceItem]:
    """Return the evidence of all witnesses but `activity`; unknown ones are omitted.

    Evidence with negative nats is a sign of life.
    """
    items = [
        balloon_item(seen, configuration),
        vcpus_item(seen, configuration),
        exits_item(seen, configuration),
        *report_items(seen, configuration),
        *said_items(seen, configuration),
        *answer_items(seen, configuration),
    ]
    return [item for item in items if item is not None]


def signs_of_life(items: list[EvidenceItem]) -> list[str]:
    """Return the vetoes of the evidence against a death, named by witness."""
    return sorted({f"{item.witness}_lives" for item in items if (item.nats or 0.0) < 0.0})


def shows_life(seen: Picture, items: list[EvidenceItem], configuration: Configuration) -> bool:
    """Return whether a VM shows life in a surprising silence, which then is not a death.

    `items` is the evidence of all its witnesses. A sign of life before the silence is surprising
    does not count: the guest may be silent as usual and die later.
    """
    surprises = seen.run_samples >= 2 and seen.silence_nats >= configuration.silence_alert_nats
    return surprises and bool(signs_of_life(items))


def balloon_item(seen: Picture, configuration: Configuration) -> EvidenceItem | None:
    """Return the evidence of the balloon; None if it reported too rarely or stopped earlier.

    A report within the silence is a sign of life, unless a panic was reported after it.
    """
    if not seen.balloon_known:
        return None
    if seen.balloon_fresh > 0 and seen.balloon_still_s + seen.dt_s < seen.reported_s:
        return EvidenceItem(
            signal="balloon",
            value=round(seen.balloon_still_s, 3),
            nats=configuration.balloon_fresh_nats,
            text="The balloon driver still reports, so the kernel is alive",
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
        text=f"The balloon driver has not reported for {seen.balloon_still_s:.0f} s",
        witness="balloon",
        minimum_nats=configuration.balloon_frozen_nats,
    )


def vcpus_item(seen: Picture, configuration: Configuration) -> EvidenceItem | None:
    """Return the evidence of vCPUs that a dead kernel would have stopped; None if unknown.

    For a guest that uses one core, these are all its other vCPUs. If one of them gains time, the
    kernel serves its timers and is alive. For a guest that uses no core, these are all its vCPUs.
    If they gain time, this does not prove that processes live, because the kernel of a hung guest
    serves its timers too. If several vCPUs are busy, the result is unknown: they may work or spin.
    A silence with signs of life is that of a job, whose vCPUs stand still at times. In it, only a
    standstill much longer than those before is evidence.
    """
    if seen.shape == "idle":
        # With several vCPUs, all but the busiest stand still too, and the model of these often has
        # more data.
        still = max(
            seen.whole, seen.others, key=lambda one: (one.reported == standstill.STILL, one.nats)
        )
        still = still if seen.whole.reported == standstill.STILL else seen.whole
        who = "No vCPU has used any time"
    elif seen.shape == "one_core":
        still, who = seen.others, "All vCPUs but one have used no time"
        if still.reported == standstill.MOVED:
            return EvidenceItem(
                signal="vcpus",
                nats=configuration.life_nats,
                text="vCPUs other than the busy one still use time, so the kernel is alive",
                witness="vcpus",
                minimum_nats=configuration.standstill_least_nats,
            )
    else:
        return None
    if seen.lived is not None and not _outlasts(still, seen.lived, configuration):
        return None
    return _still_item("vcpus", still, who, seen, configuration)


def _outlasts(still: Stillness, lived: Lived, configuration: Configuration) -> bool:
    """Return whether vCPUs stand still for much longer than before in this silence."""
    long_s = configuration.lived_ratio * lived.longest_s
    return lived.samples >= configuration.lived_samples and still.run_s >= long_s


def exits_item(seen: Picture, configuration: Configuration) -> EvidenceItem | None:
    """Return the evidence of KVM's counts of interrupts and I/O; None unless they stand still.

    If they increase, this is no proof of life: a Linux kernel takes interrupts after its panic.
    """
    who = "KVM has injected no interrupt and served no I/O"
    return _still_item("exits", seen.exits, who, seen, configuration)


def _preceded(still_s: float, seen: Picture, configuration: Configuration) -> bool:
    """Return whether a standstill began while the guest still worked, so no death caused it."""
    # In a live guest a vCPU that was taken offline, or a balloon whose service was stopped, stands
    # still. A job without I/O that begins later would then look like a panic. The margin is for a
    # vCPU that was already idle when its kernel died, and for a pending request that ended later.
    return still_s > seen.run_s + max(configuration.precedes_s, 2.0 * seen.dt_s)


def _still_item(
    signal: str, still: Stillness, who: str, seen: Picture, configuration: Configuration
) -> EvidenceItem | None:
    if still.reported != standstill.STILL or _preceded(still.run_s, seen, configuration):
        return None
    return EvidenceItem(
        signal=signal,
        value=round(still.run_s, 3),
        nats=round(min(configuration.standstill_cap_nats, still.nats), 3),
        text=f"{who} for {still.run_s:.0f} s",
        witness=signal,
        minimum_nats=configuration.standstill_least_nats,
    )


def report_items(seen: Picture, configuration: Configuration) -> list[EvidenceItem]:
    """Return the evidence of the hypervisor's crash state and of the panic device."""
    items = []
    if seen.crashed:
        items.append(
            EvidenceItem(
                signal="crashed",
                nats=configuration.told_nats,
                text="The hypervisor reports the VM as crashed",
                witness="hypervisor",
                minimum_nats=configuration.told_nats,
            )
        )
    if seen.reported in {"panicked", "crashed"}:
        items.append(
            EvidenceItem(
                signal="told",
                nats=configuration.told_nats,
                text="The panic device reported a panic",
                witness="guest",
                minimum_nats=configuration.guest_least_nats,
            )
        )
    return items


def said_items(seen: Picture, configuration: Configuration) -> list[EvidenceItem]:
    """Return the evidence of the guest's other reports since about the onset."""
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
    """Return the evidence of answers after the onset, and of a probe without an answer."""
    items = [
        EvidenceItem(
            signal="answer",
            nats=configuration.life_nats,
            text=f"The VM answered a {who} after it fell silent, so it is alive",
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
                text="The VM no longer answers the probe",
                witness="probe",
                minimum_nats=configuration.probe_least_nats,
            )
        )
    return items
