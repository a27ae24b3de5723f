"""Latency from an alert to an order, and from an order to a call.

Planner, log on disk, agent and ledger are the shipped ones, in one process. Waiting takes virtual
time and work takes real time; a span is the sum of both, without the seconds in which the agent's
preflight check watches the VM.
"""

import asyncio
import tempfile
import time
from pathlib import Path

import numpy as np
import structlog

from benchmarks.report import Figure, report
from flatline.connectors.simulator import virtual_time
from flatline.engine.wire.topics import ORDERS
from tests.simulation.acting_site import LAB, Site, acting_site, panic

ROUNDS = 100
ALERT_TO_ORDER_GOAL_S, ORDER_TO_CALL_GOAL_S = 1.0, 1.0
# Between the agent's two samples, with its tolerance for two clocks that differ by a tick.
_SAMPLE_TIMEOUT_S = LAB.limits.look_gap_s + 0.1


def _now_s() -> float:
    """Return a reading that grows with virtual waits and with real work."""
    return asyncio.get_running_loop().time() + time.perf_counter()


async def _until(site: Site, orders: int) -> float:
    while (await site.log.bounds(ORDERS.name, 0)).end < orders:  # noqa: ASYNC110 -- a log is read
        await asyncio.sleep(0.001)
    return _now_s()


async def _round(folder: Path) -> tuple[float, float]:
    """Return seconds from alert to order and from order to call."""
    called: list[float] = []
    async with acting_site(panic(), folder=folder) as site:
        site.fleet.world.interference = lambda call: called.append(_now_s())
        site.start_planner()
        site.start_agent()
        await asyncio.sleep(20.0)
        alert = site.alert()
        began_s = _now_s()
        await site.say(alert)
        ordered_s = await _until(site, 1)
        await site.until_reset()
    return ordered_s - began_s, called[0] - ordered_s - _SAMPLE_TIMEOUT_S


def main() -> None:
    """Measure, show and write the figures."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    spans = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            spans.append(virtual_time.run(_round(Path(folder))))
    names = ("alert to order", "order to call, without the look's gap")
    rows: list[dict[str, Figure]] = []
    met = True
    for name, column, goal_s in zip(
        names, np.array(spans).T, (ALERT_TO_ORDER_GOAL_S, ORDER_TO_CALL_GOAL_S), strict=True
    ):
        p50_s, p99_s = (float(np.percentile(column, q)) for q in (50, 99))
        met = met and p99_s <= goal_s
        rows.append({"span": name, "p50_ms": p50_s * 1e3, "p99_ms": p99_s * 1e3, "rounds": ROUNDS})
    report(
        "actuation",
        claim="Alert to order and order to libvirt call: p99 within a second each",
        rows=rows,
        goals_met=met,
    )


if __name__ == "__main__":
    main()
