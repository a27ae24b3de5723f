"""The promises of `engine.liveness_ports`, for every adapter and fake."""

from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import Protocol

from flatline.engine.liveness_ports import Liveness, ProbeAnswer, Prober
from flatline.engine.preflight_data import Card, ObservedGuest

UNKNOWN_MAY_BE = {"balloon_period_s", "cards", "kvm_irq_injections"}
STRANGER = bytes(15) + b"\x09"
CARD = Card("52:54:00:00:00:01", "virbr0")
ADDRESS = "192.0.2.7"


class Node(Protocol):
    """A node with one guest whose owner agreed to actions, and others whose owners did not."""

    vm: bytes
    watch: Liveness

    def play(self, scene: Callable[[], Awaitable[None]]) -> None: ...
    async def boot(self) -> None: ...
    async def work(self) -> None: ...


class LivenessContract:
    """Subclasses provide a fixture `node`."""

    def test_only_who_may_be_acted_on_is_watched_and_is_shown_whole(self, node: Node) -> None:
        async def scene() -> None:
            (one,) = await node.watch.roster()
            assert one.vm == node.vm
            unknown = {
                field.name for field in fields(ObservedGuest) if getattr(one, field.name) is None
            }
            assert unknown <= UNKNOWN_MAY_BE
            assert one.vcpu_wanted_ns != ()

        node.play(scene)

    def test_a_boot_is_another_one_and_nothing_else_is(self, node: Node) -> None:
        async def scene() -> None:
            (first,) = await node.watch.roster()
            (again,) = await node.watch.roster()
            assert again.boots_seen == first.boots_seen
            assert again.mono_ns >= first.mono_ns
            await node.boot()
            (after,) = await node.watch.roster()
            assert after.boots_seen != first.boots_seen

        node.play(scene)

    def test_a_guest_that_works_moves_more_than_before(self, node: Node) -> None:
        async def scene() -> None:
            (first,) = await node.watch.roster()
            await node.work()
            (after,) = await node.watch.roster()
            assert None not in (first.moved, after.moved)
            assert (after.moved or 0) > (first.moved or 0)

        node.play(scene)

    def test_what_a_guest_does_not_tell_is_unknown_and_no_error(self, node: Node) -> None:
        async def scene() -> None:
            assert await node.watch.addresses(node.vm) == {}
            assert await node.watch.ping_agent(node.vm, within_s=5.0) == "unknown"
            assert await node.watch.console(node.vm) == ""

        node.play(scene)


class ProberContract:
    """Subclasses define how to probe, and a target that answers if any does."""

    answers: ProbeAnswer = ProbeAnswer("unknown")

    def ask(self, prober: Prober, *addresses: str) -> ProbeAnswer:
        raise NotImplementedError

    def test_a_card_of_which_no_address_is_known_is_unknown(self, prober: Prober) -> None:
        assert self.ask(prober).sign == "unknown"

    def test_an_answer_names_its_address_and_anything_unknown_its_reason(
        self, prober: Prober
    ) -> None:
        found = self.ask(prober, ADDRESS)
        assert found.sign == self.answers.sign
        assert found.address == (ADDRESS if found.sign == "answered" else "")
        assert bool(found.why) == (found.sign == "unknown")
