"""Wires one node: the access of its collector and its agent to the VMs there.

Split from `engine.wiring`, which would be too long with it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, assert_never

import structlog

from flatline.engine.liveness_ports import Liveness, Prober
from flatline.engine.ports import Actuator, Evidence, Hypervisor, LedgerStore
from flatline.engine.settings import Settings

if TYPE_CHECKING:
    from flatline.connectors.libvirt.heard import Heard
    from flatline.connectors.simulator.fleet import Fleet

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node: its position in the site, and the access of collector and agent to it.

    `address` is what the collector connects to, for messages; `alone` prevents a second agent of
    the same hypervisor; `real` is whether its VMs are real.
    """

    zone: str
    cell: str
    name: str
    address: str
    hypervisor: Callable[[], Hypervisor]
    actuator: Callable[[], Actuator]
    ledger: Callable[[], AbstractContextManager[LedgerStore]]
    alone: Callable[[], AbstractContextManager[None]]
    evidence: Callable[[], Evidence]
    watch: Callable[[], Liveness]
    prober: Callable[[], Prober]
    real: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What one connector offers on the machine that it runs on.

    `read_address` is what the collector connects to, `act_address` what the agent connects to. A
    machine has one agent for each `act_address`.
    """

    read_address: str
    act_address: str
    hypervisor: Callable[[], Hypervisor]
    actuator: Callable[[], Actuator]
    evidence: Callable[[], Evidence]
    watch: Callable[[], Liveness]


def this_node(settings: Settings) -> Node:
    """Return this machine as settings describe it; nothing is connected yet."""
    place, folder, access = settings.site, settings.state.folder, _access(settings)

    def prober() -> Prober:
        from flatline.connectors.probe.prober import BridgeProber, NoProber, may_probe

        why = may_probe()
        if why:
            _log.info(f"No guest is probed for signs of life: {why}.", node=place.node)
            return NoProber(why)
        return BridgeProber()

    def ledger() -> AbstractContextManager[LedgerStore]:
        from flatline.connectors.embedded.ledger import EmbeddedLedger

        return EmbeddedLedger(folder / f"agent-{place.node}.sqlite")

    def alone() -> AbstractContextManager[None]:
        from flatline.connectors.embedded.lock import held_on_this_machine

        at = access.act_address
        return held_on_this_machine(f"act {at}", what=f"agent of {at}", folder=folder)

    return Node(
        zone=place.zone,
        cell=place.cell,
        name=place.node,
        address=access.read_address,
        hypervisor=access.hypervisor,
        actuator=access.actuator,
        ledger=ledger,
        alone=alone,
        evidence=access.evidence,
        watch=access.watch,
        prober=prober,
        real=True,
    )


def _access(settings: Settings) -> Access:
    """Return what the connector of `hypervisor.kind` offers: every connector is registered here."""
    match settings.hypervisor.kind:
        case "libvirt":
            return _libvirt(settings)
        case _ as missing:
            assert_never(missing)


def _libvirt(settings: Settings) -> Access:
    act = settings.act

    def hypervisor() -> Hypervisor:
        from flatline.connectors.libvirt.hypervisor import LibvirtHypervisor

        return LibvirtHypervisor(uri=settings.collect.libvirt_uri)

    @cache
    def heard() -> "Heard":
        from flatline.connectors.libvirt.heard import Heard

        return Heard()

    def actuator() -> Actuator:
        from flatline.connectors.libvirt.actuator import LibvirtActuator, MigrationTarget

        targets = {
            name: MigrationTarget(**target.model_dump()) for name, target in act.targets.items()
        }
        return LibvirtActuator(uri=act.libvirt_uri, targets=targets, heard=heard())

    def watch() -> Liveness:
        from flatline.connectors.libvirt.liveness import LibvirtLiveness

        return LibvirtLiveness(uri=act.libvirt_uri, heard=heard())

    def evidence() -> Evidence:
        from flatline.connectors.libvirt.evidence import LibvirtEvidence

        return LibvirtEvidence(settings.state.folder / "evidence", uri=act.libvirt_uri)

    return Access(
        read_address=settings.collect.libvirt_uri,
        act_address=act.libvirt_uri,
        hypervisor=hypervisor,
        actuator=actuator,
        evidence=evidence,
        watch=watch,
    )


def simulated_nodes(fleet: "Fleet") -> tuple[Node, ...]:
    """Return all nodes of a simulated site; their agents keep their ledgers in memory."""
    from flatline.connectors.embedded.ledger import EmbeddedLedger
    from flatline.connectors.probe.prober import NoProber

    return tuple(
        Node(
            zone=fleet.zone(name),
            cell=fleet.cell(name),
            name=name,
            address=f"simulated node {name}",
            hypervisor=partial(fleet.hypervisor, name),
            actuator=partial(fleet.actuator, name),
            ledger=partial(EmbeddedLedger, None),
            alone=nullcontext,
            evidence=partial(fleet.evidence, name),
            watch=partial(fleet.watch, name),
            prober=partial(NoProber, "simulated guests have no network stack"),
            real=False,
        )
        for name in fleet.nodes
    )
