"""Read the properties of a VM and the location of a storage pool from their XML definitions.

libvirtd wrote the XML and checked it against its schema, without a document type. So entities and
external references, against which defusedxml protects, cannot occur. A forger would need access to
libvirtd's socket, and with that access already controls every VM.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Final, NamedTuple
from xml.etree import ElementTree

from flatline.engine.preflight_data import Card
from flatline.engine.wire.frame import InventoryItem

# Operators put <flatline:vm tenant= group= flavor= actionable="yes|no"/> under <metadata>.
NAMESPACE: Final = "https://flatline.io/xmlns/domain/1"
_QEMU: Final = "http://libvirt.org/schemas/domain/qemu/1.0"
_AGENT_CHANNEL: Final = "org.qemu.guest_agent.0"
_FIXED_DISKS: Final = frozenset({"disk", "lun"})
_UNCOUNTED_DISKS: Final = frozenset({"vhostuser", "vhostvdpa"})

_UNITS_BYTES: Final = {
    "b": 1,
    "bytes": 1,
    "KB": 10**3,
    "k": 2**10,
    "KiB": 2**10,
    "MB": 10**6,
    "M": 2**20,
    "MiB": 2**20,
    "GB": 10**9,
    "G": 2**30,
    "GiB": 2**30,
    "TB": 10**12,
    "T": 2**40,
    "TiB": 2**40,
}


def read_vm(xml: str, *, vm: bytes, pool_targets: Mapping[str, str]) -> InventoryItem:
    """Return the properties of a VM; a property missing in its definition is None or absent.

    Parameters
    ----------
    vm
        The VM's UUID.
    pool_targets
        Maps the directory of each storage pool of the connection to its name.
    """
    domain = ElementTree.fromstring(xml)
    marks = read_marks(domain)
    return InventoryItem(
        vm=vm,
        name=domain.findtext("name", ""),
        tenant=marks.get("tenant") or None,
        group=marks.get("group") or None,
        flavor=marks.get("flavor") or None,
        actionable=agreed(marks, "actionable"),
        vcpus=_vcpus(domain),
        memory_bytes=_memory_bytes(domain),
        disks=_disks(domain, pool_targets),
        nics=_nics(domain),
        panic_device=_has_panic_device(domain),
        watchdog=domain.find("devices/watchdog") is not None,
        balloon_period_s=_balloon_period_s(domain) or 0,
        guest_agent=_has_guest_agent(domain),
    )


def read_marks(domain: ElementTree.Element) -> Mapping[str, str]:
    """Return the attributes of a VM's `flatline:vm` element; empty without such an element."""
    label = domain.find(f"metadata/{{{NAMESPACE}}}vm")
    return label.attrib if label is not None else {}


def agreed(marks: Mapping[str, str], what: str) -> bool:
    """Return whether the VM's owner agreed to `actionable` or `screenshots`.

    Only the exact value counts: a typing error must not permit anything.
    """
    return marks.get(what) == "yes"


class Definition(NamedTuple):
    """The part of a VM's live definition that the agent needs.

    `uncounted` is a device whose traffic libvirt does not count, None where there is none.
    `balloon_period_s` is None where the VM has no balloon that could report, 0 where its balloon is
    never polled.
    """

    tenant: str | None
    group: str | None
    actionable: bool
    mirrored: bool
    uncounted: str | None
    balloon_period_s: int | None


def read_definition(
    xml: str, *, counted_nics: int, counted_disks: Collection[str] = ()
) -> Definition:
    """Return the part of a VM's live definition that the agent needs.

    Parameters
    ----------
    counted_nics
        Number of the VM's network cards that report transmitted traffic.
    counted_disks
        Names of its disks that report writes; empty where the monitor reported none.
    """
    domain = ElementTree.fromstring(xml)
    marks = read_marks(domain)
    return Definition(
        tenant=marks.get("tenant") or None,
        group=marks.get("group") or None,
        actionable=agreed(marks, "actionable"),
        mirrored=_has_mirror(domain),
        uncounted=_uncounted_device(domain, counted_nics=counted_nics, counted_disks=counted_disks),
        balloon_period_s=_balloon_period_s(domain),
    )


class WatchedDefinition(NamedTuple):
    """What guest probing needs of a live VM: see `engine.preflight_data.ObservedGuest`."""

    actionable: bool
    cards: tuple[Card, ...]
    balloon_period_s: int | None
    agent_connected: bool
    has_console: bool


# Cards on a bridge of the node; others (hostdev, direct, vhostuser) bypass it.
_BRIDGED: Final = frozenset({"bridge", "network"})


def read_watched(xml: str) -> WatchedDefinition:
    """Return the part of a VM's live definition that guest probing needs."""
    domain = ElementTree.fromstring(xml)
    agent = domain.find(f"devices/channel/target[@name='{_AGENT_CHANNEL}']")
    ports = [port for kind in ("serial", "console") for port in domain.findall(f"devices/{kind}")]
    kept = any(port.find("log") is not None or port.get("type") == "file" for port in ports)
    return WatchedDefinition(
        actionable=agreed(read_marks(domain), "actionable"),
        cards=tuple(_cards(domain)),
        balloon_period_s=_balloon_period_s(domain),
        agent_connected=agent is not None and agent.get("state") == "connected",
        has_console=kept,
    )


def _cards(domain: ElementTree.Element) -> Iterator[Card]:
    """Yield the cards whose link is up and whose bridge is in the live definition."""
    for interface in domain.findall("devices/interface"):
        source, mac = interface.find("source"), interface.find("mac")
        if interface.get("type") not in _BRIDGED or source is None or mac is None:
            continue
        link = interface.find("link")
        if link is not None and link.get("state") == "down":
            continue  # its owner disconnected the link
        bridge, address = source.get("bridge"), mac.get("address")
        if bridge and address:
            yield Card(address.lower(), bridge)


class PoolDefinition(NamedTuple):
    """A storage pool; `folder` is the directory of its volumes, None without one."""

    name: str
    kind: str
    folder: str | None


def read_pool(xml: str) -> PoolDefinition:
    """Return the properties of a storage pool."""
    pool = ElementTree.fromstring(xml)
    return PoolDefinition(
        name=pool.findtext("name", ""),
        kind=pool.get("type", ""),
        folder=pool.findtext("target/path") or None,
    )


def read_host_uuid(capabilities_xml: str) -> str:
    """Return the UUID by which migrating libvirtds identify each other; empty if it is missing."""
    return ElementTree.fromstring(capabilities_xml).findtext("host/uuid", "")


def _has_mirror(domain: ElementTree.Element) -> bool:
    return domain.find("devices/disk/mirror") is not None


def _uncounted_device(
    domain: ElementTree.Element, *, counted_nics: int, counted_disks: Collection[str]
) -> str | None:
    """Return a device with traffic that libvirt does not count; None where it counts everything.

    A device of the host that was passed to the guest, a shared folder, and a disk or network card
    that another process than qemu serves have no counter (libvirt's `virConnectGetAllDomainStats`
    omits them).
    """
    for what in ("hostdev", "filesystem"):
        if domain.find(f"devices/{what}") is not None:
            return what
    for disk in domain.findall("devices/disk"):
        if disk.get("type") in _UNCOUNTED_DISKS:
            return f"{disk.get('type')} disk"
        # A drive of removable media may be empty and then reports no counters.
        is_fixed = disk.get("device", "disk") in _FIXED_DISKS
        target = disk.find("target") if is_fixed and counted_disks else None
        if target is not None and target.get("dev") not in counted_disks:
            return "disk without counters"
    uncounted = len(domain.findall("devices/interface")) > counted_nics
    return "network card without counters" if uncounted else None


def _balloon_period_s(domain: ElementTree.Element) -> int | None:
    balloon = domain.find("devices/memballoon")
    if balloon is None or balloon.get("model") == "none":
        return None
    stats = balloon.find("stats")
    return (_whole(stats.get("period")) or 0) if stats is not None else 0


def _vcpus(domain: ElementTree.Element) -> int | None:
    vcpu = domain.find("vcpu")
    if vcpu is None:
        return None
    # The text is the maximum number, the attribute the current one.
    return _whole(vcpu.get("current")) or _whole(vcpu.text)


def _memory_bytes(domain: ElementTree.Element) -> int | None:
    memory = domain.find("memory")
    if memory is None:
        return None
    amount, unit = _whole(memory.text), _UNITS_BYTES.get(memory.get("unit", "KiB"))
    return None if amount is None or unit is None else amount * unit


def _disks(domain: ElementTree.Element, pool_targets: Mapping[str, str]) -> dict[str, str]:
    disks: dict[str, str] = {}
    for disk in domain.findall("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        if target is None or source is None:
            continue  # a drive without a medium shares no storage
        pool = _pool_of(source, pool_targets)
        if pool is not None:
            disks[target.get("dev", "")] = pool
    return disks


def _pool_of(source: ElementTree.Element, pool_targets: Mapping[str, str]) -> str | None:
    """Return the pool of a disk, or else the location that it shares with other disks.

    A disk outside libvirt's pools still fails together with its neighbours, so its directory, or
    its server and volume, replaces the pool's name.
    """
    if named := source.get("pool"):
        return named
    if path := source.get("file") or source.get("dev") or source.get("dir"):
        for folder in PurePosixPath(path).parents:
            if str(folder) in pool_targets:
                return pool_targets[str(folder)]
        return str(PurePosixPath(path).parent)
    if protocol := source.get("protocol"):
        # rbd: POOL/IMAGE; gluster: VOLUME/PATH; iscsi: IQN/LUN; nbd: an export
        return f"{protocol}:{source.get('name', '').split('/')[0]}"
    return None


def _nics(domain: ElementTree.Element) -> dict[str, str]:
    nics: dict[str, str] = {}
    for interface in domain.findall("devices/interface"):
        source, target, mac = (interface.find(part) for part in ("source", "target", "mac"))
        device = target.get("dev") if target is not None else None
        if device is None and mac is not None:
            device = mac.get("address")  # a vhost-user card has no device on the node
        if device is None or source is None:
            continue
        network = source.get("network") or source.get("bridge") or source.get("dev")
        if network:
            nics[device] = network
    return nics


def _has_panic_device(domain: ElementTree.Element) -> bool:
    if domain.find("devices/panic") is not None:
        return True
    # Before libvirt 9.1 a PCI panic device could only be added with arguments for qemu.
    arguments = domain.findall(f"{{{_QEMU}}}commandline/{{{_QEMU}}}arg")
    return any(argument.get("value", "").startswith("pvpanic") for argument in arguments)


def _has_guest_agent(domain: ElementTree.Element) -> bool:
    targets = domain.findall("devices/channel/target")
    return any(target.get("name") == _AGENT_CHANNEL for target in targets)


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdecimal() else None
