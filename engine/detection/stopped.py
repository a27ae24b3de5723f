"""Detect that most VMs of a shared thing have just stopped, before it counts as a stall.

A stall is detected after some samples. Until then no order is given for a VM that shares the thing.
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
    """Return the things (scope, name) most of whose VMs moved nothing in the newest sample.

    A stall is detected after some samples. Until then it holds back the first bytes of a guest that
    returns from a crash. VMs that stopped earlier count neither as active nor as stopped.
    """
    # A share is at most 1, so fewer resting VMs than this are not most of any thing.
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
    """Yield things with the expected and the observed number of moving VMs, by node, else by VM.

    All VMs of a node share the node and its cell. A loop over the VMs of a large cell is slow.
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
    """Return the first of `things` that a VM uses, as a veto names it; None if it uses none."""
    for _, scopes in SIGNALS if things else ():
        for scope in scopes:
            for subject in subjects(cell, scope, vm):
                if (scope, subject) in things:
                    return f"{scope}:{subject}"
    return None
