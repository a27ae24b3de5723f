"""The agent's probing of the guests on which it may act: it collects signs of life in rounds.

It decides nothing. `engine.action.guest_liveness` interprets an answer or its lack.
"""

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self
from uuid import UUID

import structlog

from flatline.engine import instruments
from flatline.engine.action.guest_liveness import (
    Channel,
    Guest,
    ProbeReport,
    console_read,
    heard,
    on_bridge,
    seen,
    signs_of,
)
from flatline.engine.errors import ActionRefused, HypervisorUnreachable
from flatline.engine.liveness_ports import Liveness, ProbeAnswer, Prober
from flatline.engine.ports import Clock
from flatline.engine.preflight_data import ObservedGuest, PreflightSample, Sign, Signs
from flatline.engine.roles.health import Health, as_sentence
from flatline.engine.roles.results import Results

_log = structlog.get_logger()

# Time between two rounds. An alert on a dead guest fires after some 30 s; by then the guest has not
# answered in two rounds.
ROUND_S: Final = 10.0
# How many guests are probed concurrently. A probe sends at most three Ethernet frames in 1.2 s for
# each network card. So a node whose guests have one card each sends at most 20 frames a second; on
# a node with many guests, a round takes longer.
_AT_ONCE: Final = 8
_PROBE_S: Final = 1.5
# Time limit for an answer of the guest agent in a round. libvirt itself waits for up to 9 s before
# it reports that the guest agent is silent.
_AGENT_S: Final = 12.0
# The same limit during a preflight check, which waits 4 s between its samples.
_AGENT_TIMEOUT_S: Final = 3.0
# How long a guest's addresses are kept before they are queried again; DHCP leases last hours. A
# guest that changes its address by itself seems silent until then, because its old address is
# probed. This silence alone never leads to an action on the VM.
_ADDRESSES_NS: Final = 300 * 10**9
# The reporting period of a balloon if the agent sets it.
BALLOON_PERIOD_S: Final = 10

SENTENCES: Final = {
    "balloon_set": "The balloon of {vm} had no statistics period. It now reports every {period_s} "
    "s until the VM ends.",
    "balloon_unset": "The balloon of {vm} has no statistics period, and setting one failed: {why}",
}


class GuestProbing:
    """Keeps the signs of life of each guest; `signs` returns them as of a preflight sample.

    Parameters
    ----------
    watch, prober
        None if not available. Without `watch`, no sign of life is known of any guest; without
        `prober`, only the answers to probes are unknown.
    sets_balloons
        Whether to set a period for a balloon that has none.
    """

    def __init__(
        self,
        *,
        watch: Liveness | None,
        prober: Prober | None,
        results: Results,
        clock: Clock,
        health: Health,
        sets_balloons: bool,
    ) -> None:
        self._watch = watch if watch is not None else _Blind()
        self._prober = prober
        self._results = results
        self._clock = clock
        self._health = health
        self._sets_balloons = sets_balloons
        self._guests: dict[bytes, Guest] = {}
        self._on_bridges: dict[str, dict[bytes, int]] = {}
        self._roster: dict[bytes, ObservedGuest] = {}
        self._addresses: dict[bytes, tuple[int, Mapping[str, tuple[str, ...]]]] = {}
        self._tried: set[tuple[bytes, int]] = set()
        self._logged: set[tuple[bytes, str]] = set()
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Watch until cancelled; a sign that cannot be read counts as unknown."""
        while True:
            began_ns = self._clock.mono_ns()
            try:
                await self.round()
                self._health.done("watch")
            except HypervisorUnreachable as error:
                self._health.waiting("watch", f"{as_sentence(error)} Retrying.")
            spent_s = (self._clock.mono_ns() - began_ns) / 1e9
            await asyncio.sleep(max(1.0, ROUND_S - spent_s))

    async def round(self) -> None:
        """Sample all guests, then probe each of them for its signs of life.

        Raises
        ------
        HypervisorUnreachable
            The hypervisor did not list its guests, so none was probed.
        """
        roster = {one.vm: one for one in await self._watch.roster()}
        self._guests = {vm: seen(self._guests.get(vm), one) for vm, one in roster.items()}
        self._addresses = {vm: known for vm, known in self._addresses.items() if vm in roster}
        self._on_bridges = {
            bridge: {vm: moment_ns for vm, moment_ns in answered_ns.items() if vm in roster}
            for bridge, answered_ns in self._on_bridges.items()
        }
        self._tried = {(vm, run) for vm, run in self._tried if vm in roster}
        self._logged = {(vm, channel) for vm, channel in self._logged if vm in roster}
        self._roster = roster
        await asyncio.gather(*(self._visit(one) for one in roster.values()))

    async def _visit(self, one: ObservedGuest) -> None:
        async with self._room:
            probe = await self._probe(one)
            self._note(one, "probe", probe.sign, {"address": probe.address})
            if one.agent_connected:
                sign = await self._ping(one, within_s=_AGENT_S)
                self._note(one, "agent", sign, {})
            if one.has_console:
                await self._read_console(one)
            if self._sets_balloons and one.balloon_period_s == 0:
                await self._set_balloon(one)

    async def asked(self, vm: bytes) -> tuple[Sign, Sign]:
        """Probe a guest and call its agent now; return the signs of probe and agent, in this order.

        A sign is "unknown" where it cannot be asked for, for example if no round has seen the VM.
        """
        one = self._roster.get(vm)
        if one is None:
            return "unknown", "unknown"
        probe, agent = await asyncio.gather(
            self._probe(one),
            self._ping(one, within_s=_AGENT_TIMEOUT_S) if one.agent_connected else _unknown(),
        )
        return probe.sign, agent

    def signs(self, sample: PreflightSample, asked: tuple[Sign, Sign]) -> Signs:
        """Return the signs of life of a guest as of `sample`, given the result of `asked`."""
        probe, agent = asked
        return signs_of(self._guests.get(sample.vm), sample, probe=probe, agent=agent)

    async def _probe(self, one: ObservedGuest) -> ProbeAnswer:
        if self._prober is None:
            return ProbeAnswer("unknown", why="no probe is available here")
        try:
            addresses = await self._addresses_of(one)
            asking = (
                self._prober.ask(card, addresses.get(card.mac, ()), within_s=_PROBE_S)
                for card in one.cards
            )
            answers = await asyncio.gather(*asking)
        except Exception as error:  # noqa: BLE001 -- an unknown error is no sign at all
            self._failed("probe", one.vm, error)
            return ProbeAnswer("unknown", why=str(error))
        return self._of_all_cards(one, answers)

    def _of_all_cards(self, one: ObservedGuest, answers: Sequence[ProbeAnswer]) -> ProbeAnswer:
        """Return the result for a guest from the results of its network cards.

        An answer of any card counts. Without one, the guest is silent if a card on a working bridge
        is silent.
        """
        now_ns, silent = self._clock.mono_ns(), False
        for card, answer in zip(one.cards, answers, strict=True):
            on_it = self._on_bridges.setdefault(card.bridge, {})
            if answer.sign == "answered":
                on_it[one.vm] = now_ns
                return answer
            silent |= on_bridge(answer.sign, on_it, one.vm, now_ns=now_ns) == "silent"
        if silent:
            return ProbeAnswer("silent")
        return ProbeAnswer("unknown", why="none of its network cards is on a usable bridge")

    async def _addresses_of(self, one: ObservedGuest) -> Mapping[str, tuple[str, ...]]:
        known_ns, known = self._addresses.get(one.vm, (0, {}))
        if one.cards and (not known or one.mono_ns - known_ns > _ADDRESSES_NS):
            known = await self._watch.addresses(one.vm)
            self._addresses[one.vm] = (one.mono_ns, known)
        return known

    async def _ping(self, one: ObservedGuest, *, within_s: float) -> Sign:
        try:
            return await self._watch.ping_agent(one.vm, within_s=within_s)
        except Exception as error:  # noqa: BLE001 -- an unknown error is no sign at all
            self._failed("agent", one.vm, error)
            return "unknown"

    async def _read_console(self, one: ObservedGuest) -> None:
        try:
            text = await self._watch.console(one.vm)
        except Exception as error:  # noqa: BLE001 -- an unreadable console says nothing
            self._failed("console", one.vm, error)
            return
        guest = self._guests.get(one.vm)
        if guest is not None:
            self._guests[one.vm], line = console_read(guest, text)
            if line:
                self._results.noticed("console_panic", one.vm, {"line": line})

    def _failed(self, channel: str, vm: bytes, error: Exception) -> None:
        """Count a failed query, and log it once for each VM and channel, so that it is visible."""
        instruments.SIGNS_UNREAD.labels(channel).inc()
        if (vm, channel) not in self._logged:
            self._logged.add((vm, channel))
            _log.warning(
                "A sign of life of the guest could not be read and counts as unknown.",
                vm=str(UUID(bytes=vm)),
                channel=channel,
                error=as_sentence(error),
            )

    def _note(
        self, one: ObservedGuest, channel: Channel, sign: Sign, detail: dict[str, str]
    ) -> None:
        guest = self._guests.get(one.vm)
        if guest is None:
            return
        last_ns = getattr(guest, channel).answered_ns
        self._guests[one.vm], change = heard(guest, channel, sign, now_ns=one.mono_ns)
        if change is None:
            return
        if change == "silent":
            ago_ms = (one.mono_ns - (last_ns or one.mono_ns)) // 1_000_000
            detail = {"last_answer_ms": str(self._clock.now_ms() - ago_ms)}
        self._results.noticed(_KINDS[channel, change], one.vm, detail)

    async def _set_balloon(self, one: ObservedGuest) -> None:
        """Set the period of a balloon, once for each run of a VM, and journal the result."""
        if (one.vm, one.instance) in self._tried:
            return
        self._tried.add((one.vm, one.instance))
        vm = str(UUID(bytes=one.vm))
        try:
            await self._watch.set_balloon_period(one.vm, period_s=BALLOON_PERIOD_S)
        except (HypervisorUnreachable, ActionRefused) as error:
            sentence = SENTENCES["balloon_unset"].format(vm=vm, why=error)
            self._results.journalled(sentence, vm=vm, rule="balloon_unset")
        else:
            sentence = SENTENCES["balloon_set"].format(vm=vm, period_s=BALLOON_PERIOD_S)
            self._results.journalled(sentence, vm=vm, rule="balloon_set")


_KINDS: Final[Mapping[tuple[Channel, ProbeReport], str]] = {
    ("probe", "answered"): "probe_answered",
    ("probe", "silent"): "probe_silent",
    ("agent", "answered"): "agent_answered",
    ("agent", "silent"): "agent_silent",
}


async def _unknown() -> Sign:
    return "unknown"


class _Blind:
    """The `Liveness` of an agent without one: it lists no guests, so nothing else is called."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    async def roster(self) -> tuple[ObservedGuest, ...]:
        return ()

    async def addresses(self, vm: bytes) -> Mapping[str, tuple[str, ...]]:
        return {}

    async def ping_agent(self, vm: bytes, *, within_s: float) -> Sign:
        return "unknown"

    async def console(self, vm: bytes) -> str:
        return ""

    async def set_balloon_period(self, vm: bytes, *, period_s: int) -> None: ...
