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

    Compare configurations by `configuration_hash`. An instance equals only itself, which makes it
    a cheap key of the caches that every window reads.

    Attributes
    ----------
    reorder_s
        Longest time that a frame ahead of its sequence waits for the missing frame.
    node_silent_intervals
        Number of intervals without a frame after which a node is no longer awaited.
    node_alert_s
        Shortest silence of a node that is reported. A restarted collector returns sooner.
    clock_step_s
        Longest time between the append times of two records without an outage. A longer gap is an
        outage of the log, during which no VM counts as silent.
    alert_error_rate, order_error_rate
        False alerts and false suggestions per surprising silence. The score to reach is
        `-log(rate)` (Wald's bound).
    """

    # Order of frames. A frame that arrives out of order waits at most 30 s for the missing ones.
    reorder_s: float = 30.0
    reorder_frames: int = 64  # bounds memory; 30 s at 1 s sampling is half of it
    # Period over which lateness is measured: a network that reorders frames does so for minutes.
    overtaken_window_s: float = 300.0
    source_kept_s: float = 600.0  # an ended run is dropped when repeats are no longer likely
    slot_grace_share: float = 0.75  # allowed lateness of nodes, as a share of an interval
    node_silent_intervals: float = 3.0  # two lost frames are common, three mean a silent node
    node_alert_s: float = 15.0
    clock_step_s: float = 2.5  # ticks come each second, so a longer step is an outage

    # Score thresholds.
    alert_error_rate: float = 1e-3
    order_error_rate: float = 1e-5
    # No live guest was silent with exactly one core busy (research: no false order at any
    # threshold). This combination is rare by itself, so a lower score suffices.
    one_core_error_rate: float = 1e-4
    prior_nats: float = 4.6  # one surprising silence in a hundred is a fault

    # Silence. Three samples, because the first may include activity from before the death. The
    # minimum in seconds matters at fast sampling.
    alert_samples: int = 3
    alert_s: float = 5.0
    # A guest set to reboot itself after a panic gets the time to do so at every sampling interval:
    # panic=10 is common, firmware and boot loader take 3 to 15 s more. 29 s are three samples of
    # 10 s with jitter.
    self_reboot_s: float = 29.0
    # A guest held as crashed cannot reboot itself. This is only the time for libvirt's `on_crash`.
    told_order_s: float = 6.0
    silence_cap_nats: float = 8.0  # without a cap, a long silence would outweigh a live balloon
    silence_alert_nats: float = 2.0
    silence_order_nats: float = 3.0
    # A standstill that began longer before the silence is no evidence. Idle vCPUs of a live guest
    # stood still for at most 11 s.
    precedes_s: float = 20.0
    # A halt explains a silence only if it covers at least this share of it; the rest may be usual.
    dead_share: float = 0.5
    shared_nats: float = 2.8  # of each VM in a shared silence: by chance once in 16 times
    # A silence is evidence only after this many samples with activity in this boot epoch.
    moved_samples: int = 3

    # CPU.
    level_tau_s: float = 30.0  # the level just before the silence, not a slow mean
    cpu_cap_nats: float = 4.0
    one_core_low: float = 0.80
    one_core_high: float = 1.30
    all_cores_share: float = 0.85
    # Exactly one busy core was seen in no natural silence of real fleets (research: 22 of 22
    # panics, no false order).
    one_core_nats: float = 3.5
    idle_share: float = 0.06
    step_cores: float = 0.25  # a smaller step is noise
    idle_step_ratio: float = 0.35  # halted: CPU falls to about a third of its level at most

    # Balloon. This many of its own periods without a report are no evidence yet.
    balloon_free_periods: float = 1.5
    balloon_nats_per_period: float = 2.0
    balloon_cap_nats: float = 7.0
    balloon_frozen_nats: float = 2.0
    # An alert waits for the next report of a balloon with at most this period: one missed report
    # separates a spinning kernel from a computing job.
    balloon_prompt_s: float = 10.0
    balloon_fresh_nats: float = -10.0
    told_nats: float = 15.0

    # Witnesses, and the minimum of each. The score of an order already includes activity. To count
    # as a witness, activity only needs a silence that this VM has once in twenty times.
    activity_least_nats: float = 3.0
    # A standstill that this VM has once in twenty times. The silence at the same time is as
    # surprising as an order requires. The two are independent, so both together occur about once in
    # a million times.
    standstill_least_nats: float = 3.0
    standstill_cap_nats: float = 6.0  # a model of one day resolves at most one in 400
    # A report of the guest can be wrong: a busy guest served its watchdog too late, its guest agent
    # was stopped, or a program only printed the text of a panic.
    guest_least_nats: float = 3.0
    watchdog_nats: float = 5.0
    agent_silent_nats: float = 4.0
    console_panic_nats: float = 10.0
    # The guest answered a probe within the last ten minutes and no longer does. The cause may also
    # be a disconnected network card.
    probe_silent_nats: float = 5.0
    probe_least_nats: float = 3.0
    probe_fresh_s: float = 600.0
    # Signs that only a live kernel gives; worth as much as a balloon that continues to report.
    life_nats: float = -10.0
    # A report of a death counts if it came at most this long before the onset of the silence.
    said_before_s: float = 30.0
    # After a sign of life, a silence without a second witness is alerted again when no further sign
    # came for as long as the silence had lasted at that sign, or for this time if that is shorter.
    lived_wait_s: float = 600.0
    # After at least `lived_samples` signs of life in a silence, the vCPUs are a witness again when
    # they stand still for `lived_ratio` times their longest pause in it. With random pauses hardly
    # one silence in 1,000 has such a pause.
    lived_samples: int = 9
    lived_ratio: float = 6.0

    # A vCPU of a VM without I/O only serves timers if it uses and waits for at most this share of a
    # core. The lab measured up to 7 %, on a busy host whose emulation makes timers expensive.
    vcpu_idle_share: float = 0.1

    # Hangs: the kernel is alive, so the case is not urgent and a longer observation costs nothing.
    hung_s: float = 20.0
    hung_cap_nats: float = 8.0
    hung_level_nats: float = 1.5
    hung_cpu_ratio: float = 0.5
    hung_cpu_cores: float = 0.015  # use of an idle guest; below it no fall is measurable
    # Whether tasks of the node wait for I/O decides the kind of a hang, and this may change.
    # Another kind must last this long before it replaces the published one.
    hung_kind_s: float = 30.0
    boot_stuck_s: float = 180.0  # a slow boot with fsck takes two minutes

    # Inhibitions, with their time after the event.
    lifecycle_hold_s: float = 30.0
    # Minimum in samples: the sample of the event includes activity from before it, and a boot
    # affects the next ones.
    hold_samples: int = 4
    owner_reboot_hold_s: float = 300.0
    crash_dump_hold_s: float = 600.0  # dumps take minutes of writes
    # A boot has silences of its own. A guest that dies during a boot is detected after this time.
    boot_hold_s: float = 45.0
    stale_s: float = 20.0  # a frame that took this much longer than usual has old data

    # Totals alone: no per-vCPU times, no balloon reports with a time. Error rates are false
    # verdicts per surprising silence; each score to reach is -log of its rate (Wald).
    totals_alert_rate: float = 1.2e-4
    # Exactly one core is full, or the CPU fell when both channels (disks and network) stopped: no
    # live VM looked like this.
    totals_order_rate: float = 7e-5
    # Only disks or only the network were in use before: the job that used them may have ended.
    totals_one_channel_rate: float = 3e-5
    # The CPU was idle before and is idle now, so silence and memory alone must reach the score.
    totals_flat_cpu_rate: float = 6e-6
    # All cores are full: a computing job differs from a death only in memory and duration.
    totals_all_cores_rate: float = 1e-5
    # The CPU shape is mixed, so only silence and memory support a death.
    totals_stuck_rate: float = 6e-6
    totals_silence_cap_nats: float = 12.0  # above, a silence would outweigh a live figure
    totals_silence_alert_nats: float = 4.5
    totals_silence_order_nats: float = 5.0
    # A VM that becomes idle pauses before, so its silence surprises less. A death interrupts work.
    totals_halt_silence_nats: float = 6.0
    totals_active_share: float = 0.5  # active share of the 24 samples before the silence
    totals_cpu_nats: float = 1.386  # a level that occurs a quarter of the time is usual
    totals_alive_samples: int = 100  # with fewer, the usual behaviour of a VM is unknown
    # Two full samples are the minimum. At 10 s, `totals_alert_s` requires three, because disks
    # pause for 20 s between two flushes.
    totals_alert_samples: int = 2
    totals_alert_s: float = 25.0
    # A guest set to reboot itself has begun to by then (research: ≤ 3 samples of 10 s).
    totals_order_s: float = 45.0
    # Outages that end by themselves after two samples occur; after three samples hardly any do.
    totals_halt_samples: int = 3
    # Idle guests and jobs pause for two minutes. Without a memory figure, only time separates them
    # from a death.
    totals_patient_s: float = 130.0
    # By chance the memory figure of a live guest stands still for two pairs of successive samples,
    # hardly for three.
    totals_frozen_samples: int = 4
    totals_memory_dead_nats: float = 2.0
    totals_memory_alive_nats: float = -5.0  # at or below it, a death is excluded in any case
    totals_memory_doubt_nats: float = -2.0
    # In real fleets sampled each minute, no job computed this long without any I/O.
    totals_all_cores_samples: int = 6
    totals_stuck_samples: int = 4
    # A VM that is silent for longer became idle: a death would have been found earlier.
    totals_run_samples: int = 12
    totals_run_s: float = 300.0
    # Silence shared by several VMs, by totals: at least this many VMs, and this share of the active
    # ones, fell silent within this many samples. By chance this occurs less than once in a hundred
    # days of a cell.
    totals_shared_members: int = 4
    totals_shared_ratio: float = 0.02
    totals_shared_samples: int = 4
    totals_shared_nats: float = 3.0
    totals_shared_alert_ratio: float = 0.2
    # A member of a shared silence is judged individually after this time. The longest such silence
    # of a member in a recorded fleet lasted 35 minutes.
    totals_shared_alone_s: float = 3600.0
    # Members of one incident began up to hours apart.
    totals_shared_open_s: float = 7200.0
    # With this share of the VMs of several nodes without a sample, the collectors are disturbed.
    unseen_ratio: float = 0.12
    unseen_hold_samples: int = 3

    # A hung disk of a guest that still sends. A clear case needs about the score of a halt. Where
    # the disk is often silent anyway, the case is doubtful and reported without a suggestion.
    totals_hung_rate: float = 2.7e-5
    totals_hung_doubt_rate: float = 2e-4
    totals_hung_samples: int = 2
    # The kernel is alive, so the case is not urgent; a disk pauses for half a minute between
    # flushes.
    totals_hung_s: float = 60.0
    totals_hung_doubt_samples: int = 5
    totals_hung_disk_nats: float = 5.0
    totals_hung_doubt_disk_nats: float = 3.0
    totals_hung_least_share: float = 0.05  # of its usual sending; less is a pause between bursts

    # Trends, in means of five minutes.
    leak_rises: int = 28  # of 30; a figure that only drifts has as many falls
    leak_growth: float = 1.15
    leak_calm_rises: int = 18
    flood_buckets: int = 2
    victim_share: float = 0.75  # a neighbour below this share of its usual work is a victim
    degraded_calm_share: float = 0.7  # at this share of its usual writing the fault ends
    degraded_most_s: float = 86_400.0  # a level that lasts for a day has become usual
    boot_storm_members: int = 3

    # Gate: correlated failures.
    gate_members: int = 3
    gate_share: float = 0.2
    # Members stop within one flush interval of their page caches (5 s) and two samples.
    gate_window_s: float = 12.0
    # A cause does not explain a silence that was published and began more than this time before it.
    gate_earlier_s: float = 30.0
    # For nodes and cells. All kinds of VMs share them, so more VMs fall silent together by chance.
    gate_wide_share: float = 0.3
    # A cause ends when less than this share of the VMs that fell silent is still silent.
    gate_release_share: float = 0.5
    # A shared resource has just stopped if less than this share of the expected number of VMs moved
    # in a sample. Four VMs that move in every second sample stop together by chance once in sixteen
    # samples. An order then waits for one sample.
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
    # Intervals since the first missing sample. Short gaps have two or three missing samples.
    vm_silence_samples: int = 2
    unseen_member_samples: int = 3
    host_member_s: float = 7200.0
    reboot_wait_s: float = 10.0  # a boot storm becomes visible before single reboots are reported
    reboot_window_s: float = 60.0
    resolved_kept_s: float = 900.0  # a fault that returns sooner is the same one flapping

    # A silent node counts as removed after a day, in which every responsible person has reacted. If
    # no VM is missing with it, an hour suffices, which is longer than any reboot of a node.
    forget_s: float = 86_400.0
    forget_empty_s: float = 3_600.0

    # Scores and snapshots.
    minute_s: float = 60.0

    @property
    def alert_nats(self) -> float:
        """Return the score in nats from which an alert is raised."""
        return -math.log(self.alert_error_rate)

    def totals_nats(self, hypothesis: str) -> float:
        """Return the score in nats from which totals alone make a verdict of this hypothesis.

        `hypothesis` is the name of a field `totals_{hypothesis}_rate`, such as "order" or "stuck".
        """
        rate: float = getattr(self, f"totals_{hypothesis}_rate")
        return -math.log(rate)

    def order_nats(self, shape: str) -> float:
        """Return the score in nats from which an action may be suggested for this CPU shape.

        `shape` is a `CpuShape`; only "one_core" has a limit of its own.
        """
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


# Configuration hashes of earlier releases. The default configuration also restores snapshots with
# these hashes; values that such a snapshot lacks are unknown at first. c9b9…: the release whose
# only witnesses were activity and balloon.
CONTINUED: Final = frozenset({"c9b90e905f6c0d81"})


@lru_cache(maxsize=16)
def configuration_hash(configuration: Configuration) -> str:
    """Return 16 hex digits that change with any constant, including those of the kernels."""
    text = msgspec.json.encode([sorted(asdict(configuration).items()), _KERNELS])
    return sha256(text).hexdigest()[:16]
