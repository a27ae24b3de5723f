"""libvirt's data for guest probing, and its gaps."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from flatline.connectors.libvirt.binding import Library
from flatline.connectors.libvirt.heard import Heard
from flatline.connectors.libvirt.inventory import NAMESPACE, read_watched
from flatline.connectors.libvirt.liveness import LibvirtLiveness, read_addresses, read_neighbours
from flatline.engine.errors import ActionRefused, HypervisorUnreachable
from flatline.engine.preflight_data import Card
from tests.unit.connectors.libvirt.scripted import (
    ScriptedDomain,
    ScriptedError,
    ScriptedLibrary,
    Vm,
)

AGREED = f"<metadata><f:vm xmlns:f='{NAMESPACE}' actionable='yes'/></metadata>"
MAC = "52:54:00:00:00:01"
CARD = (
    f"<interface type='network'><mac address='{MAC}'/>"
    "<source network='default' bridge='virbr0'/></interface>"
)


@pytest.fixture
def library() -> Iterator[ScriptedLibrary]:
    library = ScriptedLibrary(vms=2)
    library.vms[0].inside = AGREED
    library.vms[0].full |= {"vcpu.0.delay": 6}
    yield library
    library.let_go()


@pytest.fixture
def vm(library: ScriptedLibrary) -> Vm:
    return library.vms[0]


def play(
    library: ScriptedLibrary,
    scene: Callable[[LibvirtLiveness], Coroutine[Any, Any, None]],
    neighbours: Path = Path("/nowhere"),
    heard: Heard | None = None,
) -> None:
    async def played() -> None:
        async with LibvirtLiveness(
            uri="test",
            heard=heard or Heard(),
            library=cast(Library, library),
            neighbours=neighbours,
            ping=lambda domain, *, within_s: cast(ScriptedDomain, domain).vm.note(
                "guest-ping", within_s
            ),
        ) as watch:
            await scene(watch)

    asyncio.run(played())


def test_only_vms_whose_owners_agreed_are_watched(library: ScriptedLibrary, vm: Vm) -> None:
    heard = Heard()
    heard.begin()

    async def scene(watch: LibvirtLiveness) -> None:
        (one,) = await watch.roster()
        assert (one.vm, one.vcpu_wanted_ns, one.boots_seen) == (vm.uuid, (10,), 1)
        heard.add("rebooted", vm=vm.uuid)
        assert (await watch.roster())[0].boots_seen == 2

    play(library, scene, heard=heard)


def test_a_vcpu_whose_waiting_is_not_reported_is_not_watched(
    library: ScriptedLibrary, vm: Vm
) -> None:
    del vm.full["vcpu.0.delay"]

    async def scene(watch: LibvirtLiveness) -> None:
        assert (await watch.roster())[0].vcpu_wanted_ns == ()

    play(library, scene)


@pytest.mark.parametrize(
    ("inside", "cards"),
    [
        (CARD, (Card(MAC, "virbr0"),)),
        (
            CARD.replace("network='default' ", "").replace("'network'", "'bridge'"),
            (Card(MAC, "virbr0"),),
        ),
        (CARD.replace("<mac", "<link state='up'/><mac"), (Card(MAC, "virbr0"),)),
        # Its link is down.
        (CARD.replace("<mac", "<link state='down'/><mac"), ()),
        # Not live yet, not on the bridge, or served by another process.
        (CARD.replace(" bridge='virbr0'", ""), ()),
        (CARD.replace("'network'", "'direct'", 1), ()),
        (CARD.replace("'network'", "'vhostuser'", 1), ()),
        (CARD.replace("'network'", "'hostdev'", 1), ()),
        (CARD.replace(f"<mac address='{MAC}'/>", ""), ()),
    ],
)
def test_a_card_is_known_by_the_bridge_it_hangs_on(inside: str, cards: tuple[Card, ...]) -> None:
    assert read_watched(f"<domain><devices>{inside}</devices></domain>").cards == cards


@pytest.mark.parametrize(
    ("inside", "connected"),
    [
        ("<channel><target name='org.qemu.guest_agent.0' state='connected'/></channel>", True),
        ("<channel><target name='org.qemu.guest_agent.0' state='disconnected'/></channel>", False),
        ("<channel><target name='com.redhat.spice.0' state='connected'/></channel>", False),
        ("", False),
    ],
)
def test_a_guest_agent_is_asked_only_where_its_channel_is_open(
    inside: str, connected: bool
) -> None:
    xml = f"<domain><devices>{inside}</devices></domain>"
    assert read_watched(xml).agent_connected is connected


@pytest.mark.parametrize(
    ("inside", "period_s"),
    [
        ("<memballoon model='virtio'><stats period='5'/></memballoon>", 5),
        ("<memballoon model='virtio'/>", 0),
        ("<memballoon model='virtio'><stats period='0'/></memballoon>", 0),
        ("<memballoon model='none'/>", None),
        ("", None),
    ],
)
def test_a_balloon_has_a_period_or_none_or_is_none(inside: str, period_s: int | None) -> None:
    xml = f"<domain><devices>{inside}</devices></domain>"
    assert read_watched(xml).balloon_period_s == period_s


@pytest.mark.parametrize(
    ("error", "sign"),
    [
        (None, "answered"),
        (ScriptedError(1, "unable to execute QEMU agent command 'guest-ping': x"), "answered"),
        (ScriptedError(86, "agent is silent"), "silent"),
        (ScriptedError(97, "not in step"), "unknown"),
        (ScriptedError(1, "monitor socket did not show up"), "unknown"),
    ],
)
def test_a_guest_agent_answers_or_does_not(
    library: ScriptedLibrary, vm: Vm, error: Exception | None, sign: str
) -> None:
    if error is not None:
        vm.errors["guest-ping"] = error

    async def scene(watch: LibvirtLiveness) -> None:
        assert await watch.ping_agent(vm.uuid, within_s=9.0) == sign
        assert vm.done == ([] if error else [("guest-ping", 4)])

    play(library, scene)


def test_an_agent_of_which_libvirt_says_nothing_in_time_is_unknown(
    library: ScriptedLibrary, vm: Vm
) -> None:
    library.frozen.clear()

    async def scene(watch: LibvirtLiveness) -> None:
        asked = asyncio.ensure_future(watch.ping_agent(vm.uuid, within_s=0.02))
        assert await asked == "unknown"
        library.frozen.set()

    play(library, scene)


def test_a_period_is_set_on_the_running_vm_alone(library: ScriptedLibrary, vm: Vm) -> None:
    async def scene(watch: LibvirtLiveness) -> None:
        await watch.set_balloon_period(vm.uuid, period_s=10)
        assert vm.done == [("setMemoryStatsPeriod", 10, 1)]
        vm.errors["setMemoryStatsPeriod"] = ScriptedError(55)
        with pytest.raises(ActionRefused, match="was not set"):
            await watch.set_balloon_period(vm.uuid, period_s=10)

    play(library, scene)


def test_the_console_s_end_is_read_where_it_is_kept(
    library: ScriptedLibrary, vm: Vm, tmp_path: Path
) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"x" * 20_000 + b"\xff Kernel panic")
    vm.inside = f"<devices><serial type='file'><source path='{path}'/></serial></devices>"

    async def scene(watch: LibvirtLiveness) -> None:
        text = await watch.console(vm.uuid)
        assert len(text) == 16 * 1024
        assert text.endswith("\ufffd Kernel panic")
        vm.inside = ""
        assert await watch.console(vm.uuid) == ""

    play(library, scene)


LEASE = {
    "vnet0": {
        "hwaddr": "52:54:00:00:00:01",
        "addrs": [{"addr": "192.0.2.7", "prefix": 24, "type": 0}, {"addr": "fe80::1%vnet0"}],
    },
    "lo": {"hwaddr": "00:00:00:00:00:00", "addrs": [{"addr": "127.0.0.1"}, {"addr": "::1"}]},
    "odd": {"hwaddr": None, "addrs": None},
    "odder": None,
}
ARP = """IP address       HW type     Flags       HW address            Mask     Device
192.0.2.8        0x1         0x2         52:54:00:00:00:02     *        virbr0
192.0.2.9        0x1         0x0         00:00:00:00:00:00     *        virbr0
nonsense
"""


def test_addresses_are_those_that_a_neighbour_can_be_asked_for() -> None:
    assert read_addresses(LEASE) == [(MAC, "192.0.2.7"), (MAC, "fe80::1")]
    assert read_neighbours(ARP) == [("52:54:00:00:00:02", "192.0.2.8")]
    assert read_neighbours("") == []


def test_each_source_of_addresses_is_asked_until_one_knows(
    library: ScriptedLibrary, vm: Vm, tmp_path: Path
) -> None:
    (tmp_path / "arp").write_text(ARP)
    vm.addresses = {0: ScriptedError(43, "no such network"), 2: {}, 1: LEASE}

    async def scene(watch: LibvirtLiveness) -> None:
        assert await watch.addresses(vm.uuid) == {
            MAC: ("192.0.2.7", "fe80::1"),
            "52:54:00:00:00:02": ("192.0.2.8",),
        }
        assert vm.asked_addresses == [0, 2, 1]

    play(library, scene, neighbours=tmp_path / "arp")


def test_a_libvirtd_that_does_not_answer_is_out_of_reach(library: ScriptedLibrary, vm: Vm) -> None:
    library.broken = ScriptedError(1, "client socket is closed")

    async def scene(watch: LibvirtLiveness) -> None:
        with pytest.raises(HypervisorUnreachable, match="client socket is closed"):
            await watch.roster()

    play(library, scene)
