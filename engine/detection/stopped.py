"""Detect that most VMs of a shared resource have just stopped, before this counts as a stall.

A shared resource is a pool, network, host or cell. A stall is detected after some samples. Until
then no order is given for a VM that uses the resource.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from flatline.engine.detection.cell import Cell, Node
from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.movement import SHARES, SIGNALS, moving, reporting, subjects
from flatline.engine.detection.vm_table import VmTable


def stopped_just_now(cell: Cell, configuration: Configuration) -> frozenset[tuple[str, str]]:
    """Return the shared resources (scope, name) of which most VMs moved nothing in the last sample.

    Before a stall is detected, it delays the first bytes of a guest that returns from a crash, so
    that the guest looks dead. VMs that stopped earlier count neither as active nor as stopped.
    """
    # A VM adds at most 1 to the expected number, so with fewer resting VMs than this no resource
    # can have stopped.
    few = (1.0 - configuration.stopped_ratio) * configuration.gate_members
    seen = reporting(cell)
    expected: defaultdict[tuple[str, str], float] = defaultdict(float)
    moved: Counter[tuple[str, str]] = Counter()
    for signal, scopes in SIGNALS:
        if sum(_resting(table, cell.nodes[name], signal) for name, table in seen.items()) < few:
            continue
        for name, table in seen.items():
            node = cell.nodes[name]
            lately = np.flatnonzero(moving(table, node, signal))
            shares = table.row(SHARES[signal])[lately]
            moves = moving(table, node, signal, samples=1)[lately]
            for thing, share, count in _sums(cell, table, node, scopes, lately, shares, moves):
                expected[thing] += share
                moved[thing] += count
    return frozenset(
        thing
        for thing, count in expected.items()
        if count >= configuration.gate_members
        and moved[thing] < configuration.stopped_ratio * count
    )


def _resting(table: VmTable, node: Node, signal: str) -> int:
    """Return how many VMs moved nothing in the newest sample, but did in the one before."""
    size = len(table)
    if signal == "tx":
        still_s = table.row("tx_still_s")[:size]
        return int(np.count_nonzero((still_s >= 0.5 * node.dt_s) & (still_s < 1.5 * node.dt_s)))
    samples = table.numbers("disk_samples" if signal == "disk" else "run_samples")[:size]
    return int(np.count_nonzero(samples == 1))


def _sums(
    cell: Cell,
    table: VmTable,
    node: Node,
    scopes: tuple[str, ...],
    lately: NDArray[np.intp],
    shares: NDArray[np.float64],
    moves: NDArray[np.bool_],
) -> Iterator[tuple[tuple[str, str], float, int]]:
    """Yield shared resources with their expected and observed number of moving VMs.

    For hosts and cells one item covers all VMs of the node, because a loop over the VMs of a large
    cell is slow. For pools and networks there is one item per VM.
    """
    if "host" in scopes:
        for thing in (("host", node.name), ("cell", cell.name)):
            yield thing, float(shares.sum()), int(moves.sum())
        return
    (scope,) = scopes
    vms = list(table.indices)
    for index, share, is_moving in zip(
        lately.tolist(), shares.tolist(), moves.tolist(), strict=True
    ):
        if vms[index] in cell.vms:
            for subject in subjects(cell, scope, vms[index]):
                yield (scope, subject), share, is_moving


def shares_with(cell: Cell, vm: bytes, things: frozenset[tuple[str, str]]) -> str | None:
    """Return the first of these resources (scope, name) that a VM uses, None for none.

    The result is `{scope}:{name}`, the text of a veto. The cell must know the VM.
    """
    for _, scopes in SIGNALS if things else ():
        for scope in scopes:
            for subject in subjects(cell, scope, vm):
                if (scope, subject) in things:
                    return f"{scope}:{subject}"
    return None
