"""Run the sequential test: find the fault that fits a VM's evidence, and the allowed suggestion.

A score is a sum of log-likelihood ratios. An alert needs the score of its error rate (Wald
1945). A suggestion to reboot needs more: a higher score, more samples and seconds (a guest may
reboot itself), and a second witness (`engine.detection.witnesses`). Without a second witness
the suggestion is to inspect the guest.
"""

import math
from typing import NamedTuple

from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.evidence import Picture, cpu_item, fell, silence_item, stepped
from flatline.engine.detection.witnesses import signs_of_life
from flatline.engine.faults import Kind
from flatline.engine.wire.alert import (
    CpuShape,
    EvidenceItem,
    Severity,
    Suggestion,
    counted_witnesses,
    may_be_reset,
)
from flatline.models.kernels import standstill


class Verdict(NamedTuple):
    """Result of one window for one VM; `firing` False is a suspicion."""

    kind: Kind
    firing: bool
    score: float
    severity: Severity
    suggestion: Suggestion
    sequence: int
    onset_ms: int
    shape: CpuShape
    evidence: tuple[EvidenceItem, ...]
    vetoes: tuple[str, ...] = ()


def judge_vm(
    seen: Picture,
    others: list[EvidenceItem],
    cautious: list[str],
    configuration: Configuration,
    *,
    node_waits_for_io: bool = False,
) -> Verdict | None:
    """Return the most likely fault, None where the evidence supports none.

    Parameters
    ----------
    seen, configuration
        Evidence snapshot of the VM at this window, and the constants.
    others
        Evidence of all witnesses but activity.
    node_waits_for_io
        Whether tasks of its node wait for disks.
    cautious
        Reasons that forbid to suggest an action but not the alert.
    """
    if any(item.signal in {"told", "crashed"} for item in others):
        return _reported(seen, others, cautious, configuration)
    if seen.moved < configuration.moved_samples:
        return _boot_stuck(seen, configuration)
    verdict = _dead(seen, others, cautious, configuration)
    if verdict is None:
        return _hung(seen, configuration, node_waits_for_io=node_waits_for_io)
    if _kernel_lives(seen) and not may_be_reset(counted_witnesses(verdict.evidence)):
        return verdict._replace(kind=_hang(waits=node_waits_for_io), suggestion="alert")
    return verdict


def suggested(evidence: tuple[EvidenceItem, ...], refusals: list[str]) -> Suggestion:
    """Return the allowed suggestion for a guest that the test considers dead.

    Without a second witness a person must inspect the guest, however high its score is. With any
    name in `refusals`, the reasons against an action, the suggestion is "alert".
    """
    if refusals:
        return "alert"
    return "reboot" if may_be_reset(counted_witnesses(evidence)) else "inspect"


def _reported(
    seen: Picture, others: list[EvidenceItem], cautious: list[str], configuration: Configuration
) -> Verdict | None:
    """Judge a VM whose panic was reported, by itself or its hypervisor; an order needs silence."""
    # A VM that its hypervisor holds as crashed has no running vCPU to reboot itself with. A VM with
    # only a report may still reboot itself, and waits as long as every other.
    silence = silence_item(seen, configuration)
    first = [item for item in others if item.signal in {"told", "crashed"}]
    rest = [item for item in others if item not in first]
    items = (*first, silence, cpu_item(seen, configuration), *rest)
    still = seen.run_samples >= 2 and _dead_s(seen) >= configuration.told_order_s
    waits = not still if seen.crashed else _may_reboot_itself(seen, configuration)
    refusals = [*cautious, *signs_of_life(others)]
    if waits:
        refusals.append("self_reboot_wait")
    return Verdict(
        kind=Kind.PANIC_SPIN
        if seen.shape in {"one_core", "all_cores", "mixed"}
        else Kind.PANIC_HALT,
        firing=True,
        score=configuration.told_nats + (silence.nats or 0.0),
        severity="critical",
        suggestion=suggested(items, refusals),
        sequence=seen.run_sequence,
        onset_ms=seen.onset_ms,
        shape=seen.shape,
        evidence=items,
        vetoes=tuple(refusals),
    )


def _dead_s(seen: Picture) -> float:
    """Return the longest time in s for which a VM may have been dead."""
    # The time starts with the last byte, or with the report if the VM was quiet before it panicked.
    # A VM that uses one core cannot have died before its other vCPUs stood still. A VM that uses no
    # core cannot have died before all its vCPUs stood still, if all do so now.
    others_s = math.inf
    if seen.shape == "one_core" and seen.others.reported != standstill.UNKNOWN:
        others_s = seen.others.run_s
    elif seen.shape == "idle" and seen.whole.reported == standstill.STILL:
        others_s = seen.whole.run_s
    return min(seen.run_s, seen.reported_s, others_s)


def _may_reboot_itself(seen: Picture, configuration: Configuration) -> bool:
    """Return whether a guest set to reboot after a panic may still need time to do so."""
    return (
        seen.run_samples < configuration.alert_samples
        or _dead_s(seen) < configuration.self_reboot_s
    )


def _dead(
    seen: Picture, others: list[EvidenceItem], cautious: list[str], configuration: Configuration
) -> Verdict | None:
    """Judge a complete silence: a panic with spinning or halted vCPUs, None for a live guest."""
    if seen.run_samples < 2 or seen.shape == "unknown" or signs_of_life(others):
        return None
    silence = silence_item(seen, configuration)
    if (silence.nats or 0) < configuration.silence_alert_nats:
        return None
    balloon = next((item for item in others if item.signal == "balloon"), None)
    rest = [item for item in others if item is not balloon]
    shown = [silence, cpu_item(seen, configuration), *([balloon] if balloon else [])]
    score = sum(item.nats or 0.0 for item in shown)
    if score < configuration.alert_nats or _awaits_report(seen, balloon, configuration):
        return None
    step = stepped(seen, configuration)
    frozen = balloon is not None and (balloon.nats or 0.0) >= configuration.balloon_frozen_nats
    if not (step or frozen):
        return None
    firing = seen.run_samples >= configuration.alert_samples and seen.run_s >= configuration.alert_s
    if _is_of_job(seen, (*shown, *rest), configuration):
        return None
    # Other witnesses do not raise an alert by themselves, but add to the score of a raised one.
    score += sum(item.nats or 0.0 for item in rest)
    evidence = (*shown, *rest)
    refusals = [*cautious, *_refusals(seen, score, step, frozen, balloon, silence, configuration)]
    return Verdict(
        kind=Kind.PANIC_HALT if seen.shape == "idle" else Kind.PANIC_SPIN,
        firing=firing,
        score=score,
        severity="critical" if frozen else "error",
        suggestion=suggested(evidence, refusals) if firing else "alert",
        sequence=seen.run_sequence,
        onset_ms=seen.onset_ms,
        shape=seen.shape,
        evidence=evidence,
        vetoes=tuple(refusals),
    )


def _is_of_job(
    seen: Picture, evidence: tuple[EvidenceItem, ...], configuration: Configuration
) -> bool:
    """Return whether signs of life in this silence invalidate activity as evidence."""
    # They do until no further sign came for as long as the silence had lasted at the last sign, or
    # for `lived_wait_s`.
    if seen.lived is None or may_be_reset(counted_witnesses(evidence)):
        return False
    ago_s = seen.lived.ago_s
    return ago_s < min(seen.run_s - ago_s, configuration.lived_wait_s)


def _awaits_report(
    seen: Picture, balloon: EvidenceItem | None, configuration: Configuration
) -> bool:
    """Return whether the next report of the balloon is due soon, so that the verdict waits."""
    if balloon is None:
        return False
    prompt = seen.balloon_period_s <= configuration.balloon_prompt_s
    return (balloon.nats or 0.0) == 0.0 and prompt


def _refusals(
    seen: Picture,
    score: float,
    step: bool,
    frozen: bool,
    balloon: EvidenceItem | None,
    silence: EvidenceItem,
    configuration: Configuration,
) -> list[str]:
    """Return the names of the reasons against suggesting a reboot now."""
    refusals = []
    if score < configuration.order_nats(seen.shape):
        refusals.append("score_low")
    usual = (silence.nats or 0.0) < configuration.silence_order_nats
    if usual or _is_older_than_its_halt(seen, configuration):
        refusals.append("silence_usual")
    if _may_reboot_itself(seen, configuration):
        refusals.append("self_reboot_wait")
    if not step:
        # A guest with the same level before the silence may be computing as usual.
        refusals.append("cpu_constant")
    if balloon is not None and not frozen:
        refusals.append("balloon_not_frozen")
    if seen.shape == "mixed":
        refusals.append("shape_mixed")
    return refusals


def _is_older_than_its_halt(seen: Picture, configuration: Configuration) -> bool:
    """Return whether a guest without a report was silent for long before its vCPUs stopped."""
    # A halt that covers less than `dead_share` of the silence does not explain it: the guest may
    # be waiting at a boot prompt.
    dead_s = _dead_s(seen)
    return seen.shape == "idle" and not seen.said and dead_s < configuration.dead_share * seen.run_s


def _kernel_lives(seen: Picture) -> bool:
    """Return whether the vCPUs of a guest that uses no core still gain time."""
    # vCPUs of a halted kernel gain no time. If they gain some, the kernel serves its timers, while
    # its processes do nothing.
    return seen.shape == "idle" and seen.whole.reported == standstill.MOVED


def _hung(
    seen: Picture, configuration: Configuration, *, node_waits_for_io: bool
) -> Verdict | None:
    """Judge disks that stand still under a live kernel: an alert, never an order."""
    if seen.disk_run_s < configuration.hung_s or seen.disk_samples < configuration.alert_samples:
        return None
    nats = min(seen.disk_nats, configuration.hung_cap_nats)
    calm = (
        seen.shape in {"idle", "mixed"}
        and stepped_down(seen, configuration)
        and seen.level_nats >= configuration.hung_level_nats
    )
    items = [
        EvidenceItem(
            signal="disk",
            value=round(seen.disk_run_s, 3),
            nats=round(nats, 3),
            text=f"No disk I/O for {seen.disk_run_s:.0f} s",
        ),
        EvidenceItem(
            signal="cpu",
            value=None if seen.cpu is None else round(seen.cpu, 4),
            limit=round(seen.cpu_before, 4),
            nats=round(min(seen.level_nats, configuration.cpu_cap_nats), 3) if calm else 0.0,
            text=f"CPU use fell from {seen.cpu_before:.2f} to {seen.cpu or 0.0:.2f} cores",
        ),
    ]
    if seen.balloon_known and seen.balloon_fresh:
        items.append(
            EvidenceItem(
                signal="balloon",
                value=round(seen.balloon_still_s, 3),
                text="The balloon driver still reports, so the kernel is alive",
            )
        )
    score = sum(item.nats or 0.0 for item in items)
    if not calm or score < configuration.alert_nats:
        return None
    return Verdict(
        kind=_hang(waits=node_waits_for_io),
        firing=True,
        score=score,
        severity="error",
        suggestion="alert",
        sequence=seen.disk_sequence,
        onset_ms=seen.disk_onset_ms,
        shape=seen.shape,
        evidence=tuple(items),
    )


def _hang(*, waits: bool) -> Kind:
    """Return the kind of a hang; only the node's tasks that wait for I/O distinguish the kinds."""
    return Kind.HUNG_IO if waits else Kind.HUNG_USERLAND


def stepped_down(seen: Picture, configuration: Configuration) -> bool:
    """Return whether the CPU fell far below its level as the disks fell silent."""
    return (
        fell(seen, configuration.hung_cpu_ratio) and seen.cpu_before >= configuration.hung_cpu_cores
    )


def _boot_stuck(seen: Picture, configuration: Configuration) -> Verdict | None:
    """Judge a guest without any activity in this boot epoch: an alert at most."""
    if seen.epoch_s < configuration.boot_stuck_s or seen.moved > 0 or seen.balloon_moved > 1:
        return None
    if seen.shape not in {"one_core", "all_cores"} and seen.history_s <= seen.epoch_s * 1.01:
        # A guest that was never seen active may simply do nothing.
        return None
    item = EvidenceItem(
        signal="boot",
        value=round(seen.epoch_s, 3),
        limit=configuration.boot_stuck_s,
        text=f"No disk or network activity for {seen.epoch_s:.0f} s since the start of the VM",
    )
    return Verdict(
        kind=Kind.BOOT_STUCK,
        firing=True,
        score=configuration.alert_nats,
        severity="warning",
        suggestion="alert",
        sequence=seen.run_sequence,
        onset_ms=seen.onset_ms,
        shape=seen.shape,
        evidence=(item,),
        vetoes=("nothing_moved",),
    )
