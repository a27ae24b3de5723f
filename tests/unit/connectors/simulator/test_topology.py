import uuid

import numpy as np

from flatline.connectors.simulator.plan import WORKLOADS, WorldPlan
from flatline.connectors.simulator.topology import Topology


def topology(**changes: object) -> Topology:
    plan = WorldPlan(seed=3, cells=3, nodes_per_cell=2, vms_per_node=8, **changes)  # type: ignore[arg-type]
    return Topology(plan, np.random.default_rng(1))


def test_uuids_are_valid_ascending_and_depend_on_the_seed_alone() -> None:
    first, again = topology().uuids, topology().uuids
    other = Topology(
        WorldPlan(seed=4, cells=3, nodes_per_cell=2, vms_per_node=8), np.random.default_rng(1)
    )
    assert first == again
    assert first == sorted(set(first))
    assert not set(first) & set(other.uuids)
    assert {uuid.UUID(bytes=vm).version for vm in first} == {4}


def test_a_cells_pools_are_its_own_and_a_sites_pools_are_everybodys() -> None:
    site = topology(pools_per_cell=2, site_pools=1)
    own = [set(site.pool[site.cell == cell].tolist()) for cell in range(3)]
    assert all(len(pools) == 3 for pools in own)
    assert own[0] & own[1] == own[1] & own[2] == {site.pools.index("site-pool0")}
    assert set(site.pools_seen_by(0)) == own[0]


def test_networks_may_span_cells() -> None:
    site = topology(networks_per_cell=0, site_networks=1)
    assert site.networks == ["site-net0"]
    assert set(site.network.tolist()) == {0}


def test_zones_are_dealt_to_cells_in_turn() -> None:
    site = topology(zones=2)
    assert [site.zone(node) for node in range(6)] == ["z0", "z0", "z1", "z1", "z0", "z0"]


def test_a_pinned_vm_has_the_workload_it_was_given() -> None:
    site = topology(pinned={5: "cron"})
    assert WORKLOADS[site.workload[5]] == "cron"
    assert "cron" in site.names[5]


def test_an_item_says_where_disk_and_card_hang() -> None:
    site = topology(nicless_ratio=1.0)
    item = site.item(9)
    assert item.vm == site.uuids[9]
    assert item.disks == {"vda": site.pools[site.pool[9]]}
    assert item.nics == {}
    assert item.tenant is not None
    assert item.group is not None
    assert topology().item(9).nics == {"vnet0": "c0-net0"}


def test_nodes_have_room_for_what_is_promised_on_them() -> None:
    site = topology()
    for node in range(6):
        assert site.node_memory_kib[node] > site.memory_kib[site.home == node].sum()
    assert topology(node_cores=7).node_cores.tolist() == [7] * 6
