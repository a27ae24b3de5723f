import asyncio
import socket
import time
from typing import Any

import pytest

from flatline.connectors.simulator.virtual_time import DeadlockError, VirtualLoop, run


def test_a_day_passes_in_no_time() -> None:
    async def main() -> Any:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(86_400 * 3)
        return loop.time()

    started = time.monotonic()
    assert run(main()) == pytest.approx(86_400 * 3)
    assert time.monotonic() - started < 5


def test_sleepers_wake_in_the_order_of_their_timers() -> None:
    async def main() -> Any:
        woken: list[tuple[float, float]] = []

        async def sleeper(seconds: float) -> None:
            await asyncio.sleep(seconds)
            woken.append((seconds, asyncio.get_running_loop().time()))

        await asyncio.gather(*(sleeper(s) for s in (30.0, 0.1, 7.0, 0.2)))
        return woken

    woken = run(main())
    assert [seconds for seconds, _ in woken] == [0.1, 0.2, 7.0, 30.0]
    assert all(at == pytest.approx(seconds) for seconds, at in woken)


def test_timeout_fires_at_its_virtual_time() -> None:
    async def main() -> Any:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(45):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run(main()) == pytest.approx(45)


def test_a_timeout_that_is_not_reached_costs_no_time() -> None:
    async def main() -> Any:
        event = asyncio.Event()
        asyncio.get_running_loop().call_later(2, event.set)
        async with asyncio.timeout(600):
            await event.wait()
        return asyncio.get_running_loop().time()

    assert run(main()) == pytest.approx(2)


def test_time_stands_still_while_a_callback_works() -> None:
    async def main() -> Any:
        loop = asyncio.get_running_loop()
        before = loop.time()
        sum(range(200_000))
        await asyncio.sleep(0)
        return loop.time() - before

    assert run(main()) == 0.0


def test_a_deadlock_is_named_with_the_place_that_waits() -> None:
    async def waits_for_ever() -> None:
        await asyncio.Event().wait()

    async def main() -> Any:
        task = asyncio.create_task(waits_for_ever(), name="the-patient-one")
        await asyncio.sleep(12)
        await task

    with pytest.raises(
        DeadlockError, match=r"12\.000 s.*the-patient-one waits in .*waits_for_ever"
    ):
        run(main())


def test_tasks_are_cancelled_and_cleaned_up_after_a_deadlock() -> None:
    cleaned: list[bool] = []

    async def main() -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    with pytest.raises(DeadlockError):
        run(main())
    assert cleaned == [True]


def test_real_descriptors_are_served_without_a_timer() -> None:
    async def main() -> Any:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours, theirs:
            loop = asyncio.get_running_loop()
            receiving = asyncio.create_task(loop.sock_recv(ours, 16))
            await asyncio.sleep(5)
            theirs.sendall(b"hello")
            return await receiving

    assert run(main()) == b"hello"


def test_open_descriptors_are_waited_for_and_are_no_deadlock() -> None:
    async def main() -> Any:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours, theirs:
            loop = asyncio.get_running_loop()
            sending = loop.run_in_executor(None, theirs.sendall, b"later")
            received = await loop.sock_recv(ours, 16)
            await sending
            return received, loop.time()

    assert run(main()) == (b"later", 0.0)


def test_time_waits_for_a_thread() -> None:
    async def main() -> Any:
        loop = asyncio.get_running_loop()
        ticks: list[float] = []

        async def ticker() -> None:
            while True:
                await asyncio.sleep(1)
                ticks.append(loop.time())

        ticking = asyncio.create_task(ticker())
        answer = await asyncio.to_thread(sum, range(100_000))
        ticking.cancel()
        return answer, ticks

    assert run(main()) == (4_999_950_000, [])


def test_a_failing_thread_lets_time_go_on() -> None:
    async def main() -> Any:
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(divmod, 1, 0)
        await asyncio.sleep(9)
        return asyncio.get_running_loop().time()

    assert run(main()) == pytest.approx(9)


def test_speed_paces_virtual_against_real_time() -> None:
    async def main() -> Any:
        await asyncio.sleep(20)
        return asyncio.get_running_loop().time()

    started = time.monotonic()
    assert run(main(), speed=100) == pytest.approx(20)
    assert 0.19 <= time.monotonic() - started < 2


def test_paced_time_goes_on_at_speed_after_work_that_took_too_long() -> None:
    async def main() -> Any:
        await asyncio.sleep(1)
        stalled_until = time.monotonic() + 0.1
        while time.monotonic() < stalled_until:
            pass
        await asyncio.sleep(1)
        resumed = time.monotonic()
        await asyncio.sleep(10)
        return time.monotonic() - resumed

    assert run(main(), speed=100) >= 0.09


def test_paced_descriptors_are_served_between_timers() -> None:
    async def main() -> Any:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours, theirs:
            theirs.sendall(b"x")
            asyncio.get_running_loop().call_later(3600, theirs.close)
            received = await loop.sock_recv(ours, 1)
            return received, loop.time()

    received, at = run(main(), speed=1)
    assert received == b"x"
    assert at < 60


@pytest.mark.parametrize("speed", [0, -1.0])
def test_a_speed_that_is_not_positive_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        run(asyncio.sleep(1), speed=speed)


def test_an_exception_in_main_comes_through() -> None:
    async def main() -> Any:
        await asyncio.sleep(1)
        raise LookupError("from inside")

    with pytest.raises(LookupError, match="from inside"):
        run(main())


def test_two_runs_interleave_their_tasks_alike() -> None:
    async def main() -> Any:
        order: list[str] = []

        async def worker(name: str, period: float) -> None:
            for _ in range(20):
                await asyncio.sleep(period)
                order.append(name)

        await asyncio.gather(*(worker(f"w{k}", 0.5 + k % 3 * 0.25) for k in range(9)))
        return order

    assert run(main()) == run(main())


def test_the_speed_can_change_in_mid_run() -> None:
    async def main() -> Any:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        began = time.monotonic()
        await asyncio.sleep(3600)
        loop.pace(10)
        paced = time.monotonic()
        await asyncio.sleep(2)
        return paced - began, time.monotonic() - paced, loop.time()

    unpaced_s, paced_s, at_s = run(main())
    assert unpaced_s < 1
    assert 0.2 <= paced_s < 5
    assert at_s == 3602
