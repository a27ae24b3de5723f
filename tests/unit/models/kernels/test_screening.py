"""The screening of a window: the kernel and its twin select the same VMs, to the bit."""

import numpy as np
import pytest

from flatline.engine.detection.cell import Cell, Node
from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.forest import new_forest
from flatline.engine.detection.screening import screen
from flatline.engine.detection.vm_table import I, VmTable
from flatline.engine.wire.metrics import VM_STATES
from flatline.models.kernels import aggregates_layout, trends
from flatline.models.kernels import screening as kernel
from tests.reference import screening_twin

VMS = 300
ROSTER = np.arange(VMS, dtype=">u8").repeat(2).tobytes()
LIMITS = Configuration()


def cell_of(table: VmTable, node: Node) -> Cell:
    cell = Cell("c", site="s", zone="z", forest=new_forest())
    cell.nodes[node.name], cell.tables[node.name] = node, table
    return cell


def strewn(rng, around, *, unknown=0.0):
    """Return values on, just below and just above some limits, and far from them."""
    around = np.array([*around, 0.0], np.float64)
    values = rng.choice(around, VMS) * rng.choice([1.0, 1.0, 0.5, 2.0, 1 - 1e-7, 1 + 1e-7], VMS)
    values += rng.choice([0.0, 0.0, 1e-3, -1e-3, 1e-12], VMS)
    values[rng.random(VMS) < unknown] = np.nan
    return values


def random_rows(rng, dt_s) -> VmTable:
    """Return rows with values around every limit of the screening."""
    table = VmTable(ROSTER)
    floats = {
        "cpu": (0.1, 0.5, 1.0),
        "cpu_before": (0.2, 1.0),
        "cpu_nats": (LIMITS.hung_level_nats, LIMITS.one_core_nats, LIMITS.cpu_cap_nats),
        "balloon_still_s": (5.0, 12.0, 35.0),
        "balloon_period_s": (0.1, 5.0, 10.0),
        "tx_still_s": (2 * dt_s, 3 * dt_s, LIMITS.gate_window_s),
        "tx_share": (0.4, 0.7, 1.0),
        "epoch_s": (LIMITS.boot_stuck_s,),
    }
    for name, around in floats.items():
        table.row(name)[:VMS] = strewn(rng, around)
    table.row("busiest")[:VMS] = strewn(rng, (1.0,), unknown=0.6)
    table.integers[I["vcpus_busy"], :VMS] = rng.integers(-1, 2, VMS)
    table.integers[I["state"], :VMS] = rng.integers(-1, len(VM_STATES), VMS)
    for name in ("balloon_moved", "balloon_fresh", "moved", "run_samples", "disk_samples"):
        table.integers[I[name], :VMS] = rng.choice([0, 0, 1, 2, 3, 4], VMS)
    for out in (table.life, table.disk):
        out[0, :VMS] = strewn(rng, (LIMITS.gate_window_s, LIMITS.hung_s, 30.0))
        out[1, :VMS] = strewn(rng, (LIMITS.silence_alert_nats, LIMITS.shared_nats, 8.0))
    for name, column in aggregates_layout.OUT.items():
        around = {
            "run": (1, 2, LIMITS.totals_shared_samples),
            "active_share": (LIMITS.totals_active_share,),
            "silence_nats": (LIMITS.totals_shared_nats, LIMITS.totals_nats("alert") / 3),
            "disk_hung": (LIMITS.totals_hung_samples,),
            "unseen_s": (LIMITS.vm_silence_s, 3 * dt_s),
        }.get(name, (1.0, LIMITS.totals_nats("alert") / 3))
        table.signs[:VMS, column] = strewn(rng, around)
    for name, column in trends.OUT.items():
        around = {
            "rises": (LIMITS.leak_rises,),
            "growth": (LIMITS.leak_growth,),
            "flood": (LIMITS.flood_buckets,),
        }.get(name, (1.0,))
        table.shows[:VMS, column] = strewn(rng, around)
    return table


@pytest.mark.parametrize("dt_s", [2.0, 10.0, 300.0])
def test_the_kernel_sees_what_its_twin_sees_to_the_bit(dt_s) -> None:
    rng = np.random.default_rng(11)
    node = Node(name="n", key="n", dt_s=dt_s, interval_ms=round(dt_s * 1000))
    seen = dict.fromkeys(range(kernel.BITS), 0)
    for _ in range(40):
        indices = random_rows(rng, dt_s)
        screen(cell_of(indices, node), LIMITS)
        for bit, expected in screening_twin.look(indices, node, LIMITS).items():
            np.testing.assert_array_equal(indices.which(bit), expected, err_msg=f"bit {bit}")
            assert indices.found[bit] == expected.sum()
            seen[bit] += int(expected.sum())
    assert all(0 < count < 40 * VMS for count in seen.values()), seen


def test_a_row_that_is_not_in_use_is_never_found() -> None:
    table = VmTable(ROSTER[:16])
    table.integers[I["state"]] = VM_STATES.index("crashed")
    table.row("epoch_s")[...] = 1e6
    screen(cell_of(table, Node(name="n", key="n")), LIMITS)
    assert table.found[kernel.SUSPECT] == 1
    assert not table.flags[1:].any()
