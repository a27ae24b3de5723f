"""Determine which VMs move data now, by signal, and which resources they share."""

import numpy as np
from numpy.typing import NDArray

from flatline.engine.detection.cell import Cell, Node
from flatline.engine.detection.rates import MEANT_TO_RUN
from flatline.engine.detection.vm_table import VmTable
from flatline.models.kernels import baseline

# Signals, each with the scopes of the shared resources whose stall stops it.
SIGNALS = (("disk", ("pool",)), ("tx", ("network",)), ("life", ("host", "cell")))
SHARES = {"disk": "disk_share", "tx": "tx_share", "life": "life_share"}
# Rates that the newest sample must have for each signal.
_COUNTED = {
    "disk": [baseline.OUT[name] for name in ("disk_rd_bytes_per_s", "disk_wr_bytes_per_s")],
    "tx": [baseline.OUT["net_tx_bytes_per_s"]],
}


def subjects(cell: Cell, scope: str, vm: bytes) -> tuple[str, ...]:
    """Return the names of the shared resources of one scope that a VM of the cell uses.

    `scope` is "pool", "network" or "host"; any other scope is the cell itself. The cell must know
    the VM.
    """
    known = cell.vms[vm]
    if scope == "pool":
        return known.pools
    if scope == "network":
        return known.networks
    if scope == "host":
        return (cell.nodes[known.node].name,) if known.node in cell.nodes else ()
    return (cell.name,)


def reporting(cell: Cell) -> dict[str, VmTable]:
    """Return the VM tables of the nodes that report, by the node's key and sorted by it."""
    return {
        name: table for name, table in sorted(cell.tables.items()) if not cell.nodes[name].silent
    }


def meant_to_run(table: VmTable) -> NDArray[np.bool_]:
    """Return, per row in use, whether its guest is meant to run.

    The stored sample of a guest that its owner paused no longer changes, so it is not current.
    """
    runs: NDArray[np.bool_] = MEANT_TO_RUN[table.numbers("state")[: len(table)]]
    return runs


def _is_reported(table: VmTable, signal: str) -> NDArray[np.bool_]:
    """Return, per row in use, whether the newest sample has the values of a signal.

    The sample of a VM whose monitor hangs has no values.
    """
    size = len(table)
    reported: NDArray[np.bool_] = np.ones(size, np.bool_)
    for name, rows in _COUNTED.items():
        if signal in {name, "life"}:
            is_known = ~np.isnan(table.counted[rows, :size]).any(axis=0)
            # A device that a VM never used may be absent.
            reported &= is_known | (table.row(SHARES[name])[:size] == 0.0)
    return reported


def moving(table: VmTable, node: Node, signal: str, *, samples: int = 2) -> NDArray[np.bool_]:
    """Return, per row in use, whether it usually moves and did in one of the newest `samples`.

    `signal` is a key of `SHARES`: "disk", "tx" or "life", which is any of both.
    """
    size, is_reported = len(table), _is_reported(table, signal)
    often = (table.row(SHARES[signal])[:size] >= 0.5) & meant_to_run(table) & is_reported
    if signal == "tx":
        return often & (table.row("tx_still_s")[:size] < (samples - 0.5) * node.dt_s)
    prefix = "disk" if signal == "disk" else "run"
    return often & (table.numbers(f"{prefix}_samples")[:size] < samples)
