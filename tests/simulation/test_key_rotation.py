"""The site key is replaced while a whole site runs: no frame is lost, on virtual time."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from flatline.connectors.clock import LoopClock
from flatline.connectors.simulator import virtual_time
from flatline.connectors.simulator.plan import WorldPlan
from flatline.engine import instruments
from flatline.engine.frame_keyring import FrameKeyring, make_site_key, read_site_keys, site_key_path
from flatline.engine.wire.frame_mac import parse_key_name
from flatline.engine.wire.order import KEY_HEADER
from flatline.engine.wire.topics import FRAMES
from flatline.engine.wiring import Authority
from tests.scenarios import playing
from tests.scenarios.playing import Scenario, SitePlan, records, staged

SCENE = Scenario(
    story="The site key is replaced under running collectors, agents and an engine.",
    lasts_s=90.0,
    site=SitePlan(cells=2, nodes_per_cell=2, vms_per_node=2, interval_s=1.0),
)


def test_no_frame_is_lost_while_the_site_key_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, made = tmp_path / "keys", playing.authority_of

    async def scene() -> list[str]:
        async with staged(SCENE) as stage:
            play = asyncio.create_task(stage.play())
            await asyncio.sleep(30.3)
            (old,) = read_site_keys(folder)
            make_site_key(folder, now_ms=stage.clock.now_ms())
            await asyncio.sleep(30.0)
            site_key_path(folder, old).unlink()
            await play
            used = []
            async for record in records(stage.log, FRAMES.name):
                name = parse_key_name(dict(record.headers)[KEY_HEADER].decode())
                assert name is not None
                used.append(name.site_key)
            return used

    def with_folder(scenario: Scenario) -> Authority:
        authority = made(scenario)
        # The stage's clock is a loop's: any gives the same reading.
        clock = LoopClock(epoch_ms=WorldPlan(seed=1).epoch_s * 1000)
        return replace(authority, frames=FrameKeyring(folder, clock, making=True))

    monkeypatch.setattr(playing, "authority_of", with_folder)
    counted = instruments.FRAMES_NOT_BELIEVED.labels("engine")
    folded = instruments.RECORDS.labels("rejected")
    before = counted._value.get(), folded._value.get()
    used = virtual_time.run(scene())
    assert (counted._value.get(), folded._value.get()) == before
    assert len(set(used)) == 2
    # 4 nodes, a frame a second each.
    assert len(used) >= 4 * 85
