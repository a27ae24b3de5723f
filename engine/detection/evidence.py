"""Weigh the signals of one VM, in nats, for and against the death of its guest.

`rates` computes rates, silences and levels for a whole node in one pass. This module reads them
for the few VMs with a surprising silence.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatline.engine.detection.cell import Cell, Node, Vm
from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.vm_table import F, I, VmTable
from flatline.engine.wire.alert import CpuShape, EvidenceItem
from flatline.engine.wire.metrics import VM_STATES
from flatline.models.kernels import silence_model
from flatline.models.kernels.blocks import BLOCK_ROWS

_CRASHED = VM_STATES.index("crashed")
_PAUSED = tuple(
    VM_STATES.index(name) for name in ("paused", "shutdown", "shut_off", "pm_suspended")
)

# Limits in cores for load that moves to one vCPU: its gain, the loss of all others together, and
# the use of all others together that counts as idle.
_BUSIEST_STEP = 0.3
_OTHERS_STEP = 0.15
_OTHERS_IDLE = 0.06
# If a guest waited for at least this many cores, the text says "Requested" instead of "Used".
_WAITED_CORES = 0.05


class Stillness(NamedTuple):
    """Standstill of some vCPUs or of KVM's counts: its state, length and evidence.

    `reported` is the result of the last sample, one of `standstill.STILL`, `MOVED` and `UNKNOWN`.
    """

    reported: int
    run_s: float
    nats: float


class Lived(NamedTuple):
    """Signs of life in the current silence, after it had become surprising.

    `samples` counts the samples with a sign of life, and `ago_s` is the time since the last one.
    `moved_s` is the time since the vCPUs last gained time, by a sign of life or by work right after
    one. `longest_s` is the longest time between two such gains.
    """

    samples: int
    ago_s: float
    longest_s: float
    moved_s: float


class Picture(NamedTuple):
    """Evidence snapshot of one VM at one window; times in seconds, CPU in cores, None is unknown.

    `cpu` is the sum of the cores that the guest used and those that it waited for; `waited` is only
    the second part. `cpu_before` is this sum before the silence, `used_before` only its first part.
    """

    run_s: float
    run_samples: int
    run_sequence: int
    onset_ms: int
    silence_nats: float
    longest_s: float
    disk_run_s: float
    disk_samples: int
    disk_sequence: int
    disk_onset_ms: int
    disk_nats: float
    tx_still_s: float
    tx_share: float
    cpu: float | None
    waited: float
    cpu_before: float
    used_before: float
    busiest: float
    busiest_before: float
    level_nats: float
    vcpus: int
    shape: CpuShape
    moved: int
    balloon_moved: int
    balloon_fresh: int
    balloon_still_s: float
    balloon_period_s: float
    state: int
    job_active: bool
    reported: str
    reported_s: float
    epoch_s: float
    history_s: float
    dt_s: float
    others: Stillness
    whole: Stillness
    exits: Stillness
    lived: Lived | None
    said: tuple[str, ...]
    answered: tuple[str, ...]
    probe_silent: bool

    @property
    def crashed(self) -> bool:
        """Whether the hypervisor holds the VM as crashed."""
        return self.state == _CRASHED

    @property
    def balloon_known(self) -> bool:
        """Whether the balloon reported often enough in this boot epoch that a gap is evidence."""
        return self.balloon_moved >= 2 and self.balloon_period_s > 0


def picture(
    node: Node, table: VmTable, index: int, vm: Vm, configuration: Configuration
) -> Picture:
    """Return the evidence snapshot of the VM in row `index` of its node's table."""
    # All figures are converted at once: converting a single one costs as much.
    figures: list[float] = table.floats[:, index].tolist()
    numbers: list[int] = table.integers[:, index].tolist()
    cpu, busiest = figures[F["cpu"]], figures[F["busiest"]]
    vcpus = numbers[I["vcpus"]]
    count = vcpus if vcpus > 0 else vm.vcpus or 1
    waited = 0.0 if math.isnan(figures[F["delay"]]) else figures[F["delay"]]
    wanted = None if math.isnan(cpu) else cpu + waited
    run_samples = numbers[I["run_samples"]]
    # Without a silent sample a reported fault starts now. The stored onset is that of an earlier
    # silence.
    run_sequence, onset_ms = node.sequence, node.event_ms
    if run_samples:
        run_sequence = numbers[I["run_sequence"]]
        onset_ms = numbers[I["onset_ms"]]
    return Picture(
        run_s=float(table.life[0, index]),
        run_samples=run_samples,
        run_sequence=run_sequence,
        onset_ms=onset_ms,
        silence_nats=float(table.life[1, index]),
        longest_s=longest_gap_s(table, index),
        disk_run_s=float(table.disk[0, index]),
        disk_samples=numbers[I["disk_samples"]],
        disk_sequence=numbers[I["disk_sequence"]],
        disk_onset_ms=numbers[I["disk_onset_ms"]],
        disk_nats=float(table.disk[1, index]),
        tx_still_s=figures[F["tx_still_s"]],
        tx_share=figures[F["tx_share"]],
        cpu=wanted,
        waited=waited,
        cpu_before=figures[F["cpu_before"]],
        used_before=figures[F["used_before"]],
        busiest=busiest,
        busiest_before=figures[F["busiest_before"]],
        level_nats=figures[F["cpu_nats"]],
        vcpus=count,
        shape=cpu_shape(
            cpu=wanted,
            vcpus=count,
            busy=numbers[I["vcpus_busy"]],
            busiest=busiest,
            configuration=configuration,
        ),
        moved=numbers[I["moved"]],
        balloon_moved=numbers[I["balloon_moved"]],
        balloon_fresh=numbers[I["balloon_fresh"]],
        balloon_still_s=figures[F["balloon_still_s"]],
        balloon_period_s=max(figures[F["balloon_period_s"]], float(vm.balloon_period_s))
        if numbers[I["balloon_moved"]]
        else 0.0,
        state=numbers[I["state"]],
        job_active=numbers[I["job_active"]] > 0,
        reported=vm.reported,
        reported_s=(node.seen_ms - vm.reported_ms) / 1000 if vm.reported else math.inf,
        epoch_s=figures[F["epoch_s"]],
        history_s=figures[F["history_s"]],
        dt_s=node.dt_s,
        others=_stillness(table, 0, table.others, index),
        whole=_stillness(table, 1, table.whole, index),
        exits=_stillness(table, 2, table.exits, index),
        lived=_lived(node, numbers) if run_samples else None,
        said=_said(vm, onset_ms, configuration),
        answered=_answered(vm, onset_ms),
        probe_silent=vm.probe_silent_ms > 0 and vm.probe_silent_ms >= onset_ms,
    )


def _stillness(table: VmTable, row: int, out: NDArray[np.float32], index: int) -> Stillness:
    return Stillness(int(table.stills[row, index]), float(out[0, index]), float(out[1, index]))


def note_life(
    node: Node, table: VmTable, index: int, seen: Picture, *, is_sign: bool = True
) -> Picture:
    """Record a sign of life within the current silence and return the updated snapshot.

    With `is_sign` False record only that the vCPUs gained time, which ends their standstill.
    """
    now_ms, before = node.event_ms, seen.lived
    longest_s = 0.0 if before is None else max(before.longest_s, before.moved_s)
    kept = {
        "lived_onset_ms": seen.onset_ms,
        "lived_moved_ms": now_ms,
        "lived_longest_ms": round(1000 * longest_s),
    }
    if is_sign:
        kept["lived_ms"] = now_ms
        kept["lived_samples"] = 1 if before is None else before.samples + 1
    for name, value in kept.items():
        table.integers[I[name], index] = value
    return seen._replace(lived=_lived(node, table.integers[:, index].tolist()))


def _lived(node: Node, numbers: list[int]) -> Lived | None:
    if numbers[I["lived_onset_ms"]] != numbers[I["onset_ms"]]:
        return None
    lived_ms = numbers[I["lived_ms"]]
    moved_ms = max(lived_ms, numbers[I["lived_moved_ms"]])
    return Lived(
        samples=numbers[I["lived_samples"]],
        ago_s=(node.event_ms - lived_ms) / 1000,
        longest_s=numbers[I["lived_longest_ms"]] / 1000,
        moved_s=(node.event_ms - moved_ms) / 1000,
    )


def _said(vm: Vm, onset_ms: int, configuration: Configuration) -> tuple[str, ...]:
    """Return the reports of the guest since about the onset; earlier ones are obsolete."""
    since_ms = onset_ms - round(configuration.said_before_s * 1000)
    return tuple(sorted(kind for kind, said_ms in vm.said.items() if said_ms >= since_ms))


def _answered(vm: Vm, onset_ms: int) -> tuple[str, ...]:
    """Return the sources that answered after the onset: only a live guest answers."""
    answers = {"probe": vm.probe_answered_ms, "guest agent": vm.agent_answered_ms}
    taken_back = {"probe": vm.probe_silent_ms, "guest agent": vm.said.get("agent_silent", 0)}
    return tuple(
        who
        for who, answered_ms in answers.items()
        if answered_ms > onset_ms and answered_ms >= taken_back[who]
    )


def longest_gap_s(table: VmTable, index: int) -> float:
    """Return an upper bound in seconds of all past silences of this VM; 0 if none was seen."""
    block, position = divmod(index, BLOCK_ROWS)
    survived: list[float] = table.gaps[block, silence_model.SURVIVED :, position].tolist()
    edges = len(survived)
    while edges and not survived[edges - 1] > 0:
        edges -= 1
    return float(2**edges) if edges else 0.0


def cpu_shape(
    *,
    cpu: float | None,
    vcpus: int,
    busy: int,
    busiest: float,
    configuration: Configuration,
) -> CpuShape:
    """Classify the CPU use of a VM, which includes the cores that it waited for.

    A guest with one vCPU that uses it fully is `all_cores`: there is no other vCPU to compare.

    Parameters
    ----------
    cpu
        Use in cores; None if unknown, which gives "unknown".
    vcpus
        Number of vCPUs.
    busy
        Number of busy vCPUs, -1 if unknown.
    busiest
        Use of the busiest vCPU in cores, NaN if unknown.
    """
    if cpu is None:
        return "unknown"
    if cpu <= configuration.idle_share * max(1.0, min(vcpus, 2)):
        return "idle"
    if cpu >= configuration.all_cores_share * vcpus:
        return "all_cores"
    one = configuration.one_core_low <= cpu <= configuration.one_core_high
    alone = busy in {-1, 1} and (math.isnan(busiest) or busiest >= 0.6)
    return "one_core" if one and alone else "mixed"


def silence_item(seen: Picture, configuration: Configuration) -> EvidenceItem:
    """Return the evidence of the silence of disks and transmit of this VM."""
    nats = min(seen.silence_nats, configuration.silence_cap_nats)
    return EvidenceItem(
        signal="silence",
        value=round(seen.run_s, 3),
        nats=round(nats, 3),
        text=f"No disk I/O and no network output for {seen.run_s:.0f} s",
        witness="activity",
        minimum_nats=configuration.activity_least_nats,
    )


def cpu_item(seen: Picture, configuration: Configuration) -> EvidenceItem:
    """Return the evidence of the CPU shape: 0 nats where the level was the same before."""
    cpu = seen.cpu if seen.cpu is not None else math.nan
    use = "Requested" if seen.waited >= _WAITED_CORES else "Used"
    texts = {
        "idle": "CPU use is zero",
        "one_core": f"{use} one vCPU at 100 %",
        "all_cores": f"{use} all vCPUs at 100 %",
        "mixed": f"{use} {cpu:.1f} cores",
        "unknown": "CPU use is unknown",
    }
    nats = 0.0
    if stepped(seen, configuration):
        floor = configuration.one_core_nats if seen.shape == "one_core" else 0.0
        nats = max(floor, min(seen.level_nats, configuration.cpu_cap_nats))
    before = f"{seen.cpu_before:.2f} cores before"
    return EvidenceItem(
        signal="cpu",
        value=None if seen.cpu is None else round(seen.cpu, 4),
        limit=round(seen.cpu_before, 4),
        nats=round(nats, 3),
        text=f"{texts[seen.shape]} ({before})",
        witness="activity",
    )


def stepped(seen: Picture, configuration: Configuration) -> bool:
    """Return whether the CPU stepped to its level at the onset of the silence."""
    if seen.cpu is None:
        return False
    if seen.shape == "idle":
        return fell(seen, configuration.idle_step_ratio)
    if seen.cpu - seen.cpu_before >= configuration.step_cores:
        return True
    # Load that moved from several vCPUs to one is a step too, although its sum is unchanged.
    others = seen.cpu - seen.busiest
    others_before = seen.cpu_before - seen.busiest_before
    return seen.shape == "one_core" and (
        seen.busiest - seen.busiest_before >= _BUSIEST_STEP
        or (others <= _OTHERS_IDLE and others_before - others >= _OTHERS_STEP)
    )


def fell(seen: Picture, ratio: float) -> bool:
    """Return whether the CPU fell to at most `ratio` of its level before the silence.

    Both what the guest used and what it wanted must fall: an idle guest wants less as soon as its
    neighbours stop, and a busy one uses less as soon as they start.
    """
    if seen.cpu is None:
        return False
    used = seen.cpu - seen.waited
    # 0 is unknown: a silence that began under an earlier release.
    used_before = seen.used_before or math.inf
    return seen.cpu <= ratio * seen.cpu_before and used <= ratio * used_before


def explanations(vm: Vm, *, state: int, job_active: bool, time_ms: int) -> list[str]:
    """Return the reasons that explain a VM's silence: its inhibitions, a pause, a running job.

    `state` is an index into `VM_STATES`, -1 if unknown; `time_ms` is append time.
    """
    explained = vm.inhibited_by(time_ms)
    if state in _PAUSED:
        explained.append("paused")
    if job_active:
        explained.append("job_active")
    return explained


def vetoes(
    cell: Cell, node: Node, vm: Vm, seen: Picture, *, time_ms: int
) -> tuple[list[str], list[str]]:
    """Return the reasons that explain the silence, and those that only forbid a suggestion.

    `time_ms` is append time.
    """
    explained = explanations(vm, state=seen.state, job_active=seen.job_active, time_ms=time_ms)
    if seen.crashed or seen.reported in {"panicked", "crashed"}:
        # The crash itself paused or stopped this VM, not an operator.
        explained = [reason for reason in explained if reason not in {"paused", "stopped"}]
    cautious = ["boot"] if "boot" in explained else []
    explained = [reason for reason in explained if reason != "boot"]
    if vm.twice:
        cautious.append("runs_twice")
    if node.runs.are_several(now_ms=cell.passed_ms, interval_ms=node.interval_ms):
        cautious.append("several_collectors")
    if node.stale or time_ms < cell.outage_ms:
        cautious.append("log_outage")
    if time_ms < cell.disturbed_ms:
        cautious.append("collectors_disturbed")
    return sorted(set(explained)), cautious
