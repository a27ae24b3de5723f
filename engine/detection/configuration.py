"""Every constant of detection, in seconds and nats, each with its reason.

One frozen value for all sampling intervals. Its hash stands in every alert and snapshot: a
state learned under other constants is not continued under these.
"""

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Final

import msgspec

from models.kernels import baseline, gaps, hours, trends, vitals_layout


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Configuration:
    """What decides, besides the records themselves.

    Compared by its hash (`configuration_hash`); as a key it is itself alone, since what follows
    from it is asked for in every slot.

    Attributes
    ----------
    reorder_s
        How long a frame ahead of its sequence waits for the gap before it.
    node_silent_intervals
        After how many intervals without a frame a node is no longer waited for.
    node_alert_s
        How long a node must have been silent at least before that is told: a collector that
        is restarted is back within it.
    clock_step_s
        Append time between two records that counts as passed at most; a longer hole is an
        outage of the log, in which nobody was silent.
    alert_error_rate, order_error_rate
        False alerts and false suggestions per surprising silence: Wald's bound makes
        `-log(rate)` the score to reach.
    """

    # Order of frames. DESIGN: shuffled input waits ≤ 30 s for its gap.
    reorder_s: float = 30.0
    reorder_frames: int = 64  # bounds memory; 30 s at 1 s sampling is half of it
    # A network that shuffles does so for minutes; a retry alone is forgotten soon.
    overtaken_window_s: float = 300.0
    source_kept_s: float = 600.0  # a run that ended is forgotten after any plausible replay
    slot_grace_share: float = 0.75  # of an interval, for nodes that are late
    node_silent_intervals: float = 3.0  # two lost frames are weather, three are a node
    node_alert_s: float = 15.0
    clock_step_s: float = 2.5  # ticks come each second, so longer is a hole

    # Score thresholds.
    alert_error_rate: float = 1e-3
    order_error_rate: float = 1e-5
    # One core spinning alone in a silence has no natural twin (research: no false order at
    # any threshold), so each such silence is rarer by itself.
    one_core_error_rate: float = 1e-4
    prior_nats: float = 4.6  # one surprising silence in a hundred is a fault

    # Silence. Three samples, since the first may be mixed; seconds for fast sampling.
    alert_samples: int = 3
    alert_s: float = 5.0
    # A guest set to reboot itself after a panic must get to do it, however often it is sampled:
    # panic=10 is common, firmware and boot loader take 3 to 15 s more. Three samples of 10 s, with
    # jitter.
    self_reboot_s: float = 29.0
    # A guest held as crashed cannot reboot itself: only time for on_crash to act is needed.
    told_order_s: float = 6.0
    silence_cap_nats: float = 8.0  # unbounded, a long silence would overrule a living balloon
    silence_alert_nats: float = 2.0
    silence_order_nats: float = 3.0
    precedes_s: float = 20.0  # idle vCPUs of a living guest slept for 11 s at most
    dead_share: float = 0.5  # of a silence; half of it may be habit
    shared_nats: float = 2.8  # of each VM in a shared silence: chance has it once in 16
    # Seen this often in this boot epoch, standing still means something.
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

    # Balloon: how many of its own periods without a report.
    balloon_free_periods: float = 1.5
    balloon_nats_per_period: float = 2.0
    balloon_cap_nats: float = 7.0
    balloon_frozen_nats: float = 2.0
    # A balloon that reports this often is waited for even before an alert: one missed report
    # tells a spinning kernel from a job that computes.
    balloon_prompt_s: float = 10.0
    balloon_fresh_nats: float = -10.0
    told_nats: float = 15.0

    # Witnesses, and what each must be worth at least. Activity by itself carries the order's score;
    # here it only has to be one: a silence that this VM has once in twenty times.
    activity_least_nats: float = 3.0
    # Once in twenty of this VM's standstills, beside a silence that is as surprising as an order
    # asks for: independent, so both together are one in some million.
    standstill_least_nats: float = 3.0
    standstill_cap_nats: float = 6.0  # a model of a day knows no more than one in 400
    # What is told outright is false by mistake only: a watchdog that a busy guest did not serve
    # in time, an agent that was stopped, a text that was only printed.
    guest_least_nats: float = 3.0
    watchdog_nats: float = 5.0
    agent_silent_nats: float = 4.0
    console_panic_nats: float = 10.0
    # A guest that answered within ten minutes and does not now: cards are also cut off.
    probe_silent_nats: float = 5.0
    probe_least_nats: float = 3.0
    probe_fresh_s: float = 600.0
    # What only a kernel that lives does; as much as a balloon that goes on reporting.
    life_nats: float = -10.0
    # Words of a death come with the last sample before the silence at the earliest.
    said_before_s: float = 30.0
    # A silence in which it lived is alerted again, without a second witness, when nothing showed
    # life for as long as the silence was old by then, and after this at the latest.
    lived_wait_s: float = 600.0
    # Where they showed life within the silence that often, its vCPUs are a witness again once they
    # stand still for so many times as long as ever in it. Of gaps by chance hardly one in 1,000
    # silences has such a one.
    lived_samples: int = 9
    lived_ratio: float = 6.0

    # Of a core, what a vCPU of a VM that does no I/O uses and waits for at most if it only serves
    # timers (the lab's used up to 7 %, on a busy host whose emulation makes timers dear).
    vcpu_idle_share: float = 0.1

    # Hangs: the kernel lives, so nothing is urgent and a longer look costs nothing.
    hung_s: float = 20.0
    hung_cap_nats: float = 8.0
    hung_level_nats: float = 1.5
    hung_cpu_ratio: float = 0.5
    hung_cpu_cores: float = 0.015  # an idle guest uses that much; below it nothing can fall
    # Which hang it is hovers with the node's waiting tasks: the other must hold for so long.
    hung_kind_s: float = 30.0
    boot_stuck_s: float = 180.0  # a slow boot with fsck takes two minutes

    # Vetoes, for how long after the event.
    lifecycle_hold_s: float = 30.0
    # The sample of the event is mixed, and a boot takes its share of the next ones.
    hold_samples: int = 4
    owner_reboot_hold_s: float = 300.0
    crash_dump_hold_s: float = 600.0  # dumps take minutes of writes
    # A boot has silences of its own; whoever dies in one is found when it should be over.
    boot_hold_s: float = 45.0
    stale_s: float = 20.0  # a frame that took this much longer than usual shows the past

    # Totals alone: no per-vCPU picture, no dated balloon. Error rates are false verdicts per
    # silence that surprises; each score to reach is -log of its rate (Wald).
    totals_alert_rate: float = 1.2e-4
    # A core exactly full, or a CPU that fell with both channels at once: no twin alive.
    totals_order_rate: float = 7e-5
    # With one channel only, the job that used it may have ended.
    totals_one_channel_rate: float = 3e-5
    # Idle before and idle now, so silence and memory alone have to carry it.
    totals_flat_cpu_rate: float = 6e-6
    # A job that computes looks like it in everything but memory and duration.
    totals_all_cores_rate: float = 1e-5
    # No CPU shape speaks for it at all.
    totals_stuck_rate: float = 6e-6
    totals_silence_cap_nats: float = 12.0  # beyond, a silence would overrule a living figure
    totals_silence_alert_nats: float = 4.5
    totals_silence_order_nats: float = 5.0
    # What fades to idle pauses first; a death comes out of work.
    totals_halt_silence_nats: float = 6.0
    totals_active_share: float = 0.5  # of the two dozen samples before the silence
    totals_cpu_nats: float = 1.386  # a level it keeps a quarter of the time is its habit
    totals_alive_samples: int = 100  # below, a VM's habits are not known
    # Two full samples are the least; three at 10 s, since one flush pause is 20 s.
    totals_alert_samples: int = 2
    totals_alert_s: float = 25.0
    # A guest set to reboot itself has begun to by then (research: ≤ 3 samples of 10 s).
    totals_order_s: float = 45.0
    # Outages of two samples that end by themselves exist; of three hardly.
    totals_halt_samples: int = 3
    # Idle guests and jobs pause for two minutes; without a memory figure only time tells.
    totals_patient_s: float = 130.0
    # By chance a living figure stands still for two pairs of samples, hardly for three.
    totals_frozen_samples: int = 4
    totals_memory_dead_nats: float = 2.0
    totals_memory_alive_nats: float = -5.0  # speaks against a death whatever the rest says
    totals_memory_doubt_nats: float = -2.0
    # Jobs that compute for so long without one byte were not seen in real fleets' minutes.
    totals_all_cores_samples: int = 6
    totals_stuck_samples: int = 4
    # Who was not found dead by then fell asleep.
    totals_run_samples: int = 12
    totals_run_s: float = 300.0
    # Shared silence by totals: so many began within so many samples, by chance less than
    # once in a hundred days of a cell.
    totals_shared_members: int = 4
    totals_shared_ratio: float = 0.02
    totals_shared_samples: int = 4
    totals_shared_nats: float = 3.0
    totals_shared_alert_ratio: float = 0.2
    # Twice what the longest member of a recorded fleet's silence took, 35 minutes.
    totals_shared_alone_s: float = 3600.0
    # Members of one incident were seen to begin hours apart.
    totals_shared_open_s: float = 7200.0
    # When so many VMs of several nodes lack a sample, the collectors are disturbed.
    unseen_ratio: float = 0.12
    unseen_hold_samples: int = 3

    # A disk that hangs under a guest that still answers: as rare as a halt where it is plain,
    # told without a suggestion where the disk is often silent anyway.
    totals_hung_rate: float = 2.7e-5
    totals_hung_doubt_rate: float = 2e-4
    totals_hung_samples: int = 2
    # The kernel lives, so nothing is urgent; between two flushes a disk rests for half a minute.
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
    victim_share: float = 0.75  # of its work that a neighbour still gets done
    degraded_calm_share: float = 0.7  # of its usual writing
    degraded_most_s: float = 86_400.0  # whatever lasts for a day has become usual
    boot_storm_members: int = 3

    # Fleet gate.
    gate_members: int = 3
    gate_share: float = 0.2
    # Members stop within one flush of their page caches (5 s) and two samples.
    gate_window_s: float = 12.0
    gate_earlier_s: float = 30.0  # who fell silent this long before the first is explained too
    # Nodes and cells are shared by all kinds of VMs, so chance needs a higher bar there.
    gate_wide_share: float = 0.3
    gate_release_share: float = 0.5  # of those that fell silent, still silent
    # Of what VMs move in a sample by their habit. Four of them that move in every second sample
    # stop together by chance once in sixteen samples, and an order then waits for one sample.
    stopped_ratio: float = 0.25
    gate_grace_s: float = 20.0  # after release, before its members are judged alone again

    # Contention.
    contention_s: float = 30.0
    contention_tau_s: float = 10.0
    contention_share: float = 0.25  # of the CPU a VM wanted and waited for
    contention_cores: float = 0.15  # below this a VM hardly suffers
    node_busy_ratio: float = 0.9
    node_psi_ratio: float = 0.3
    node_calm_ratio: float = 0.75

    # Lifecycle of incidents.
    clear_s: float = 6.0
    clear_samples: int = 2
    republish_s: float = 60.0
    # What a policy's ladder asks for unless it says otherwise; it must not be less.
    verify_stable_s: float = 60.0
    vm_silence_s: float = 30.0  # a migration's target reports it within two slots
    vm_silence_samples: int = 2  # after the second missing one: short gaps are of two or three
    unseen_member_samples: int = 3
    host_member_s: float = 7200.0
    reboot_wait_s: float = 10.0  # lets a boot storm show before single reboots are told
    reboot_window_s: float = 60.0
    resolved_kept_s: float = 900.0  # a fault that returns sooner is the same one flapping

    # A subject that is gone: after a day everybody who had to react has. Where nothing is missing
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


_KERNELS = (
    *(baseline.MEAN_TAU_S, baseline.LEVEL_TAU_S, baseline.TREND_TAU_S, baseline.ERROR_TAU_S),
    *(vitals_layout.FIELD_COUNT, vitals_layout.WINDOW, *trends.CONSTANTS, *hours.CONSTANTS),
    *(baseline.FIELD_COUNT, gaps.MEMORY_S, gaps.EDGE_COUNT, gaps.FIELD_COUNT),
)


# A state that was learned under these goes on under today's: what has been added since reads what
# they did not keep as unknown. c9b9…: no witnesses but activity and balloon.
CONTINUED: Final = frozenset({"c9b90e905f6c0d81"})


@lru_cache(maxsize=16)
def configuration_hash(configuration: Configuration) -> str:
    """Return 16 hex digits that change with any constant, the kernels' own included."""
    text = msgspec.json.encode([sorted(asdict(configuration).items()), _KERNELS])
    return sha256(text).hexdigest()[:16]
