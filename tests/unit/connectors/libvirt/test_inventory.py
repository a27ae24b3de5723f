"""A VM's properties follow from its definition; those missing in it stay unknown."""

from pathlib import Path

import pytest

from flatline.connectors.libvirt.inventory import (
    read_definition,
    read_host_uuid,
    read_pool,
    read_vm,
)
from flatline.engine.wire.frame import InventoryItem

VM = bytes(range(16))
DATA = Path(__file__).parent / "data"
POOLS = {"/srv/pools/ssd": "ssd", "/srv/pools/hdd": "hdd", "/dev/vg0": "lvm"}


def item_of(body: str) -> InventoryItem:
    return read_vm(f"<domain type='kvm'>{body}</domain>", vm=VM, pool_targets=POOLS)


def devices(body: str) -> InventoryItem:
    return item_of(f"<devices>{body}</devices>")


def label(attributes: str) -> InventoryItem:
    return item_of(
        f"<metadata><f:vm xmlns:f='https://flatline.io/xmlns/domain/1' {attributes}/></metadata>"
    )


def disk(source: str, device: str = "vda") -> str:
    return f"<disk type='file'><source {source}/><target dev='{device}'/></disk>"


def test_a_real_definition_is_read_whole() -> None:
    xml = (DATA / "vm2.xml").read_text()
    assert read_vm(xml, vm=VM, pool_targets=POOLS) == InventoryItem(
        vm=VM,
        name="vm2",
        tenant="acme",
        group="db",
        vcpus=1,
        memory_bytes=96 * 2**20,
        disks={"vda": "hdd"},
        panic_device=True,
        balloon_period_s=2,
    )


@pytest.mark.parametrize(
    ("attributes", "actionable"),
    [
        ("actionable='yes'", True),
        ("actionable='no'", False),
        ("actionable='Yes'", False),
        ("actionable='true'", False),
        ("", False),
    ],
)
def test_only_the_word_yes_makes_a_vm_actionable(attributes: str, actionable: bool) -> None:
    assert label(attributes).actionable is actionable


@pytest.mark.parametrize(
    ("channel", "has_agent"),
    [
        ("<target type='virtio' name='org.qemu.guest_agent.0'/>", True),
        ("<target type='virtio' name='com.redhat.spice.0'/>", False),
        ("", False),
    ],
)
def test_a_channel_of_the_guest_agent_is_distinguished_from_others(
    channel: str, has_agent: bool
) -> None:
    assert devices(f"<channel type='unix'>{channel}</channel>").guest_agent is has_agent


def test_a_vm_without_the_label_belongs_to_nobody_and_is_not_actionable() -> None:
    item = item_of("<name>plain</name>")
    assert (item.tenant, item.group, item.flavor, item.actionable) == (None, None, None, False)


def test_an_empty_tenant_is_an_unknown_one() -> None:
    assert label("tenant='' group='web'").tenant is None


def test_a_label_of_another_namespace_is_not_ours() -> None:
    xml = "<metadata><f:vm xmlns:f='https://example.net/1' actionable='yes'/></metadata>"
    assert not item_of(xml).actionable


@pytest.mark.parametrize(
    ("source", "pool"),
    [
        ("file='/srv/pools/ssd/vm.qcow2'", "ssd"),
        ("file='/srv/pools/ssd/nested/vm.qcow2'", "ssd"),
        ("dev='/dev/vg0/vm'", "lvm"),
        ("pool='fast' volume='vm'", "fast"),
        ("file='/srv/pools/ssd2/vm.qcow2'", "/srv/pools/ssd2"),
        ("protocol='rbd' name='volumes/vm'", "rbd:volumes"),
        ("protocol='nbd' name='export'", "nbd:export"),
    ],
)
def test_a_disk_lies_in_the_pool_that_holds_its_source(source: str, pool: str) -> None:
    assert devices(disk(source)).disks == {"vda": pool}


def test_a_drive_without_a_medium_lies_nowhere() -> None:
    assert devices("<disk device='cdrom'><target dev='sda'/></disk>").disks == {}


def test_several_disks_keep_their_own_pools() -> None:
    both = disk("file='/srv/pools/ssd/a'") + disk("file='/srv/pools/hdd/b'", "vdb")
    assert devices(both).disks == {"vda": "ssd", "vdb": "hdd"}


@pytest.mark.parametrize(
    ("xml", "nics"),
    [
        ("<source bridge='br0'/><target dev='vnet0'/>", {"vnet0": "br0"}),
        ("<source network='lan' bridge='virbr0'/><target dev='vnet1'/>", {"vnet1": "lan"}),
        ("<source dev='eth1' mode='bridge'/><target dev='macvtap0'/>", {"macvtap0": "eth1"}),
        ("<mac address='52:54:00:00:00:01'/><source bridge='b'/>", {"52:54:00:00:00:01": "b"}),
        ("<mac address='52:54:00:00:00:01'/>", {}),
    ],
)
def test_a_card_is_on_the_network_that_it_is_plugged_into(xml: str, nics: dict[str, str]) -> None:
    assert devices(f"<interface type='bridge'>{xml}</interface>").nics == nics


def test_a_panic_device_given_to_qemu_by_hand_counts() -> None:
    by_hand = (
        "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>"
        "<q:arg value='-device'/><q:arg value='pvpanic-pci,addr=0x1d'/></q:commandline>"
    )
    assert item_of(by_hand).panic_device
    assert not item_of(by_hand.replace("pvpanic-pci", "virtio-rng-pci")).panic_device


def test_vcpus_are_those_plugged_in_not_those_that_fit() -> None:
    assert item_of("<vcpu current='2'>4</vcpu>").vcpus == 2
    assert item_of("<vcpu placement='static'>4</vcpu>").vcpus == 4
    assert item_of("").vcpus is None


@pytest.mark.parametrize(
    ("memory", "amount_bytes"),
    [
        ("<memory unit='KiB'>1024</memory>", 2**20),
        ("<memory unit='GiB'>2</memory>", 2**31),
        ("<memory>1024</memory>", 2**20),
        ("<memory unit='pages'>1</memory>", None),
        ("<memory>much</memory>", None),
    ],
)
def test_memory_is_in_bytes_whatever_its_unit(memory: str, amount_bytes: int | None) -> None:
    assert item_of(memory).memory_bytes == amount_bytes


def test_a_watchdog_and_the_balloons_period_are_seen() -> None:
    item = devices("<watchdog model='i6300esb'/><memballoon><stats period='5'/></memballoon>")
    assert item.watchdog
    assert item.balloon_period_s == 5
    assert devices("<memballoon model='none'/>").balloon_period_s == 0


def test_a_pool_is_its_name_kind_and_folder() -> None:
    pool = read_pool("<pool type='dir'><name>ssd</name><target><path>/srv</path></target></pool>")
    assert pool == ("ssd", "dir", "/srv")
    assert read_pool("<pool type='rbd'><name>r</name></pool>").folder is None


def test_a_disk_that_is_being_copied_is_noticed() -> None:
    for inside, copied in (("<mirror job='copy'/>", True), ("", False)):
        xml = f"<domain><devices><disk>{inside}</disk></devices></domain>"
        assert read_definition(xml, counted_nics=0).mirrored is copied


def test_the_hosts_uuid_is_read_from_its_capabilities() -> None:
    assert read_host_uuid("<capabilities><host><uuid>u</uuid></host></capabilities>") == "u"
