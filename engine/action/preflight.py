"""The agent's preflight check: whether samples of the live VM confirm an order.

Nothing overrides a refusal. A value that is not visible counts as the worst case. No statement in
an order relaxes a rule; only reports of this node's own hypervisor do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple
from uuid import UUID

from flatline.engine.action.actions import DESTRUCTIVE, ByAction
from flatline.engine.action.preflight_sentences import SENTENCES
from flatline.engine.action.request_context import CLOCK_SLACK_MS
from flatline.engine.action.witness_checks import (
    dead_vcpus,
    gained,
    is_crashed,
    lacking,
    reports_crash,
    witnesses,
)
from flatline.engine.preflight_data import PreflightSample, Signs
from flatline.engine.wire.alert import Counted, CpuShape
from flatline.engine.wire.order import Order

# All samples of a check lie within this time before the call: older ones may be outdated.
PREFLIGHT_WINDOW_S: Final = 10.0

# A vCPU that spins in a panic uses a whole core, less what the host takes on a busy node. At least
# half a core counts as spinning, and at most a tenth of a core as standing still.
_BUSY_RATIO: Final = 0.5
_IDLE_RATIO: Final = 0.1

# Counters that only a live guest moves: a dead kernel neither reads, writes nor sends. Received
# traffic is excluded, because the network card of a panicked guest continues to count it.
_LIFE: Final[tuple[tuple[str, Callable[[PreflightSample], int | None]], ...]] = (
    ("disk-write requests", lambda sample: sample.block_wr_reqs),
    ("written bytes", lambda sample: sample.block_wr_bytes),
    ("disk-read requests", lambda sample: sample.block_rd_reqs),
    ("transmitted packets", lambda sample: sample.net_tx_pkts),
)


# Counters that only a live guest moves, and whose values at the engine's verdict an order contains.
_JUDGED: Final[tuple[tuple[str, Callable[[PreflightSample | Counted], int | None]], ...]] = (
    ("written bytes", lambda seen: seen.block_wr_bytes),
    ("read bytes", lambda seen: seen.block_rd_bytes),
    ("transmitted bytes", lambda seen: seen.net_tx_bytes),
)


class Verdict(NamedTuple):
    """Whether the preflight check allows the order to be carried out; `rule` names the sentence.

    If a destructive action is allowed, `witnesses` are the independent signs of death that this
    node sees.
    """

    agrees: bool
    rule: str
    sentence: str
    witnesses: tuple[str, ...] = ()


_Said = tuple[str, Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Seen:
    """The input of a rule; the fields are the parameters of `judge`."""

    order: Order
    samples: Sequence[PreflightSample]
    gap_s: float
    age_s: float
    signs: Signs
    newborn_s: float

    @property
    def span_s(self) -> float:
        """The time between the first and the last sample, s."""
        return (self.samples[-1].mono_ns - self.samples[0].mono_ns) / 1e9 if self.samples else 0.0

    @property
    def crashed(self) -> bool:
        """Whether this node's hypervisor reported the VM as crashed in every sample."""
        return bool(self.samples) and all(is_crashed(sample) for sample in self.samples)

    @property
    def reported(self) -> bool:
        """Whether the hypervisor or the guest's own device reported the crash to this node."""
        heard = bool(self.samples) and all(
            reports_crash(sample, self.signs) for sample in self.samples
        )
        return self.crashed or heard


def judge(
    order: Order,
    samples: Sequence[PreflightSample],
    *,
    gap_s: float,
    age_s: float,
    signs: Signs,
    newborn_s: float,
) -> Verdict:
    """Return whether these samples of the live VM allow `order` to be carried out now.

    Parameters
    ----------
    order
        The order to check.
    samples
        Samples of the VM, oldest first.
    gap_s
        The least time between the first and the last sample.
    age_s
        How long ago the first sample was requested, by the agent's own monotonic clock.
    signs
        The guest's signs of life, recorded by the node's own guest probing, as of the last sample.
    newborn_s
        The history that a VM must have, unless this node received a report of its crash.
    """
    seen = Seen(order, samples, gap_s, age_s, signs, newborn_s)
    rules = RULES.get(order.action)
    if rules is None:
        return _refusal("no_look", {"action": order.action})
    for rule in (*EVERY_ACTION, *rules):
        said = rule(seen)
        if said is not None:
            return _refusal(*said)
    what = f"{samples[-1].state}, vCPUs {shape(samples)}, observed for {seen.span_s:.1f} s"
    found = _witnesses(seen) if order.action in DESTRUCTIVE else ()
    sentence = SENTENCES["agreed"].format(seen=what, witnesses=", ".join(found) or "none required")
    return Verdict(True, "agreed", sentence, found)


def last_check(
    order: Order, samples: Sequence[PreflightSample]
) -> Callable[[PreflightSample], str | None]:
    """Return the check of the sample right before the call.

    The check returns a sentence to forbid the call, None to allow it. To pass, the sample must
    equal the last one of `samples` in all counters that only a live guest moves. `samples` are
    those that `judge` allowed, oldest first.
    """

    def check(last: PreflightSample) -> str | None:
        # Gap, age and signs of life are not checked again.
        both = Seen(order, (samples[-1], last), 0.0, 0.0, Signs(), 0.0)
        since = Seen(order, (samples[0], last), 0.0, 0.0, Signs(), 0.0)
        rules = LAST_RULES.get(order.action, (_never,))
        for rule in (_same_vm, _same_run, _same_owner, _open_to_actions, _not_booted, *rules):
            said = rule(since if rule is _dead_vcpus_stand_still else both)
            if said is not None:
                return SENTENCES[said[0]].format(**said[1])
        return None

    return check


def shape(samples: Sequence[PreflightSample]) -> CpuShape:
    """Return how the vCPUs behaved between the first and the last sample; "unknown" without times.

    If one vCPU spins and all others are idle, the shape is `one_core`. For a VM with a single vCPU,
    `_same_shape` also accepts `all_cores`.
    """
    shares = _shares(samples)
    busy = sum(share >= _BUSY_RATIO for share in shares)
    idle = sum(share <= _IDLE_RATIO for share in shares)
    if not shares:
        return "unknown"
    if idle == len(shares):
        return "idle"
    if busy == 1 and busy + idle == len(shares):
        return "one_core"
    return "all_cores" if busy == len(shares) else "mixed"


def left_by_reset(sample: PreflightSample, *, instance: int | None) -> bool:
    """Return whether this run of the VM was reset after its own crash and waits for its resume.

    A pause by a person has another reason, and a crash without a reset has another state.
    `instance` is the run of the VM in the order; None (an entry of an earlier release) matches
    none.
    """
    paused = sample.state == "paused" and sample.state_reason == "crashed"
    return paused and sample.instance == instance and not sample.opted_out


def _shares(samples: Sequence[PreflightSample]) -> list[float]:
    """Return the share of a core that each vCPU wanted; empty is unknown.

    Time spent waiting for a core counts as wanted, as in the detector: on a full node a spinning
    vCPU gets less than half a core.
    """
    first, last = samples[0], samples[-1]
    span_ns = last.mono_ns - first.mono_ns
    used = gained(first.vcpu_time_ns, last.vcpu_time_ns)
    waited = gained(first.vcpu_delay_ns, last.vcpu_delay_ns)
    if len(waited) != len(used):
        waited = [0] * len(used)
    if span_ns <= 0 or min([*used, *waited], default=0) < 0:
        return []
    return [sum(both) / span_ns for both in zip(used, waited, strict=True)]


def _refusal(rule: str, values: Mapping[str, object]) -> Verdict:
    return Verdict(False, rule, SENTENCES[rule].format(**values))


def _enough(seen: Seen) -> _Said | None:
    in_order = all(before.mono_ns <= after.mono_ns for before, after in pairwise(seen.samples))
    if len(seen.samples) < 2 or seen.span_s < seen.gap_s or not in_order:
        return "too_few", {"count": len(seen.samples), "gap_s": seen.span_s, "need_s": seen.gap_s}
    if seen.age_s > PREFLIGHT_WINDOW_S:
        return "too_old", {"age_s": seen.age_s, "limit_s": PREFLIGHT_WINDOW_S}
    return None


def _same_vm(seen: Seen) -> _Said | None:
    ordered = UUID(seen.order.vm).bytes
    return None if all(sample.vm == ordered for sample in seen.samples) else ("other_vm", {})


def _same_run(seen: Seen) -> _Said | None:
    for sample in seen.samples:
        if sample.instance != seen.order.instance:
            return "other_run", {"seen": sample.instance, "ordered": seen.order.instance}
    return None


def _same_owner(seen: Seen) -> _Said | None:
    """Refuse if the owner in the live definition differs from that in the order.

    The policy was applied to the tenant in the order, so the live VM must have the same tenant.
    """
    ordered = seen.order.tenant, seen.order.group
    for sample in seen.samples:
        if (sample.tenant, sample.group) != ordered:
            names = {"seen": _owner(sample.tenant, sample.group), "ordered": _owner(*ordered)}
            return "other_owner", names
    return None


def _owner(tenant: str | None, group: str | None) -> str:
    return f"tenant {tenant!r} and group {group!r}"


def _open_to_actions(seen: Seen) -> _Said | None:
    return ("opted_out", {}) if any(sample.opted_out for sample in seen.samples) else None


def _monitor_answers(seen: Seen) -> _Said | None:
    answers = all(sample.monitor_answered is True for sample in seen.samples)
    return None if answers else ("monitor", {})


def _no_job(seen: Seen) -> _Said | None:
    return None if all(sample.job_active is False for sample in seen.samples) else ("job", {})


def _not_booted(seen: Seen) -> _Said | None:
    """Refuse if the VM was reset or rebooted meanwhile, even if no other counter has moved yet."""
    return ("booted", {}) if len({sample.boots_seen for sample in seen.samples}) > 1 else None


def _running(seen: Seen) -> _Said | None:
    return _needs_state(seen, ("running",))


def _running_or_crashed(seen: Seen) -> _Said | None:
    return _needs_state(seen, ("running", "crashed"))


def _same_state(seen: Seen) -> _Said | None:
    """Refuse if the VM left its state, for instance because it was resumed after its crash."""
    first, last = seen.samples[0], seen.samples[-1]
    if (first.state, first.state_reason) == (last.state, last.state_reason):
        return None
    return "state", {"seen": last.state, "action": seen.order.action, "needed": first.state}


def _needs_state(seen: Seen, needed: tuple[str, ...]) -> _Said | None:
    for sample in seen.samples:
        # A VM that its own crash paused counts as crashed.
        state = "crashed" if is_crashed(sample) else sample.state
        if state not in needed or sample.state_reason == "unknown":
            why = " for an unknown reason" if sample.state_reason == "unknown" else ""
            values = {"seen": sample.state + why, "action": seen.order.action}
            return "state", values | {"needed": " or ".join(needed)}
    return None


def _stands_still(seen: Seen) -> _Said | None:
    """Refuse if a counter moved that only a live guest moves, or if it was not visible.

    A counter that is None in every sample belongs to a device that the VM does not have. Disk
    writes must be visible all the same: without them there is no evidence of death at all.
    """
    for name, read in _LIFE:
        values = [read(sample) for sample in seen.samples]
        known = [value for value in values if value is not None]
        if known and len(known) < len(values):
            return "half_seen", {"counter": name}
        if any(after < before for before, after in pairwise(known)):
            return "went_back", {"counter": name}
        if known and known[-1] != known[0]:
            return "alive", {"counter": name, "moved": known[-1] - known[0]}
    if any(
        sample.block_wr_reqs is None and sample.block_wr_bytes is None for sample in seen.samples
    ):
        return "unseen_disk", {}
    return None


def _every_device_counts(seen: Seen) -> _Said | None:
    """Refuse if a guest may work through a device without counters.

    This does not apply to a VM that the hypervisor reports as crashed: none of its vCPUs runs.
    """
    devices = [sample.uncounted for sample in seen.samples if sample.uncounted is not None]
    return ("uncounted", {"device": devices[0]}) if devices and not seen.crashed else None


def _balloon_is_stale(seen: Seen) -> _Said | None:
    answers = {sample.balloon_last_update_s for sample in seen.samples}
    return ("balloon", {}) if len(answers) > 1 else None


def _still_since_judged(seen: Seen) -> _Said | None:
    """Refuse if the guest did I/O between the verdict and the preflight check, and rests only now.

    This does not apply if this node received a report of the crash: the guest may have written
    after the engine's last sample and then crashed.
    """
    judged = seen.order.counted
    if judged is None or seen.reported:
        return None
    for name, read in _JUDGED:
        before, now = read(judged), read(seen.samples[0])
        if before is not None and now is not None and now != before:
            return "alive_since", {"counter": name, "moved": now - before}
    return None


def _balloon_silent_since_judged(seen: Seen) -> _Said | None:
    answered_s = seen.samples[-1].balloon_last_update_s
    if answered_s is None or seen.reported:
        return None
    after_ms = 1000 * answered_s - seen.order.data_ms
    return ("balloon_since", {"after_s": after_ms / 1000}) if after_ms > CLOCK_SLACK_MS else None


def _same_shape(seen: Seen) -> _Said | None:
    ordered, found = seen.order.cpu_shape, shape(seen.samples)
    if "unknown" in (ordered, found):
        return "shape_unseen", {}
    only_one = len(seen.samples[-1].vcpu_time_ns) == 1
    if found == ordered or (only_one and {found, ordered} == {"one_core", "all_cores"}):
        return None
    return "shape", {"seen": found, "ordered": ordered}


def _same_shape_if_judged(seen: Seen) -> _Said | None:
    return None if seen.order.cpu_shape == "unknown" else _same_shape(seen)


def _dead_vcpus_stand_still(seen: Seen) -> _Said | None:
    """Refuse if a vCPU ran that would stand still in a dead guest."""
    for vcpu in dead_vcpus(seen.order.cpu_shape, seen.samples[0], seen.samples[-1]):
        if vcpu.gained_ns > vcpu.limit_ns:
            return "vcpu_moves", {
                "number": vcpu.place,
                "gained_ms": vcpu.gained_ns / 1e6,
                "limit_ms": vcpu.limit_ns / 1e6,
            }
    return None


def _no_sign_of_life(seen: Seen) -> _Said | None:
    for what, sign in (("a probe", seen.signs.probe), ("the guest agent", seen.signs.agent)):
        if sign == "answered":
            return "sign_of_life", {"what": what}
    return None


def _old_or_reported(seen: Seen) -> _Said | None:
    """Refuse a young VM unless its own device or hypervisor reported the crash to this node."""
    known_s = seen.order.history_s
    if seen.reported or (known_s is not None and known_s >= seen.newborn_s) or seen.newborn_s <= 0:
        return None
    history = "an unknown time" if known_s is None else f"{known_s:.0f} s"
    return "newborn_untold", {"history": history, "limit_s": seen.newborn_s}


def _second_witness(seen: Seen) -> _Said | None:
    """Refuse if silence and CPU shape are the only evidence of death."""
    if len(_witnesses(seen)) > 1 or seen.crashed:
        return None
    return "no_witness", {"lacking": lacking(seen.order.cpu_shape, seen.samples, seen.signs)}


def _witnesses(seen: Seen) -> tuple[str, ...]:
    return witnesses(seen.order.cpu_shape, seen.samples, seen.signs)


def _never(seen: Seen) -> _Said | None:
    return "no_look", {"action": seen.order.action}


def _requests_complete(seen: Seen) -> _Said | None:
    first, last = seen.samples[0], seen.samples[-1]
    pairs = (
        (first.block_rd_reqs, last.block_rd_reqs),
        (first.block_wr_reqs, last.block_wr_reqs),
    )
    if any(None not in pair and pair[0] != pair[1] for pair in pairs):
        return None
    return "no_request", {}


Rule = Callable[[Seen], _Said | None]

# The rules for every action: the samples must be of the VM in the order. An action that only reads
# has no other rules, so the VM may be in any state.
EVERY_ACTION: Final[tuple[Rule, ...]] = (
    _enough, _same_vm, _same_run, _same_owner, _open_to_actions,
)  # fmt: skip
_UNTOUCHED: Final[tuple[Rule, ...]] = (_monitor_answers, _no_job, _not_booted)
RULES: Final[ByAction[tuple[Rule, ...]]] = {
    "save_evidence": (),
    "reset": (
        *_UNTOUCHED,
        _running_or_crashed,
        _no_sign_of_life,
        _every_device_counts,
        _stands_still,
        _still_since_judged,
        _balloon_is_stale,
        _balloon_silent_since_judged,
        _same_shape,
        _dead_vcpus_stand_still,
        _old_or_reported,
        _second_witness,
    ),
    # A reboot is for a hung userland. Kernel, vCPUs and balloon driver are then still alive, so
    # there are no rules for them.
    "reboot": (
        *_UNTOUCHED,
        _running,
        _no_sign_of_life,
        _every_device_counts,
        _stands_still,
        _still_since_judged,
        _same_shape,
        _old_or_reported,
        _second_witness,
    ),
    "migrate": (*_UNTOUCHED, _running, _requests_complete, _same_shape_if_judged),
    "move_disk": (*_UNTOUCHED, _running, _requests_complete),
}
# Rules for the sample right before the call, in addition to those that `last_check` always applies.
LAST_RULES: Final[ByAction[tuple[Rule, ...]]] = {
    "save_evidence": (_never,),
    "reset": (
        *_UNTOUCHED,
        _running_or_crashed,
        _same_state,
        _every_device_counts,
        _stands_still,
        _balloon_is_stale,
        _dead_vcpus_stand_still,
    ),
    "reboot": (*_UNTOUCHED, _running, _every_device_counts, _stands_still),
    "migrate": (*_UNTOUCHED, _running),
    "move_disk": (*_UNTOUCHED, _running),
}
