"""Frames that no node wrote, on a whole site with every shipped role, on virtual time."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from flatline.connectors.simulator import virtual_time
from flatline.engine import instruments
from flatline.engine.frame_keyring import FrameKeyring
from flatline.engine.ports import Headers
from flatline.engine.wire.alert import decode_alert
from flatline.engine.wire.frame import Event, Frame, Header, VmRows, encode_frame
from flatline.engine.wire.frame_mac import FrameSigner, KeyName, SiteKey, derive_key
from flatline.engine.wire.topics import ALERTS, FRAMES, ORDERS
from flatline.engine.wiring import Authority
from tests.scenarios import playing
from tests.scenarios.playing import Happening, Scenario, SitePlan, Stage, records, staged

# The VM computes and for a minute neither reads, writes nor sends: it is alive without a sign.
LIVE = 2
SCENE = Scenario(
    story="A live guest computes; somebody without a key says that it panicked.",
    lasts_s=560.0,
    site=SitePlan(nodes_per_cell=1, vms_per_node=4, pinned={str(LIVE): "batch"}),
    happens=(Happening(kind="fleet_io_silence", at_s=490, vms=(LIVE,), duration_s=70),),
)
FORGED_S = 520.0
KEY = b"c0"


def forged_frame(stage: Stage, node: str) -> bytes:
    """Return one frame of a collector that reports a panic by the VM's panic device."""
    now_ns = stage.clock.now_ms() * 1_000_000
    header = Header(
        site="site", zone="z0", cell="c0", node=node, role="collector", run="x", sequence=0,
        event_time_ns=now_ns, mono_ns=1, interval_ms=2000,
    )  # fmt: skip
    reported = Event(id="x/0", kind="panicked", time_ns=now_ns, vm=stage.fleet.vm(LIVE))
    return encode_frame(Frame(header=header, rows=VmRows.empty(), events=(reported,)))


def unsigned(_value: bytes) -> Headers:
    return ()


def by_another_site(value: bytes) -> Headers:
    """Sign with a site key that this site does not have."""
    name = KeyName("node", "node-that-is-none", "0" * 16, "0" * 16)
    return FrameSigner(name, derive_key(bytes(32), name), nonce=lambda: bytes(12))(KEY, value)


async def reports_of(node: str, *signs: Callable[[bytes], Headers]) -> tuple[set[str], int]:
    """Play the scene, forge a frame in each way, and return the kinds of alerts and the orders."""
    async with staged(SCENE) as stage:
        playing_on = asyncio.create_task(stage.play())
        await asyncio.sleep(FORGED_S)
        for sign in signs:
            value = forged_frame(stage, node)
            await stage.log.append(FRAMES.name, key=KEY, value=value, headers=sign(value))
        await playing_on
        alerts = [decode_alert(record.value) async for record in records(stage.log, ALERTS.name)]
        orders = [record async for record in records(stage.log, ORDERS.name)]
        return {alert.kind for alert in alerts if alert.scope == "vm"}, len(orders)


def play(
    monkeypatch: pytest.MonkeyPatch,
    *signs: Callable[[bytes], Headers],
    requiring: bool,
    node: str = "c0-n0",
) -> tuple[set[str], int]:
    made = playing.authority_of

    def with_keys(scenario: Scenario) -> Authority:
        authority = made(scenario)
        memory = SiteKey(b"k" * 32)
        frames = FrameKeyring(None, authority.frames.clock, requiring=requiring, memory=memory)
        return replace(authority, frames=frames)

    monkeypatch.setattr(playing, "authority_of", with_keys)
    return virtual_time.run(reports_of(node, *signs))


@pytest.mark.parametrize("node", ["c0-n0", "node-that-is-none"])
def test_one_frame_without_a_known_key_reports_no_panic(
    monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    counted = instruments.FRAMES_NOT_BELIEVED.labels("engine")
    before = counted._value.get()
    kinds, orders = play(monkeypatch, unsigned, by_another_site, requiring=True, node=node)
    assert not {kind for kind in kinds if kind.startswith("panic")}
    assert not orders
    assert counted._value.get() - before == 2


def test_where_frames_without_a_mac_are_accepted_the_live_vm_is_reported_to_have_panicked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The scene is truly dangerous: releases before frame keys ordered a reset here."""
    kinds, _ = play(monkeypatch, unsigned, requiring=False)
    assert "panic_spin" in kinds


def test_a_node_that_does_not_exist_speaks_for_no_vm_though_its_frames_are_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds, _ = play(monkeypatch, unsigned, requiring=False, node="node-that-is-none")
    assert "panic_spin" not in kinds
