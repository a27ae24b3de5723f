"""The output of an agent: frames for the engine, results for planners, its journal."""

from dataclasses import dataclass
from typing import Final, Literal
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flatline.engine.action.ledger import StepEntry
from flatline.engine.ports import Clock, Log, SignFrame
from flatline.engine.roles.opening import unsigned
from flatline.engine.roles.outbox import Journal, Outbox
from flatline.engine.wire.frame import Event, Frame, Header, VmRows, encode_frame
from flatline.engine.wire.journal import EntryKind
from flatline.engine.wire.order import Action, Claim, Order, OrderResult, Outcome, encode_order
from flatline.engine.wire.topics import FRAMES, ORDERS

SENTENCES: Final = {
    "accepted": "Accepted: {order}",
    "calling": "The agent now calls the {action} of {vm}. {look}",
    "returned": "The {action} of {vm} was carried out.",
    "rehearsed": "The dry run of the {action} of {vm} is complete: everything except the call was "
    "done.",
    "wrong_place": "The order names site {site} and cell {cell}, but this node belongs to another "
    "site or cell.",
    "before_my_time": "The order is older than the records of this agent. Its result is unknown.",
    "slow_clock": "The clock of this node is {behind_s:.0f} s behind the log, so dates cannot be "
    "checked. Nothing is done.",
    "claimed": "Agent {agent} claimed step {step} first and reports its result. Nothing is done "
    "here.",
    "no_claim": "The step could not be claimed in the log within {limit_s:g} s. Nothing is done.",
    "claim_void": "The claim of the step reached the log too late. Nothing is done.",
    "already_closed": "The result of this step is already in the log.",
    "no_ledger": "The ledger cannot be written, so nothing is done: {why}",
    "no_look": "The VM is not visible, so nothing is done: {why}",
    "no_vm": "The VM is not on this node: {why}",
    "no_barrier": "The log could not be read to its end within {limit_s:g} s. Nothing is done.",
    "log_changed": "The topic {topic} was truncated or created again while this agent ran. "
    "Nothing is done until the agent restarts.",
    "other_log": "The log is not the one with which this agent started. Nothing is done.",
    "short_day": "The clock of this node was ahead when its agent started, so the agent has not "
    "read all orders of the last day. Nothing is done until it restarts.",
    "too_late": "When the ledger had the entry, the order had expired, or the preflight check "
    "({age_s:.1f} s old) or the newest control records ({words_s:.1f} s old) were too old. "
    "Nothing was done.",
    "verb_unsent": "The call to the hypervisor was not made in time, so nothing was done: {why}",
    "verb_refused": "The hypervisor refused the call, so nothing was done: {why}",
    "verb_unknown": "It is unknown whether the {action} of {vm} happened: {why}",
    "failed": "The agent failed before the call, so nothing was done. Please report this error: "
    "{why}",
    "found": "The {action} of {vm} continued while the agent was not running, and is complete.",
    "found_undone": "The {action} of {vm} continued while the agent was not running, and did not "
    "complete: {why}",
    "finished": "The agent stopped between the {action} of {vm} and the resume. The {action} was "
    "done, and the VM is resumed now.",
    "searching": "The agent stopped during the {action} of {vm} and now looks for its result.",
}

Acted = Literal["action_sent", "action_returned", "action_unknown"]

# The interval in the header of an agent's frames. An agent sends frames at no fixed interval, but
# the header requires a value.
_INTERVAL_MS: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """The identity of an agent; `key` signs its results, and `sign` authenticates its frames."""

    site: str
    zone: str
    cell: str
    node: str
    run: str
    key: Ed25519PrivateKey
    sign: SignFrame = unsigned


@dataclass(frozen=True, slots=True)
class End:
    """The end of an order; `rule` names the sentence."""

    outcome: Outcome
    rule: str
    sentence: str


def ended(outcome: Outcome, rule: str, **values: object) -> End:
    """Return the end of an order; `values` fill the placeholders in the sentence of `rule`."""
    return End(outcome, rule, SENTENCES[rule].format(**values))


def why_of(error: Exception) -> str:
    """Return the message of an error, its name if there is none."""
    return str(error) or type(error).__name__


class Results:
    """Puts all reports of an agent into its outbox."""

    def __init__(self, outbox: Outbox, journal: Journal, *, author: Author, clock: Clock) -> None:
        self._outbox = outbox
        self._journal = journal
        self._author = author
        self._clock = clock
        self._sequence = 0
        self.agent = f"{author.node}/{author.run}"

    async def claim(self, log: Log, order: Order, *, dry_run: bool) -> None:
        """Append a claim: this agent is about to carry out the order.

        Raises
        ------
        LogError
            Whether the claim is in the log is not known: the order must not be carried out.
        """
        author = self._author
        claim = Claim(
            incident=order.incident,
            step=order.step,
            vm=order.vm,
            node=author.node,
            agent=self.agent,
            dry_run=dry_run,
            time_ms=self._clock.now_ms(),
        )
        value, headers = encode_order(claim, author.key)
        await log.append(ORDERS.name, key=author.cell.encode(), value=value, headers=headers)

    def acted(
        self, kind: Acted, order: Order | StepEntry, *, dry_run: bool, outcome: str = ""
    ) -> None:
        """Report to the engine a call to the hypervisor, so that the engine tracks the VM.

        The `outcome` "refused" or "expired" means that the call did nothing; "" is for a call that
        has not ended.
        """
        detail = {
            "incident": order.incident,
            "step": str(order.step),
            "action": order.action,
            "dry_run": str(dry_run).lower(),
        }
        if outcome:
            detail["outcome"] = outcome
        self.noticed(kind, UUID(order.vm).bytes, detail)

    def noticed(self, kind: str, vm: bytes, detail: dict[str, str]) -> None:
        """Report an event of one VM to the engine.

        `kind` is one of `engine.wire.metrics.EVENT_KINDS`, and `vm` the UUID, 16 bytes.
        """
        author, now_ns = self._author, self._clock.now_ms() * 1_000_000
        event = Event(
            id=f"{author.run}/{self._sequence}", kind=kind, time_ns=now_ns, vm=vm, detail=detail
        )
        header = Header(
            site=author.site,
            zone=author.zone,
            cell=author.cell,
            node=author.node,
            role="agent",
            run=author.run,
            sequence=self._sequence,
            event_time_ns=now_ns,
            mono_ns=self._clock.mono_ns(),
            interval_ms=_INTERVAL_MS,
        )
        self._sequence += 1
        value = encode_frame(Frame(header=header, rows=VmRows.empty(), events=(event,)))
        key = author.cell.encode()
        self._outbox.put(FRAMES.name, key=key, value=value, headers=author.sign(key, value))

    def journalled(self, sentence: str, *, vm: str, rule: str) -> None:
        """Journal an action on a VM that no order requested.

        `vm` is the UUID text, and `rule` the name of the sentence.
        """
        self._journal.write(
            "effect", sentence, vm=vm, cell=self._author.cell, detail={"rule": rule}
        )

    def ended(self, order: Order, end: End, *, dry_run: bool, page: bool = False) -> None:
        """Close the order in the log, and journal its end; `page` as in `said`."""
        self._close(
            incident=order.incident,
            step=order.step,
            vm=order.vm,
            outcome=end.outcome,
            dry_run=dry_run,
            sentence=end.sentence,
        )
        kind: EntryKind = "outcome" if end.outcome in ("returned", "unknown") else "refusal"
        self.said(kind, order, end.sentence, rule=end.rule, page=page)

    def recovered(self, entry: StepEntry) -> None:
        """Report the end of a step that the last run of this agent did not report.

        A state of the entry that is no end is reported as "unknown", and a person is notified.
        """
        match entry.state:
            case "returned" | "refused" | "expired" | "not_attempted":
                outcome: Outcome = entry.state
            case _:
                outcome = "unknown"
        if outcome in ("returned", "unknown"):
            kind: Acted = "action_returned" if outcome == "returned" else "action_unknown"
            self.acted(kind, entry, dry_run=entry.dry_run, outcome=outcome)
        self._close(
            incident=entry.incident,
            step=entry.step,
            vm=entry.vm,
            outcome=outcome,
            dry_run=entry.dry_run,
            sentence=entry.sentence,
        )
        self._journal.write(
            "outcome",
            entry.sentence,
            incident=entry.incident,
            step=entry.step,
            vm=entry.vm,
            cell=self._author.cell,
            detail={"action": entry.action, "rule": "recovered", "outcome": outcome},
            page=outcome == "unknown",
        )

    def duplicate(self, order: Order, sentence: str) -> None:
        """Journal an order that repeats a step; the first one for the step counts."""
        self.said("refusal", order, sentence, rule="duplicate")

    def said(
        self, kind: EntryKind, order: Order, sentence: str, *, rule: str = "", page: bool = False
    ) -> None:
        """Journal one sentence about an order; `page` means that a person must be notified.

        `rule` names the sentence; "" leaves it out.
        """
        action: Action = order.action
        self._journal.write(
            kind,
            sentence,
            incident=order.incident,
            step=order.step,
            vm=order.vm,
            cell=order.cell,
            detail={"action": action, "planner": order.planner, "policy": order.policy}
            | ({"rule": rule} if rule else {}),
            page=page,
        )

    def _close(
        self,
        *,
        incident: str,
        step: int,
        vm: str,
        outcome: Outcome,
        dry_run: bool,
        sentence: str,
    ) -> None:
        author = self._author
        result = OrderResult(
            incident=incident,
            step=step,
            vm=vm,
            node=author.node,
            agent=self.agent,
            outcome=outcome,
            dry_run=dry_run,
            time_ms=self._clock.now_ms(),
            sentence=sentence,
        )
        value, headers = encode_order(result, author.key)
        self._outbox.put(ORDERS.name, key=author.cell.encode(), value=value, headers=headers)
