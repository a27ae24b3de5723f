"""Required content of a `PreflightSample` of every adapter, for each condition of the guest.

Each rule of `engine.action.preflight` depends on a field; an adapter that omits one, or fills it
with a healthy guest's value, fails here.
"""

from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import Any, Protocol

import pytest

from flatline.engine.errors import ActionRefused
from flatline.engine.preflight_data import LAST_SAMPLE_S, Permit, PreflightSample

# The `PreflightSample` of a healthy guest, and fields that may be unknown.
HEALTHY: dict[str, Any] = {
    "state": "running",
    "state_reason": "other",
    "monitor_answered": True,
    "job_active": False,
    "reported": None,
    "reported_ns": None,
    "opted_out": False,
    "uncounted": None,
}
MAY_BE_UNKNOWN = {
    "vcpu_delay_ns", "balloon_last_update_s", "balloon_period_s", "kvm_irq_injections",
    "kvm_io_exits", "net_tx_pkts", "net_tx_bytes", *HEALTHY,
}  # fmt: skip

# The conditions of a guest, and the `PreflightSample` that each must give.
CONDITIONS: dict[str, dict[str, Any]] = {
    "crashed": {"state": "crashed", "state_reason": "crashed"},
    "told of its crash": {"reported": "panicked"},
    "paused by a person": {"state": "paused", "state_reason": "other"},
    "monitor silent": {"monitor_answered": False, "job_active": None},
    "a job": {"job_active": True},
    "opted out": {"opted_out": True},
    "of another owner": {"tenant": "bmce", "group": "other"},
    "a device without counters": {"uncounted": "hostdev"},
    "interrupts counted": {"kvm_irq_injections": 70, "kvm_io_exits": 30},
    "a balloon that reports": {"balloon_period_s": 5, "balloon_last_update_s": 1_789_999_995},
}


class Harness(Protocol):
    """One live guest, and ways to change its condition."""

    vm: bytes

    def play(self, scene: Callable[[], Awaitable[None]]) -> None: ...
    async def make(self, condition: str) -> None: ...
    async def sample(self) -> PreflightSample: ...
    async def pass_time(self, seconds: float) -> None: ...
    async def boot_from_outside(self) -> None: ...
    async def reset(self, permit: Permit) -> None: ...
    def resets(self) -> int: ...


class PreflightContract:
    """Subclasses provide a fixture `harness` and list the conditions that its guest supports."""

    knows: frozenset[str] = frozenset()

    def test_a_healthy_guest_is_shown_whole(self, harness: Harness) -> None:
        async def scene() -> None:
            sample = await harness.sample()
            assert sample.vm == harness.vm
            assert {name: getattr(sample, name) for name in HEALTHY} == HEALTHY
            known = {field.name for field in fields(PreflightSample)} - MAY_BE_UNKNOWN
            unknown = {name for name in known if getattr(sample, name) in (None, (), "")}
            assert unknown == set()
            assert sample.vcpus == len(sample.vcpu_time_ns)

        harness.play(scene)

    def test_each_condition_is_shown(self, harness: Harness, condition: str) -> None:
        wanted = CONDITIONS[condition]

        async def scene() -> None:
            await harness.make(condition)
            sample = await harness.sample()
            assert {name: getattr(sample, name) for name in wanted} == wanted

        harness.play(scene)

    def test_a_boot_changes_the_number_of_boots_and_nothing_else_does(
        self, harness: Harness
    ) -> None:
        async def scene() -> None:
            first = await harness.sample()
            assert (await harness.sample()).boots_seen == first.boots_seen
            await harness.boot_from_outside()
            assert (await harness.sample()).boots_seen != first.boots_seen

        harness.play(scene)

    def test_clocks_go_on_between_two_samples(self, harness: Harness) -> None:
        async def scene() -> None:
            first = await harness.sample()
            await harness.pass_time(0.05)
            second = await harness.sample()
            assert second.mono_ns - first.mono_ns >= 50_000_000
            assert 49 <= second.wall_ms - first.wall_ms < 60_000

        harness.play(scene)

    def test_what_the_last_sample_forbids_is_not_done(self, harness: Harness) -> None:
        async def scene() -> None:
            seen = await harness.sample()
            permit = Permit(seen.instance, 60.0, last_check=lambda _look: "it stirs")
            with pytest.raises(ActionRefused, match="it stirs"):
                await harness.reset(permit)
            assert harness.resets() == 0

        harness.play(scene)

    def test_the_last_sample_is_one_of_now(self, harness: Harness) -> None:
        asked: list[PreflightSample] = []

        def check(sample: PreflightSample) -> str | None:
            asked.append(sample)
            return None

        async def scene() -> None:
            seen = await harness.sample()
            await harness.reset(Permit(seen.instance, 60.0, last_check=check))
            after = await harness.sample()
            assert harness.resets() == 1
            assert seen.mono_ns <= asked[-1].mono_ns <= after.mono_ns
            # The call was between the last preflight check and the `PreflightSample` after it.
            assert after.mono_ns - asked[-1].mono_ns <= LAST_SAMPLE_S * 1e9

        harness.play(scene)
