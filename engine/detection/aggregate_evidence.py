"""Run the sequential test for VMs of which only totals are known.

Such a VM has neither per-vCPU times nor a balloon that dates its reports, as in recorded data sets.
The evidence of silence, CPU level and memory figure is added in nats (`models.kernels.aggregates`).
The more a live VM may look like the fault, the longer a verdict waits.
"""

import math
from typing import Final

from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.evidence import Picture
from flatline.engine.detection.hypotheses import Verdict, suggested
from flatline.engine.detection.vm_table import VmTable
from flatline.engine.detection.witnesses import signs_of_life
from flatline.engine.faults import Kind
from flatline.engine.wire.alert import CpuShape, EvidenceItem
from flatline.models.kernels import aggregates_layout

_SHAPES: Final[dict[int, CpuShape]] = {
    aggregates_layout.SHAPE_MIXED: "mixed",
    aggregates_layout.SHAPE_ONE_CORE: "one_core",
    aggregates_layout.SHAPE_ALL_CORES: "all_cores",
    aggregates_layout.SHAPE_IDLE: "idle",
}
_MEMORY: Final = {
    aggregates_layout.MEMORY_ALIVE: "The memory figure moves as in a living guest",
    aggregates_layout.MEMORY_UNKNOWN: "The memory figure shows nothing",
    aggregates_layout.MEMORY_FROZEN: "The memory figure does not move",
    aggregates_layout.MEMORY_NOISE: "The memory figure fell far below its usual level",
    aggregates_layout.MEMORY_DECAY: "The memory figure decays",
}
_O: Final = aggregates_layout.OUT


def is_correlated(table: VmTable, index: int) -> bool:
    """Return whether the silence of the VM in row `index` is shared with many other VMs."""
    return bool(table.vitals[index, aggregates_layout.FIELD["shared"]] > 0.0)


def judge_aggregates(
    table: VmTable,
    index: int,
    seen: Picture,
    others: list[EvidenceItem],
    cautious: list[str],
    configuration: Configuration,
) -> Verdict | None:
    """Return the verdict on a VM's silence from its totals, None where they support no fault.

    Parameters
    ----------
    table, index
        The VM table of the node, and the row of the VM in it, from 0.
    seen
        Evidence snapshot of the VM at this window.
    others
        Evidence of all witnesses but activity.
    cautious
        Reasons that forbid to suggest an action but not the alert.
    """
    sign = {name: float(table.signs[index, row]) for name, row in _O.items()}
    silence = min(sign["silence_nats"], configuration.totals_silence_cap_nats)
    score = silence + sign["cpu_nats"] + sign["memory_nats"]
    if not _is_alarming(table, index, sign, score, configuration):
        return _hung(table, index, sign, seen, cautious, configuration)
    shape = _SHAPES[int(sign["shape"])]
    hypothesis, refusals = _hypothesis(shape, sign, score, configuration)
    if sign["faded"] > 0.0:
        refusals.append("faded_before")
    if table.vitals[index, aggregates_layout.F_SHARED] == aggregates_layout.OUTLASTED:
        refusals.append("fell_with_others")
    late = sign["run_s"] > configuration.totals_run_s
    if late and sign["run"] > configuration.totals_run_samples:
        refusals.append("silent_long")
    if sign["silence_nats"] < configuration.totals_silence_order_nats:
        refusals.append("silence_usual")
    evidence = (*_evidence(seen, sign, silence, hypothesis, configuration), *others)
    refusals = [*cautious, *refusals, *signs_of_life(others)]
    suggestion = suggested(evidence, refusals)
    firing = sign["run_s"] >= configuration.totals_alert_s
    return Verdict(
        kind=Kind.PANIC_HALT if shape == "idle" else Kind.PANIC_SPIN,
        firing=firing,
        score=score,
        severity="error" if refusals else "critical",
        suggestion=suggestion if firing else "alert",
        sequence=seen.run_sequence,
        onset_ms=seen.onset_ms,
        shape=shape,
        evidence=evidence,
        vetoes=tuple(refusals),
    )


def _is_alarming(
    table: VmTable, index: int, sign: dict[str, float], score: float, configuration: Configuration
) -> bool:
    if sign["known"] <= 0 or sign["run"] < configuration.totals_alert_samples:
        return False
    if table.vitals[index, aggregates_layout.FIELD["alive"]] < configuration.totals_alive_samples:
        return False
    if sign["active_share"] < configuration.totals_active_share:
        return False
    if sign["silence_nats"] < configuration.totals_silence_alert_nats:
        return False
    if sign["memory_nats"] <= configuration.totals_memory_alive_nats:
        return False
    shaped = sign["shape"] != aggregates_layout.SHAPE_MIXED or sign["memory_nats"] >= 3.0
    return shaped and score >= configuration.totals_nats("alert")


def _hypothesis(
    shape: CpuShape, sign: dict[str, float], score: float, configuration: Configuration
) -> tuple[str, list[str]]:
    """Return the name of the error rate, and the names of the reasons against a reboot now."""
    samples, seconds = sign["run"], sign["run_s"]
    memory = sign["memory_nats"]
    dead = memory >= configuration.totals_memory_dead_nats
    needed_s = configuration.totals_order_s
    if shape == "one_core":
        hypothesis, needed = "order", configuration.totals_alert_samples
    elif shape == "idle":
        hypothesis, needed = _halt_rate(sign, configuration), configuration.totals_halt_samples
        if not dead:
            needed_s = configuration.totals_patient_s
    elif shape == "all_cores":
        hypothesis, needed = "all_cores", configuration.totals_all_cores_samples
        if dead:
            frozen = sign["memory_mode"] == aggregates_layout.MEMORY_FROZEN
            needed = (
                configuration.totals_frozen_samples if frozen else configuration.totals_halt_samples
            )
        else:
            needed_s = configuration.totals_patient_s
    else:
        hypothesis, needed = "stuck", configuration.totals_stuck_samples
        needed_s = configuration.totals_order_s if dead else configuration.totals_patient_s
    refusals = []
    if score < configuration.totals_nats(hypothesis):
        refusals.append("score_low")
    if samples < needed or seconds < needed_s:
        refusals.append("self_reboot_wait" if seconds < configuration.totals_order_s else "too_few")
    if shape == "idle" and sign["silence_nats"] < configuration.totals_halt_silence_nats:
        refusals.append("silence_usual")
    if memory < configuration.totals_memory_doubt_nats:
        refusals.append("memory_lives")
    if shape == "mixed" and memory < configuration.totals_memory_dead_nats:
        refusals.append("one_signal")
    return hypothesis, refusals


def _halt_rate(sign: dict[str, float], configuration: Configuration) -> str:
    """Return the name of the error rate for a halted guest; it depends on the other evidence."""
    if sign["cpu_nats"] < configuration.totals_cpu_nats:
        return "flat_cpu"
    if sign["channels"] < 2.0 and sign["memory_nats"] < 1.0:
        return "one_channel"
    return "order"


def _hung(
    table: VmTable,
    index: int,
    sign: dict[str, float],
    seen: Picture,
    cautious: list[str],
    configuration: Configuration,
) -> Verdict | None:
    """Judge a guest whose disks stand still while it still sends, but less than before."""
    count, share, before = sign["disk_hung"], sign["sent_share"], sign["disk_cpu_before"]
    silent = sign["run"] > 0 or seen.cpu is None or not before > 0.0
    if silent or count < configuration.totals_hung_samples or not 0.0 < share < 0.75:
        return None
    ratio = (seen.cpu or 0.0) / before
    known = table.vitals[index, aggregates_layout.FIELD["disk_alive"]]
    seconds = sign["disk_run_s"]
    if ratio >= 0.6 or known < configuration.totals_alive_samples:
        return None
    if seconds < configuration.totals_hung_s:
        return None
    disk = min(sign["disk_nats"], configuration.totals_silence_cap_nats)
    cpu_nats = min(5.0, 2.0 * math.log(1.0 / max(ratio, 0.02)))
    sent_nats = min(3.0, 1.5 * math.log(1.0 / max(share, 0.05)))
    score = disk + cpu_nats + sent_nats
    plain = disk >= configuration.totals_hung_disk_nats
    plain &= score >= configuration.totals_nats("hung")
    doubtful = count >= configuration.totals_hung_doubt_samples
    doubtful &= disk >= configuration.totals_hung_doubt_disk_nats
    doubtful &= share >= configuration.totals_hung_least_share
    doubtful &= score >= configuration.totals_nats("hung_doubt")
    if not plain and not doubtful:
        return None
    refusals = list(cautious)
    if not plain:
        refusals.append("silence_usual")
    if before < configuration.hung_cpu_cores:
        # The guest was idle before: its CPU use falls to zero and its disks rest without a fault.
        refusals.append("idle_before")
    return Verdict(
        kind=Kind.HUNG_IO,
        firing=True,
        score=score,
        severity="error",
        suggestion="alert" if refusals else "migrate",
        sequence=seen.disk_sequence,
        onset_ms=seen.disk_onset_ms,
        shape="mixed",
        evidence=(
            EvidenceItem(signal="disk", value=round(seconds, 3), nats=round(disk, 3)),
            EvidenceItem(
                signal="cpu",
                value=round(seen.cpu or 0.0, 4),
                limit=round(before, 4),
                nats=round(cpu_nats, 3),
            ),
            EvidenceItem(signal="sent", value=round(share, 4), nats=round(sent_nats, 3)),
        ),
        vetoes=tuple(refusals),
    )


def _evidence(
    seen: Picture,
    sign: dict[str, float],
    silence: float,
    hypothesis: str,
    configuration: Configuration,
) -> tuple[EvidenceItem, ...]:
    return (
        EvidenceItem(
            signal="silence",
            value=round(sign["run_s"], 3),
            nats=round(silence, 3),
            text=f"No disk I/O and no network output for {sign['run_s']:.0f} s",
            witness="activity",
            minimum_nats=configuration.activity_least_nats,
        ),
        EvidenceItem(
            signal="cpu",
            value=None if seen.cpu is None else round(seen.cpu, 4),
            limit=round(sign["cpu_before"], 4),
            nats=round(sign["cpu_nats"], 3),
            text=f"CPU use was {sign['cpu_before']:.2f} cores before",
            witness="activity",
        ),
        EvidenceItem(
            signal="memory",
            nats=round(sign["memory_nats"], 3),
            text=_MEMORY[int(sign["memory_mode"])],
        ),
        EvidenceItem(
            signal="threshold",
            limit=round(configuration.totals_nats(hypothesis), 3),
            text=f"The score that the configured error rate of '{hypothesis}' requires",
        ),
    )
