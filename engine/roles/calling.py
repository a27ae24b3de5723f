"""Turns an order into one call to the hypervisor, and finds out how an interrupted step ended."""

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Final, assert_never
from uuid import UUID

from flatline.engine.action.actions import ACTIONS
from flatline.engine.action.admit import Admission, History, claim_of
from flatline.engine.action.ledger import LedgerState, LogPosition, StepEntry
from flatline.engine.action.preflight import left_by_reset
from flatline.engine.errors import (
    ActionRefused,
    ActionUnsent,
    EvidenceUnsaved,
    HypervisorUnreachable,
    VmNotFound,
)
from flatline.engine.ports import Actuator, Evidence
from flatline.engine.preflight_data import Permit, PreflightSample
from flatline.engine.roles.health import Health, as_sentence
from flatline.engine.roles.results import End, ended, why_of
from flatline.engine.wire.order import Order

# A migration or a disk move is aborted this long before the order's deadline: libvirt may need one
# keepalive timeout for the abort, and then the result must still reach the log.
_GIVE_UP_S: Final = 75.0
_LEAST_S: Final = 1.0
# The time limit for finding out how a step ended is at least this, even if its deadline has passed.
_FIND_S: Final = 60.0
# The time limit for saving evidence: the 5 s of `engine.ports.Evidence`, and a margin for the disk.
_EVIDENCE_S: Final = 5.5

SENTENCES: Final = {
    "evidence": "Evidence of {vm} was saved: {what}.",
    "no_evidence": "No evidence of {vm} could be saved: {what}.",
    "read_the_world": "the agent stopped during the call, and the present state {state} of the VM "
    "does not show the result",
    "left_paused": "the VM was reset and stays paused. A person must resume it. {why}",
}


async def see_hypervisor(actuator: Actuator, health: Health) -> None:
    """Report whether the hypervisor answers; if it does not, the agent is not ready."""
    try:
        await actuator.reach()
    except HypervisorUnreachable as error:
        health.waiting("hypervisor", f"{as_sentence(error)} Retrying.")
    else:
        health.progress("hypervisor")


@dataclass(frozen=True, slots=True)
class Task:
    """An order for this node, its position in the log, and the orders before it.

    `read_ns` is the monotonic time at which the order was read. `dry_run` is also set while the
    agent only observes a log that it does not know yet.
    """

    order: Order
    offset: int
    time_ms: int
    read_ns: int
    earlier: History
    dry_run: bool

    def entry(
        self, state: LedgerState, sentence: str, *, now_ms: int, position: LogPosition | None = None
    ) -> StepEntry:
        """Return the ledger entry of the order in `state`.

        `position` is how far the log was read, for the entry "sent"; None for other entries.
        """
        order = self.order
        return StepEntry(
            state=state,
            incident=order.incident,
            step=order.step,
            vm=order.vm,
            action=order.action,
            dry_run=self.dry_run,
            time_ms=now_ms,
            sentence=sentence,
            target=order.target,
            disk=order.disk,
            deadline_ms=order.deadline_ms,
            instance=order.instance,
            log_position=position,
        )


async def call(
    actuator: Actuator, evidence: Evidence, order: Order, *, left_s: float, permit: Permit
) -> None:
    """Carry out `order` as allowed by `permit`; `left_s` is the time until its deadline.

    Raises
    ------
    ActionRefused, VmNotFound
        Nothing was done: see `undone`.
    HypervisorUnreachable
        It is unknown whether the action was done.
    """
    vm, within_s = UUID(order.vm).bytes, max(_LEAST_S, left_s - _GIVE_UP_S)
    match order.action:
        case "reset":
            await actuator.reset(vm, permit=permit)
        case "reboot":
            await actuator.reboot(vm, permit=permit)
        case "migrate" if order.target is not None:
            await actuator.migrate(vm, target=order.target, within_s=within_s, permit=permit)
        case "move_disk" if order.disk is not None and order.target is not None:
            await actuator.move_disk(
                vm, disk=order.disk, target=order.target, within_s=within_s, permit=permit
            )
        case "migrate" | "move_disk":
            raise ActionRefused("the order does not name the target or the disk")
        case "save_evidence":
            try:
                await evidence.save(vm, incident=order.incident, step=order.step)
            except EvidenceUnsaved as error:
                raise ActionRefused(str(error)) from error
        case _ as missing:
            assert_never(missing)


def undone(error: ActionRefused | VmNotFound) -> End:
    """Return the end of an order whose call did nothing.

    If a busy node could not send the call in time, that says nothing about the VM. The order
    expires, and the step may be ordered again.
    """
    if isinstance(error, ActionUnsent):
        return ended("expired", "verb_unsent", why=error)
    return ended("refused", "verb_refused", why=error)


def claimed_elsewhere(history: History, order: Order, *, agent: str) -> End | None:
    """Return how the order ends if another agent, or an earlier run of this one, claimed its step.

    None if no agent or this run claimed it.
    """
    claim = claim_of(history, order)
    if claim is None or claim.agent == agent:
        return None
    return ended("not_attempted", "claimed", step=order.step, agent=claim.agent)


def failed(entry: StepEntry | None, order: Order, error: Exception) -> End | None:
    """Return the end of an order whose processing raised `error`, by the order's ledger entry.

    Without the entry "sent", nothing was done. With it, the result is unknown. An end that is
    already in the ledger stays. None means that no result is to be reported any more.
    """
    names = {"action": ACTIONS[order.action].noun, "vm": order.vm}
    match "accepted" if entry is None else entry.state:
        case "accepted":
            return ended("refused", "failed", why=why_of(error))
        case "sent":
            return ended("unknown", "verb_unknown", **names, why=why_of(error))
        case "returned" | "unknown" | "refused" | "expired" | "not_attempted" as state:
            assert entry is not None
            return End(state, "failed", entry.sentence)
        case _:
            return None


def findable(entry: StepEntry) -> bool:
    """Return whether the hypervisor may have continued the step or left it unfinished."""
    moves = ACTIONS[entry.action].target is not None and entry.target is not None
    halves = entry.action == "reset" and entry.instance is not None
    return entry.state == "unknown" and (moves or halves) and not entry.dry_run


async def found(actuator: Actuator, entry: StepEntry, *, left_s: float, finish: Admission) -> End:
    """Return how a step ended that an earlier run of this agent requested.

    This function waits for a migration, aborts an incomplete disk move, and finishes a reset by
    resuming the VM. `finish` says whether a VM that the reset left paused may be resumed now.
    `left_s` is the time until the step's deadline, negative after it. Errors are not raised: they
    make the outcome "refused" or "unknown".
    """
    names = {"action": ACTIONS[entry.action].noun, "vm": entry.vm}
    try:
        async with asyncio.timeout(max(_FIND_S, left_s)):
            if entry.action == "reset":
                await _finish(actuator, entry, left_s=left_s, finish=finish)
                return ended("returned", "finished", **names)
            await _find(actuator, entry, left_s=left_s)
        return ended("returned", "found", **names)
    except ActionRefused as error:
        return ended("refused", "found_undone", **names, why=error)
    except Exception as error:  # noqa: BLE001 -- an unknown error is the worst case
        return ended("unknown", "verb_unknown", **names, why=why_of(error))


async def _finish(
    actuator: Actuator, entry: StepEntry, *, left_s: float, finish: Admission
) -> None:
    """Resume the VM if it is found between the reset and its resume.

    This is not a second reset. If the VM is in any other state, it is unknown whether the reset was
    performed.
    """
    vm = UUID(entry.vm).bytes
    sample = await actuator.sample(vm)
    if not left_by_reset(sample, instance=entry.instance):
        raise HypervisorUnreachable(SENTENCES["read_the_world"].format(state=sample.state))
    if not finish.admitted:
        raise HypervisorUnreachable(SENTENCES["left_paused"].format(why=finish.sentence))
    assert entry.instance is not None
    try:
        await actuator.finish_reset(
            vm, permit=Permit(entry.instance, left_s, partial(_still_left, entry))
        )
    except ActionRefused as error:
        # The resume was refused, but the reset before it was performed.
        raise HypervisorUnreachable(str(error)) from error


def _still_left(entry: StepEntry, sample: PreflightSample) -> str | None:
    """Return why the VM no longer waits for its resume, None if it still waits."""
    if left_by_reset(sample, instance=entry.instance):
        return None
    return SENTENCES["read_the_world"].format(state=sample.state)


async def _find(actuator: Actuator, entry: StepEntry, *, left_s: float) -> None:
    vm, target = UUID(entry.vm).bytes, entry.target or ""
    if ACTIONS[entry.action].target == "node":
        within_s = max(_LEAST_S, left_s - _GIVE_UP_S)
        await actuator.find_migration(vm, target=target, within_s=within_s)
    else:
        await actuator.find_disk_move(vm, disk=entry.disk or "", target=target)


async def keep_evidence(evidence: Evidence, order: Order) -> tuple[str, str]:
    """Save the state of the VM, and return the result: a rule and its sentence.

    The rule is "evidence" or "no_evidence". A failure to save is returned, not raised: it must not
    prevent the reset of a dead VM.
    """
    vm = UUID(order.vm).bytes
    try:
        async with asyncio.timeout(_EVIDENCE_S):
            rule, what = (
                "evidence",
                await evidence.save(vm, incident=order.incident, step=order.step),
            )
    except (EvidenceUnsaved, TimeoutError) as error:
        rule, what = "no_evidence", str(error) or f"not complete within {_EVIDENCE_S:g} s"
    return rule, SENTENCES[rule].format(vm=order.vm, what=what)
