"""Every constant of detection, in seconds and nats, each with its reason.

One frozen value serves all sampling intervals. Its hash is part of every alert and snapshot:
state that was learned under other constants is not continued under these.
"""

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Final, NamedTuple

import msgspec

from flatline.models.kernels import aggregates_layout, baseline, hours, silence_model, trends


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Configuration:
    """Constants of detection.

    Compare configurations by hash (`configuration_hash`). As a dictionary key an instance equals
    only itself, because caches of derived values are read in every window.

    Attributes
    ----------
    reorder_s
        Longest time that a frame ahead of its sequence waits for the missing frame.
    node_silent_intervals
        Number of intervals without a frame after which a node is no longer awaited.
    node_alert_s
        Shortest silence of a node that is reported: a restarted collector returns within it.
    clock_step_s
        Longest append time between two records that counts as passed. A longer gap is an outage
        of the log, during which no VM counts as silent.
    alert_error_rate, order_error_rate
        False alerts and false suggestions per surprising silence. The score to reach is
        `-log(rate)` (Wald's bound).
    """

    # Order of frames. Design limit: out-of-order input waits at most 30 s for its gap.
    reorder_s: float = 30.0
    reorder_frames: int = 64  # bounds memory; 30 s at 1 s sampling is half of it
    # A network that reorders does so for minutes; a single retry is forgotten earlier.
    overtaken_window_s: float = 300.0
    source_kept_s: float = 600.0  # a run that ended is dropped after the longest plausible replay
    slot_grace_share: float = 0.75  # of an interval, allowed lateness of nodes
    node_silent_intervals: float = 3.0  # two lost frames are common, three mean a silent node
    node_alert_s: float = 15.0
    clock_step_s: float = 2.5  # ticks come each second, so a longer step is an outage

    # Score thresholds.
    alert_error_rate: float = 1e-3
    order_error_rate: float = 1e-5
    # A silence with one core spinning alone has no natural counterpart (research: no false order at
    # any threshold). It is itself rarer, so a lower score suffices.
    one_core_error_rate: float = 1e-4
    prior_nats: float = 4.6  # one surprising silence in a hundred is a fault

    # Silence. Three samples, because the first may be mixed; seconds for fast sampling.
    alert_samples: int = 3
    alert_s: float = 5.0
    # A guest set to reboot itself after a panic gets the time to do so at every sampling interval:
    # panic=10 is common, firmware and boot loader take 3 to 15 s more. Three samples of 10 s, with
    # jitter.
    self_reboot_s: float = 29.0
    # A guest held as crashed cannot reboot itself: this is only the time for on_crash to act.
    told_order_s: float = 6.0
    silence_cap_nats: float = 8.0  # without a cap, a long silence would outweigh a live balloon
    silence_alert_nats: float = 2.0
    silence_order_nats: float = 3.0
    precedes_s: float = 20.0  # idle vCPUs of a live guest paused for 11 s at most
    dead_share: float = 0.5  # of a silence; half of it may be usual
    shared_nats: float = 2.8  # per VM in a shared silence: by chance once in 16
    # With this many samples in this boot epoch that moved, a standstill is significant.
    moved_samples: int = 3

    # CPU.
    level_tau_s: float = 30.0  # the level just before the silence, not a slow mean
    cpu_cap_nats: float = 4.0
    one_core_low: float = 0.80
    one_core_high: float = 1.30
    all_cores_share: float = 0.85
    # Seen in no natural silence of real fleets (research: 22 of 22 panics, no false order).
    one_core_nats: float = 3.5
    idle_share: float = 0.06
    step_cores: float = 0.25  # less is noise of a quarter of a core
    idle_step_ratio: float = 0.35  # halted: CPU falls to about a third of its level at most

    # Balloon: number of its own periods without a report.
    balloon_free_periods: float = 1.5
    balloon_nats_per_period: float = 2.0
    balloon_cap_nats: float = 7.0
    balloon_frozen_nats: float = 2.0
    # A balloon with at most this period is awaited even before an alert: one missed report
    # separates a spinning kernel from a computing job.
    balloon_prompt_s: float = 10.0
    balloon_fresh_nats: float = -10.0
    told_nats: float = 15.0

    # Witnesses, and the minimum of each. Activity already carries the score of the order. As a
    # witness it only needs to be a silence that this VM has once in twenty times.
    activity_least_nats: float = 3.0
    # Once in twenty standstills of this VM. The silence beside it is as surprising as an order
    # requires, and the two are independent: both together occur about once in a million.
    standstill_least_nats: float = 3.0
    standstill_cap_nats: float = 6.0  # a model of one day resolves at most one in 400
    # Reports of the guest are wrong only by mistake: a watchdog that a busy guest served too late,
    # a stopped guest agent, a text that was only printed.
    guest_least_nats: float = 3.0
    watchdog_nats: float = 5.0
    agent_silent_nats: float = 4.0
    console_panic_nats: float = 10.0
    # A guest that answered within ten minutes and no longer does. A card may also be disconnected.
    probe_silent_nats: float = 5.0
    probe_least_nats: float = 3.0
    probe_fresh_s: float = 600.0
    # Signs that only a live kernel gives; worth as much as a balloon that continues to report.
    life_nats: float = -10.0
    # Reports of a death arrive with the last sample before the silence at the earliest.
    said_before_s: float = 30.0
    # A silence with signs of life is alerted again, without a second witness, after as long without
    # such a sign as the silence had lasted by then, and after this time at the latest.
    lived_wait_s: float = 600.0
    # With this many signs of life within the silence, the vCPUs are a witness again when they stand
    # still for this many times the longest pause in it. With random pauses hardly one silence in
    # 1,000 has such a pause.
    lived_samples: int = 9
    lived_ratio: float = 6.0

    # Share of a core that a vCPU of a VM without I/O uses and waits for at most if it only serves
    # timers (up to 7 % in the lab, on a busy host whose emulation makes timers expensive).
    vcpu_idle_share: float = 0.1

    # Hangs: the kernel is alive, so the case is not urgent and a longer observation costs nothing.
    hung_s: float = 20.0
    hung_cap_nats: float = 8.0
    hung_level_nats: float = 1.5
    hung_cpu_ratio: float = 0.5
    hung_cpu_cores: float = 0.015  # use of an idle guest; below it no fall is measurable
    # The kind of hang changes with the node's waiting tasks: the other must last this long.
    hung_kind_s: float = 30.0
    boot_stuck_s: float = 180.0  # a slow boot with fsck takes two minutes

    # Inhibitions, with their time after the event.
    lifecycle_hold_s: float = 30.0
    # The sample of the event is mixed, and a boot affects the next ones.
    hold_samples: int = 4
    owner_reboot_hold_s: float = 300.0
    crash_dump_hold_s: float = 600.0  # dumps take minutes of writes
    # A boot has silences of its own. A guest that dies during a boot is detected after this time.
    boot_hold_s: float = 45.0
    stale_s: float = 20.0  # a frame that took this much longer than usual has old data

    # Totals alone: no per-vCPU evidence, no dated balloon. Error rates are false verdicts per
    # surprising silence; each score to reach is -log of its rate (Wald).
    totals_alert_rate: float = 1.2e-4
    # One core exactly full, or a CPU that fell with both channels: no live VM looked like this.
    totals_order_rate: float = 7e-5
    # With one channel only, the job that used it may have ended.
    totals_one_channel_rate: float = 3e-5
    # Idle before and idle now, so silence and memory alone must reach the score.
    totals_flat_cpu_rate: float = 6e-6
    # A computing job looks the same in everything but memory and duration.
    totals_all_cores_rate: float = 1e-5
    # No CPU shape supports it.
    totals_stuck_rate: float = 6e-6
    totals_silence_cap_nats: float = 12.0  # above, a silence would outweigh a live figure
    totals_silence_alert_nats: float = 4.5
    totals_silence_order_nats: float = 5.0
    # A VM that becomes idle pauses first; a death interrupts work.
    totals_halt_silence_nats: float = 6.0
    totals_active_share: float = 0.5  # of the two dozen samples before the silence
    totals_cpu_nats: float = 1.386  # a level that occurs a quarter of the time is usual
    totals_alive_samples: int = 100  # with fewer, the usual behaviour of a VM is unknown
    # Two full samples are the minimum; three at 10 s, because one flush pause is 20 s.
    totals_alert_samples: int = 2
    totals_alert_s: float = 25.0
    # A guest set to reboot itself has begun to by then (research: ≤ 3 samples of 10 s).
    totals_order_s: float = 45.0
    # Outages of two samples that end by themselves occur; of three hardly.
    totals_halt_samples: int = 3
    # Idle guests and jobs pause for two minutes. Without a memory figure only time separates them.
    totals_patient_s: float = 130.0
    # By chance a live figure stands still for two pairs of samples, hardly for three.
    totals_frozen_samples: int = 4
    totals_memory_dead_nats: float = 2.0
    totals_memory_alive_nats: float = -5.0  # excludes a death against all other evidence
    totals_memory_doubt_nats: float = -2.0
    # Real fleets had no job at minute sampling that computed this long without one byte.
    totals_all_cores_samples: int = 6
    totals_stuck_samples: int = 4
    # A VM that was not found dead by then became idle.
    totals_run_samples: int = 12
    totals_run_s: float = 300.0
    # Shared silence by totals: this many began within this many samples, by chance less than once
    # in a hundred days of a cell.
    totals_shared_members: int = 4
    totals_shared_ratio: float = 0.02
    totals_shared_samples: int = 4
    totals_shared_nats: float = 3.0
    totals_shared_alert_ratio: float = 0.2
    # Twice the longest time that a member of a shared silence in a recorded fleet took, 35 minutes.
    totals_shared_alone_s: float = 3600.0
    # Members of one incident began up to hours apart.
    totals_shared_open_s: float = 7200.0
    # With this share of the VMs of several nodes without a sample, the collectors are disturbed.
    unseen_ratio: float = 0.12
    unseen_hold_samples: int = 3

    # A hung disk of a guest that still answers. As rare as a halt where it is clear; reported
    # without a suggestion where the disk is often silent anyway.
    totals_hung_rate: float = 2.7e-5
    totals_hung_doubt_rate: float = 2e-4
    totals_hung_samples: int = 2
    # The kernel is alive, so the case is not urgent; a disk pauses for half a minute between
    # flushes.
    totals_hung_s: float = 60.0
    totals_hung_doubt_samples: int = 5
    totals_hung_disk_nats: float = 5.0
    totals_hung_doubt_disk_nats: float = 3.0
    totals_hung_least_share: float = 0.05  # below, it is the pause between two bursts

    # Trends, in means of five minutes.
    leak_rises: int = 28  # of 30; a figure that only drifts has as many falls
    leak_growth: float = 1.15
    leak_calm_rises: int = 18
    flood_buckets: int = 2
    victim_share: float = 0.75  # of its work that a neighbour still achieves
    degraded_calm_share: float = 0.7  # of its usual writing
    degraded_most_s: float = 86_400.0  # a level that lasts for a day has become usual
    boot_storm_members: int = 3

    # Fleet gate.
    gate_members: int = 3
    gate_share: float = 0.2
    # Members stop within one flush of their page caches (5 s) and two samples.
    gate_window_s: float = 12.0
    gate_earlier_s: float = 30.0  # a silence this long before the first is explained too
    # Nodes and cells are shared by all kinds of VMs, so chance requires a higher limit there.
    gate_wide_share: float = 0.3
    gate_release_share: float = 0.5  # of those that fell silent, still silent
    # Share of the VMs that usually move in a sample. Four VMs that move in every second sample stop
    # together by chance once in sixteen samples. An order then waits for one sample.
    stopped_ratio: float = 0.25
    # A VM that worked this long after a common cause began falls silent for another reason.
    gate_outlived_s: float = 600.0
    gate_grace_s: float = 20.0  # after release, before its members are judged individually again

    # Contention.
    contention_s: float = 30.0
    contention_tau_s: float = 10.0
    contention_share: float = 0.25  # part of the CPU time a VM wants that it has to wait for
    contention_cores: float = 0.15  # cores it waits for; below this it is hardly affected
    node_busy_ratio: float = 0.9
    node_psi_ratio: float = 0.3
    node_calm_ratio: float = 0.75

    # Lifecycle of incidents.
    clear_s: float = 6.0
    clear_samples: int = 2
    republish_s: float = 60.0
    # The engine sets this to the longest `stable_s` of its policy; 60 s is the default of a step.
    verify_stable_s: float = 60.0
    vm_silence_s: float = 30.0  # after a migration the target lists the VM within two windows
    vm_silence_samples: int = 2  # after the second missing sample: short gaps have two or three
    unseen_member_samples: int = 3
    host_member_s: float = 7200.0
    reboot_wait_s: float = 10.0  # a boot storm becomes visible before single reboots are reported
    reboot_window_s: float = 60.0
    resolved_kept_s: float = 900.0  # a fault that returns sooner is the same one flapping

    # A removed subject: after a day every responsible person has reacted. Where no VM is missing
    # with a silent node, an hour is longer than any reboot of it.
    forget_s: float = 86_400.0
    forget_empty_s: float = 3_600.0

    # Scores and snapshots.
    minute_s: float = 60.0

    @property
    def alert_nats(self) -> float:
        """Return the score from which an alert is raised."""
        return -math.log(self.alert_error_rate)

    def totals_nats(self, hypothesis: str) -> float:
        """Return the score from which totals alone make a verdict of this hypothesis."""
        rate: float = getattr(self, f"totals_{hypothesis}_rate")
        return -math.log(rate)

    def order_nats(self, shape: str) -> float:
        """Return the score from which an action may be suggested for this CPU shape."""
        one_core = shape == "one_core"
        return -math.log(self.one_core_error_rate if one_core else self.order_error_rate)


class Now(NamedTuple):
    """When something is judged, and under which constants.

    `time_ms` is the append time that is accepted now.
    """

    time_ms: int
    configuration: Configuration


_KERNELS = (
    *(baseline.MEAN_TAU_S, baseline.LEVEL_TAU_S, baseline.TREND_TAU_S, baseline.ERROR_TAU_S),
    *(aggregates_layout.FIELD_COUNT, aggregates_layout.WINDOW, *trends.CONSTANTS, *hours.CONSTANTS),
    *(
        baseline.FIELD_COUNT,
        silence_model.MEMORY_S,
        silence_model.EDGE_COUNT,
        silence_model.FIELD_COUNT,
    ),
)


# Configuration hashes of earlier releases. The default configuration restores their snapshots too;
# values that they do not contain are unknown at first. c9b9…: the release whose only witnesses were
# activity and balloon.
CONTINUED: Final = frozenset({"c9b90e905f6c0d81"})


@lru_cache(maxsize=16)
def configuration_hash(configuration: Configuration) -> str:
    """Return 16 hex digits that change with any constant, including those of the kernels."""
    text = msgspec.json.encode([sorted(asdict(configuration).items()), _KERNELS])
    return sha256(text).hexdigest()[:16]
