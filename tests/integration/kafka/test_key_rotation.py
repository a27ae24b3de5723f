"""The site key is replaced under load on a real broker: every frame is accepted."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from flatline.connectors.clock import SystemClock
from flatline.connectors.kafka.config import KafkaConfig
from flatline.connectors.kafka.log import KafkaLog
from flatline.engine.frame_keyring import (
    FrameKeyring,
    make_name,
    make_site_key,
    name_key_path,
    read_site_keys,
    site_key_path,
    write_name_key,
)
from flatline.engine.ports import SignFrame
from flatline.engine.roles.opening import FrameOpener
from flatline.engine.wire.frame import Frame, VmRows, encode_frame
from flatline.engine.wire.topics import FRAMES
from tests.unit.engine.wire import samples

pytestmark = pytest.mark.kafka

NODES = ("n1", "n2")
CELL = samples.HEADER.cell
# A keyring checks its folder once a second, so each phase must be longer.
PHASE_S = 2.5
CLOCK = SystemClock()


def give_keys(site: Path, nodes: Path, site_key: str) -> None:
    """Do the same as `flatline keys create node` and a copy, for both nodes."""
    secret = read_site_keys(site)[site_key]
    for node in NODES:
        name = make_name("node", node, site_key=site_key, now_ms=CLOCK.now_ms())
        write_name_key(name_key_path(nodes / node, "node", node), name, secret)


async def written(log: KafkaLog, node: str, sign: SignFrame, done: asyncio.Event) -> int:
    """Write frames as fast as the broker accepts them, and return how many."""
    count = 0
    while not done.is_set():
        header = samples.header(node=node, sequence=count)
        value = encode_frame(Frame(header=header, rows=VmRows.empty()))
        headers = sign(CELL.encode(), value)
        await log.append(FRAMES.name, key=CELL.encode(), value=value, headers=headers)
        count += 1
    return count


async def read(log: KafkaLog, engine: FrameOpener, done: asyncio.Event) -> int:
    """Open frames while the writers run, until all were read after they ended."""
    count = offset = 0
    while True:
        ended = done.is_set()
        for record in await log.read_to_end(FRAMES.name, 0, offset=offset):
            engine(record)
            offset, count = record.offset + 1, count + 1
        if ended:
            return count
        await asyncio.sleep(0.02)


@pytest.mark.asyncio
async def test_every_frame_is_believed_while_the_site_key_is_replaced(
    configure: Callable[..., KafkaConfig], tmp_path: Path
) -> None:
    site, nodes, done, ended = tmp_path / "site", tmp_path, asyncio.Event(), asyncio.Event()
    old = make_site_key(site, now_ms=CLOCK.now_ms())
    give_keys(site, nodes, old)
    signers = {node: FrameKeyring(nodes / node, CLOCK).signer("node", node) for node in NODES}
    engine = FrameOpener(FrameKeyring(site, CLOCK).reader(), reader="test", clock=CLOCK)
    async with KafkaLog(configure(topics=(FRAMES,), partitions=1)) as log:
        async with asyncio.TaskGroup() as tasks:
            writers = [
                tasks.create_task(written(log, node, sign, done)) for node, sign in signers.items()
            ]
            reader = tasks.create_task(read(log, engine, ended))
            await asyncio.sleep(PHASE_S)
            new = make_site_key(site, now_ms=CLOCK.now_ms())
            await asyncio.sleep(PHASE_S)
            give_keys(site, nodes, new)
            await asyncio.sleep(PHASE_S)
            site_key_path(site, old).unlink()
            await asyncio.sleep(PHASE_S)
            done.set()
            counts = [await writer for writer in writers]
            ended.set()
        assert reader.result() == sum(counts)
        assert min(counts) > 100
