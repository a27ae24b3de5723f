"""The loop of the agent on one node: orders in, at most one call for each order, results out.

The agent trusts no other process. Before a call, it verifies the order, runs admission control
again, checks the live VM, reads the newest pauses, and writes its intent to disk.
"""

import asyncio
from typing import Final
from uuid import UUID

import msgspec
import structlog

from flatline.engine import instruments
from flatline.engine.action.actions import ACTIONS, DESTRUCTIVE
from flatline.engine.action.admit import PASSING, History, admit, claim_of, is_closed, may_finish
from flatline.engine.action.admit import SENTENCES as ADMIT_SENTENCES
from flatline.engine.action.ledger import StepEntry, recovery
from flatline.engine.action.ledger_rules import within_limits
from flatline.engine.action.preflight import PREFLIGHT_WINDOW_S, judge, last_check
from flatline.engine.action.request_context import CLOCK_SLACK_MS, DAY_MS
from flatline.engine.errors import ActionRefused, LogError, VmNotFound
from flatline.engine.liveness_ports import Liveness, Prober
from flatline.engine.ports import Actuator, Clock, Evidence, LedgerStore, Log, Record
from flatline.engine.preflight_data import Permit, PreflightSample, Sign, Signs
from flatline.engine.roles.act_config import ActConfig
from flatline.engine.roles.books import Books
from flatline.engine.roles.calling import (
    Task,
    call,
    claimed_elsewhere,
    failed,
    findable,
    found,
    keep_evidence,
    see_hypervisor,
    undone,
)
from flatline.engine.roles.guest_probing import GuestProbing
from flatline.engine.roles.health import Health
from flatline.engine.roles.outbox import Journal, Outbox, follow, plain_errors
from flatline.engine.roles.reading import TOPICS, LogChanged, Reading
from flatline.engine.roles.results import SENTENCES, Author, End, Results, ended, why_of
from flatline.engine.wire.order import MAX_LIFETIME_MS, Order, Outcome

# Control commands that were read longer ago may be outdated: a pause may have been appended since.
# This limits the time to read them, and the time from the start of the read to the call.
BARRIER_S: Final = 5.0
# Limit of one sample, which takes 10 ms: two and their gap must fit into a preflight check of 10 s.
_SAMPLE_TIMEOUT_S: Final = 2.0
# Added to a gap, so that two clocks that differ by one tick do not turn 4 s into 3.999 s.
_GAP_SLACK_S: Final = 0.1
# How often the agent reports its health; a role counts as stuck after a minute without a report.
_REPORT_S: Final = 1.0
# How long to wait for pending reports at the end of the process and before the next order.
_LEAVE_S: Final = 2.0
_NOTIFY_S: Final = 30.0

_log = structlog.get_logger()


class Agent:
    """Carries out the orders for one node, until cancelled.

    Parameters
    ----------
    log, actuator
        The site's log and the node's hypervisor (actuator), opened.
    ledger
        The store of the write-ahead log; no other process may use it.
    evidence
        The store for the state of a VM at a fault, opened.
    watch, prober
        Access to the guests' signs of life, opened; without it no sign of life is known.
    """

    def __init__(
        self,
        *,
        log: Log,
        actuator: Actuator,
        ledger: LedgerStore,
        evidence: Evidence,
        config: ActConfig,
        clock: Clock,
        health: Health,
        watch: Liveness | None = None,
        prober: Prober | None = None,
    ) -> None:
        self._log = log
        self._actuator = actuator
        self._evidence = evidence
        self._config = config
        self._clock = clock
        self._health = health
        self._since_ms = 0
        self._commands_ns = 0
        self._tasks: asyncio.Queue[Task] = asyncio.Queue()
        self._outbox = Outbox(log, health=health)
        # A role may be reopened within one process. Each time it is a new source of frames and a
        # new chain in the journal. Otherwise its first reports would count as repeated ones.
        run = f"{config.run}.{clock.mono_ns():x}"
        writer = f"act/{config.node}/{run}"
        self._journal = Journal(self._outbox, clock=clock, writer=writer, cell=config.cell)
        author = Author(
            site=config.site,
            zone=config.zone,
            cell=config.cell,
            node=config.node,
            run=run,
            key=config.key,
            sign=config.sign,
        )
        self._results = Results(self._outbox, self._journal, author=author, clock=clock)
        self._guest_probing = GuestProbing(
            watch=watch,
            prober=prober,
            results=self._results,
            clock=clock,
            health=health,
            sets_balloons=config.sets_balloons,
        )
        self._reading = Reading(
            log,
            node=config.node,
            policy=config.policy,
            trusted=config.trusted,
            journal=self._journal,
            deliver=self._ordered,
        )
        self._books = Books(
            ledger,
            log=log,
            reading=self._reading,
            journal=self._journal,
            node=config.node,
            policy=config.policy,
            clock=clock,
            health=health,
        )

    async def run(self) -> None:
        """Act until cancelled.

        Raises
        ------
        LogError
            The log refused an operation, or was unreachable during the start.
        StateError
            The ledger cannot be read or written.
        """
        with plain_errors():
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._outbox.run(), name="act: outbox")
                try:
                    for entry in await self._start():
                        tasks.create_task(self._find(entry), name="act: find")
                    for topic in TOPICS:
                        reader = follow(
                            self._log,
                            topic,
                            0,
                            offset=self._reading.next_offsets[topic],
                            deliver=self._reading.read,
                            health=self._health,
                        )
                        tasks.create_task(reader, name=f"act: {topic}")
                    tasks.create_task(self._report(), name="act: health")
                    tasks.create_task(self._guest_probing.run(), name="act: watch")
                    while True:
                        await self._bring_to_end(await self._tasks.get())
                finally:
                    await self._outbox.emptied(within_s=_LEAVE_S)

    async def _start(self) -> list[StepEntry]:
        """Report the steps of the last run, and read the records that the limits depend on.

        Returns the steps whose end must be looked up, because the hypervisor may have continued
        them, or left them unfinished, while no agent ran.
        """
        now_ms = self._clock.now_ms()
        await self._books.recognise(now_ms)
        lost: list[StepEntry] = []
        for entry in recovery(self._books.ledger, now_ms=now_ms):
            if findable(entry):
                lost.append(entry)
            else:
                self._books.enter(entry)
        for entry in self._books.ledger.unmarked():
            self._results.recovered(entry)
        await self._set_down()
        # The limits of an order depend on the day before it, and an order that is still valid may
        # have been appended shortly before this start.
        self._since_ms = now_ms - DAY_MS - 2 * MAX_LIFETIME_MS
        await self._reading.begin(since_ms=self._since_ms)
        self._books.compare(now_ms)
        return lost

    async def _find(self, entry: StepEntry) -> None:
        """Look up the end of a step that the hypervisor continued while no agent ran."""
        noun, policy = ACTIONS[entry.action].noun, self._config.policy
        searching = SENTENCES["searching"].format(action=noun, vm=entry.vm)
        self._journal.write("start", searching, incident=entry.incident, vm=entry.vm)
        now_ms, history = self._clock.now_ms(), self._reading.history
        controls = self._reading.controls
        finish = may_finish(entry.key, history, policy, now_ms=now_ms, controls=controls)
        left_s = self._left_s(entry.deadline_ms)
        end = await found(self._actuator, entry, left_s=left_s, finish=finish)
        last = msgspec.structs.replace(
            entry, state=end.outcome, time_ms=self._clock.now_ms(), sentence=end.sentence
        )
        self._books.enter(last)
        self._results.recovered(last)
        await self._set_down()

    def _left_s(self, deadline_ms: int) -> float:
        return (deadline_ms - self._clock.now_ms()) / 1000

    async def _report(self) -> None:
        while True:
            self._health.progress("act")
            await see_hypervisor(self._actuator, self._health)
            self._books.note_position()
            await asyncio.sleep(_REPORT_S)

    def _ordered(self, order: Order, record: Record, earlier: History) -> None:
        """Put an order for this node into the queue."""
        if order.node != self._config.node:
            return
        read_ns, dry_run = self._clock.mono_ns(), order.dry_run or self._books.watches
        self._tasks.put_nowait(
            Task(order, record.offset, record.time_ms, read_ns, earlier, dry_run)
        )

    async def _bring_to_end(self, task: Task) -> None:
        """Process an order; if the agent itself fails, close the order and continue."""
        try:
            await self._take_up(task)
        except Exception as error:  # noqa: BLE001 -- an error of one order must not stop the others
            instruments.POISON.labels("agent").inc()
            _log.error("Processing an order failed in the agent.", vm=task.order.vm, exc_info=error)
            await self._given_up(task, error)

    async def _given_up(self, task: Task, error: Exception) -> None:
        """Report an order whose processing failed, with the worst end that the ledger allows."""
        order, dry_run = task.order, task.dry_run
        known = self._books.ledger.steps.get((order.incident, order.step))
        end = failed(known, order, error)
        if end is None:
            return
        if known is not None and known.state in ("accepted", "sent"):
            self._entered(task, end)
        if end.outcome == "unknown":
            self._results.acted("action_unknown", order, dry_run=dry_run, outcome=end.outcome)
        self._results.ended(order, end, dry_run=dry_run, page=True)
        await self._set_down()

    async def _take_up(self, task: Task) -> None:
        """Process one order to its end, unless its step was accepted before or is closed."""
        order = task.order
        key = (order.incident, order.step)
        if any((entry.order.incident, entry.order.step) == key for entry in task.earlier):
            # A result here would close the first order for this step, which may still run.
            self._results.duplicate(order, ADMIT_SENTENCES["duplicate"].format(step=order.step))
            return
        if self._books.ledger.holds(key) or is_closed(self._reading.history, order):
            return
        end = self._refusal(task)
        if end is None:
            end = await self._carry(task)
        if end.rule == "claimed":
            # The agent or run that claimed the step reports its end; a result here is too early.
            self._results.said("refusal", order, end.sentence, rule=end.rule, page=True)
            instruments.ORDERS_REFUSED.labels(end.rule).inc()
            return
        instruments.ORDERS_ENDED.labels(order.action, end.outcome, str(order.dry_run).lower()).inc()
        if end.outcome != "returned":
            instruments.ORDERS_REFUSED.labels(end.rule).inc()
        self._results.ended(order, end, dry_run=task.dry_run)
        await self._set_down()

    def _refusal(self, task: Task) -> End | None:
        """Return why the order may not run now, None if it may."""
        order, config = task.order, self._config
        if task.offset < self._books.strange_below:
            return ended("unknown", "before_my_time")
        if (order.site, order.cell) != (config.site, config.cell):
            return ended("refused", "wrong_place", site=order.site, cell=order.cell)
        other = claimed_elsewhere(self._reading.history, order, agent=self._results.agent)
        if other is not None:
            return other
        behind_ms = self._reading.log_ms - self._clock.now_ms()
        if behind_ms > CLOCK_SLACK_MS:
            return ended("not_attempted", "slow_clock", behind_s=behind_ms / 1000)
        if task.time_ms - DAY_MS < self._since_ms:
            return ended("not_attempted", "short_day")
        admission = admit(
            order,
            task.earlier,
            config.policy,
            at_ms=task.time_ms,
            now_ms=self._now_ms(task),
            controls=self._reading.controls,
        )
        if admission.admitted:
            admission = within_limits(
                self._books.ledger,
                order,
                config.policy.limits,
                now_ms=self._now_ms(task),
                dry_run=task.dry_run,
            )
        if admission.admitted:
            return None
        outcome: Outcome = "not_attempted" if admission.rule in PASSING else "refused"
        if admission.rule in ("expired", "appended_late"):
            outcome = "expired"
        return End(outcome, admission.rule, admission.sentence)

    def _now_ms(self, task: Task) -> int:
        """Return the wall time, but at least the append time plus the time since the read.

        If the clock is set back while an order waits, the order still ages.
        """
        waited_ms = (self._clock.mono_ns() - task.read_ns) // 1_000_000
        return max(self._clock.now_ms(), task.time_ms + waited_ms)

    async def _carry(self, task: Task) -> End:
        """Accept, sample, read new commands, judge the samples, claim, and call: in this order."""
        order = task.order
        accepted = task.entry("accepted", order.sentence, now_ms=self._clock.now_ms())
        unwritable = self._books.enter_if_writable(accepted)
        if unwritable is not None:
            return ended("not_attempted", "no_ledger", why=unwritable)
        self._results.said("decision", order, SENTENCES["accepted"].format(order=order.sentence))
        began_ns = self._clock.mono_ns()
        samples, signs = await self._sample(order)
        end = await self._last_commands(task)
        if isinstance(samples, End):
            # If another agent of the node has claimed the step, that agent reports its end.
            end = end if end is not None and end.rule == "claimed" else samples
        elif end is None:
            age_s = (self._clock.mono_ns() - began_ns) / 1e9
            limits = self._config.policy.limits
            gap_s, newborn_s = limits.look_gap_s, limits.newborn_s
            verdict = judge(
                order, samples, gap_s=gap_s, age_s=age_s, signs=signs, newborn_s=newborn_s
            )
            if verdict.agrees:
                end = await self._claim(task)
                if end is None:
                    return await self._call(task, samples, verdict.sentence, began_ns=began_ns)
                return self._entered(task, end)
            # "not_attempted" allows another order for this step later: a witness may still appear,
            # such as a balloon that is not overdue yet.
            outcome: Outcome = "not_attempted" if verdict.rule == "no_witness" else "refused"
            end = End(outcome, verdict.rule, verdict.sentence)
            if verdict.rule == "no_request":
                # The VM's I/O is blocked, so it cannot be moved: a person needs the evidence.
                await self._save_evidence(order)
        return self._entered(task, end)

    def _entered(self, task: Task, end: End) -> End:
        """Return `end` after entering it in the ledger; it is reported even if the disk is full."""
        state = "elsewhere" if end.rule == "claimed" else end.outcome
        now_ms = self._clock.now_ms()
        self._books.enter_if_writable(task.entry(state, end.sentence, now_ms=now_ms))
        return end

    async def _sample(self, order: Order) -> tuple[list[PreflightSample] | End, Signs]:
        """Return the samples, and the guest's signs of life between them."""
        vm, samples, signs = UUID(order.vm).bytes, list[PreflightSample](), Signs()
        try:
            samples.append(await self._seen(vm))
            gap = asyncio.sleep(self._config.policy.limits.look_gap_s + _GAP_SLACK_S)
            asked: tuple[Sign, Sign] = ("unknown", "unknown")
            if order.action in DESTRUCTIVE:
                # In the gap between the two samples, so that neither delays the action.
                _, _, asked = await asyncio.gather(
                    gap, self._save_evidence(order), self._guest_probing.asked(vm)
                )
            else:
                await gap
            samples.append(await self._seen(vm))
            signs = self._guest_probing.signs(samples[-1], asked)
        except VmNotFound as error:
            return ended("refused", "no_vm", why=error), signs
        except Exception as error:  # noqa: BLE001 -- an unknown error means no sight of the VM
            why = str(error) or f"no answer within {_SAMPLE_TIMEOUT_S:g} s"
            return ended("not_attempted", "no_look", why=why), signs
        return samples, signs

    async def _seen(self, vm: bytes) -> PreflightSample:
        async with asyncio.timeout(_SAMPLE_TIMEOUT_S):
            return await self._actuator.sample(vm)

    async def _save_evidence(self, order: Order) -> None:
        rule, sentence = await keep_evidence(self._evidence, order)
        self._results.said("outcome", order, sentence, rule=rule)

    async def _last_commands(self, task: Task) -> End | None:
        """Read control and orders to their ends, and check the order again; None if it may run."""
        try:
            async with asyncio.timeout(BARRIER_S):
                if await self._log.identity() != self._books.identity:
                    return ended("refused", "other_log")
                # An action that cannot be journaled is not performed. Pauses are read after the
                # wait for the journal, so that this wait does not make them outdated.
                if not await self._outbox.emptied(within_s=BARRIER_S):
                    return ended("not_attempted", "no_barrier", limit_s=BARRIER_S)
                cut = await self._reading.cut_topic()
                if cut is not None:
                    return ended("not_attempted", "log_changed", topic=cut)
                self._commands_ns = self._clock.mono_ns()
                await self._reading.read_to_ends()
        except LogChanged as topic:
            return ended("not_attempted", "log_changed", topic=topic)
        except (TimeoutError, LogError):
            return ended("not_attempted", "no_barrier", limit_s=BARRIER_S)
        return self._newly_refused(task)

    def _newly_refused(self, task: Task) -> End | None:
        """Return why the newest records forbid the order, None if they do not."""
        end = self._refusal(task)
        # If another agent claimed the step and ended it, the claim is the reason.
        is_claimed = end is not None and end.rule == "claimed"
        if is_closed(self._reading.history, task.order) and not is_claimed:
            return ended("refused", "already_closed")
        return end

    async def _claim(self, task: Task) -> End | None:
        """Claim the step in the log and read which claim is first; None if it is this agent's.

        Two agents of one node may have the same order without knowing of each other.
        """
        try:
            async with asyncio.timeout(BARRIER_S):
                await self._results.claim(self._log, task.order, dry_run=task.dry_run)
                self._commands_ns = self._clock.mono_ns()
                await self._reading.read_to_ends()
        except LogChanged as topic:
            return ended("not_attempted", "log_changed", topic=topic)
        except (TimeoutError, LogError):
            return ended("not_attempted", "no_claim", limit_s=BARRIER_S)
        end = self._newly_refused(task)
        if end is None and claim_of(self._reading.history, task.order) is None:
            # The order had ended before its claim was appended, or the log does not hold the claim.
            return ended("not_attempted", "claim_void")
        return end

    async def _call(
        self, task: Task, samples: list[PreflightSample], agreed: str, *, began_ns: int
    ) -> End:
        """Record the call in the ledger, make it, and report the result."""
        order = task.order
        now_ms, position = self._clock.now_ms(), self._reading.log_position
        sent = task.entry("sent", order.sentence, now_ms=now_ms, position=position)
        unwritable = self._books.enter_if_writable(sent)
        if unwritable is not None:
            return ended("not_attempted", "no_ledger", why=unwritable)
        # The disk may block for minutes, so samples, commands and order may be too old by now.
        mono_ns = self._clock.mono_ns()
        age_s, commands_s = (mono_ns - began_ns) / 1e9, (mono_ns - self._commands_ns) / 1e9
        life_s = (order.expires_ms - self._now_ms(task)) / 1000
        send_within_s = min(PREFLIGHT_WINDOW_S - age_s, BARRIER_S - commands_s, life_s)
        if send_within_s <= 0:
            return self._entered(
                task, ended("expired", "too_late", age_s=age_s, words_s=commands_s)
            )
        permit = Permit(order.instance, send_within_s, last_check(order, samples))
        names = {"action": ACTIONS[order.action].noun, "vm": order.vm}
        self._results.acted("action_sent", order, dry_run=task.dry_run)
        self._results.said("call", order, SENTENCES["calling"].format(**names, look=agreed))
        end = ended("returned", "rehearsed" if task.dry_run else "returned", **names)
        try:
            async with asyncio.timeout((order.deadline_ms - self._clock.now_ms()) / 1000):
                if not task.dry_run:
                    await call(
                        self._actuator,
                        self._evidence,
                        order,
                        left_s=self._left_s(order.deadline_ms),
                        permit=permit,
                    )
        except (ActionRefused, VmNotFound) as error:
            end = undone(error)
        except Exception as error:  # noqa: BLE001 -- an unknown error is the worst case
            end = ended("unknown", "verb_unknown", **names, why=why_of(error))
        self._results.acted(
            "action_unknown" if end.outcome == "unknown" else "action_returned",
            order,
            dry_run=task.dry_run,
            outcome=end.outcome,
        )
        return self._entered(task, end)

    async def _set_down(self) -> None:
        """Note in the ledger that the log holds the results of the ended steps."""
        if await self._outbox.emptied(within_s=_NOTIFY_S):
            self._books.set_down()
