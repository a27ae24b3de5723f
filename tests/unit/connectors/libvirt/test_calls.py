"""No caller waits longer than its limit, and a stuck thread keeps no process alive."""

import asyncio
import threading

import pytest

from flatline.connectors.libvirt.calls import Call, first_returned

pytestmark = pytest.mark.asyncio
PATIENCE_S = 10.0


async def test_a_call_returns_what_its_work_returns() -> None:
    call = Call(lambda: 7, name="seven")
    assert await first_returned([call], patience_s=PATIENCE_S) is call
    assert not call.waits
    assert call.result() == 7


async def test_a_call_raises_what_its_work_raises() -> None:
    def fails() -> None:
        raise KeyError("gone")

    call = Call(fails, name="fails")
    await first_returned([call], patience_s=PATIENCE_S)
    with pytest.raises(KeyError, match="gone"):
        call.result()


async def test_a_call_that_is_late_is_left_waiting_and_its_thread_holds_no_process() -> None:
    gate = threading.Event()
    call = Call(lambda: gate.wait(PATIENCE_S), name="late-call")
    assert await first_returned([call], patience_s=0.0) is None
    assert call.waits
    with pytest.raises(RuntimeError, match="not returned yet"):
        call.result()
    [thread] = [thread for thread in threading.enumerate() if thread.name == "late-call"]
    assert thread.daemon
    gate.set()
    assert await first_returned([call], patience_s=PATIENCE_S) is call


async def test_the_first_of_several_is_enough() -> None:
    gate = threading.Event()
    stuck = Call(lambda: gate.wait(PATIENCE_S), name="stuck")
    quick = Call(lambda: True, name="quick")
    assert await first_returned([stuck, quick], patience_s=PATIENCE_S) is quick
    gate.set()
    await first_returned([stuck], patience_s=PATIENCE_S)


async def test_nothing_to_wait_for_is_nothing_returned() -> None:
    nothing: list[Call[int]] = []
    assert await first_returned(nothing, patience_s=PATIENCE_S) is None


def ends_with_a_call_under_way(gate: threading.Event, threads: list[threading.Thread]) -> None:
    async def begin() -> None:
        Call(lambda: gate.wait(PATIENCE_S), name="outlives-loop")
        threads.extend(t for t in threading.enumerate() if t.name == "outlives-loop")

    asyncio.run(begin())


async def test_a_call_that_outlives_its_loop_ends_quietly() -> None:
    gate, threads = threading.Event(), list[threading.Thread]()
    await asyncio.to_thread(ends_with_a_call_under_way, gate, threads)
    gate.set()
    # An exception in the thread would be a warning, and warnings are errors here.
    await asyncio.to_thread(threads[0].join, PATIENCE_S)
    assert not threads[0].is_alive()
