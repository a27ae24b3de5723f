"""Determine which witnesses are available for each VM, and how to add a second one.

A VM without a second witness gets alerts but no orders. Its owner should know this before a
fault.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flatline.engine.detection.cell import Cell, Node, Vm
from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.vm_table import VmTable
from flatline.engine.wire.alert import WITNESSES, may_be_reset
from flatline.engine.wire.score import SET_UP
from flatline.models.kernels import silence_model, standstill

U8 = NDArray[np.uint8]

# Edge of the silence models at 2**5 s: an order is given about half a minute after a death, and
# evidence that reaches its minimum later is too late. Of a standstill only a quarter is compared
# with the past (`standstill.SHARE`).
_BY_THEN_EDGE: Final = 5
_STANDSTILL_EDGE: Final = _BY_THEN_EDGE + round(math.log2(standstill.SHARE))
_BIT: Final = {name: 1 << index for index, name in enumerate(WITNESSES)}
_HAS: Final = {name: 1 << index for index, name in enumerate(SET_UP)}
# Devices that add a witness, as texts for a VM whose definition lacks them.
_WAYS: Final = {
    "balloon": "balloon statistics (<memballoon><stats period='10'/></memballoon>)",
    "panic_device": "a panic device (<panic model='isa'/>)",
    "guest_agent": "a guest agent (a channel org.qemu.guest_agent.0)",
}
_PROBE: Final = "the probe of the agent"


def coverage(cell: Cell, node: Node, table: VmTable, configuration: Configuration) -> U8:
    """Return the two bytes of `Scores.coverage` for each row in use, shape (len(table), 2)."""
    size, least = len(table), configuration.standstill_least_nats
    silent = _would_surprise(table.gaps, configuration.activity_least_nats, edge=_BY_THEN_EDGE)
    several = table.vcpu_counts > 1
    stands = several & _would_surprise(table.others_gaps, least, edge=_STANDSTILL_EDGE)
    exits = _would_surprise(table.exit_gaps, least, edge=_STANDSTILL_EDGE)
    reports = (table.numbers("balloon_moved") >= 2) & (table.row("balloon_period_s") > 0)
    vms = [cell.vms[uuid] for uuid in table.indices]
    fresh_ms = node.event_ms - 1000 * configuration.probe_fresh_s
    found = np.array([_given(vm, fresh_ms) for vm in vms], np.uint8)
    for bit, has in (
        (_BIT["activity"], silent),
        (_BIT["vcpus"], stands),
        (_BIT["exits"], exits),
        (_BIT["balloon"], reports),
    ):
        found |= bit * has[:size].astype(np.uint8)
    return np.stack([found, np.array([devices_of(vm) for vm in vms], np.uint8)], axis=1)


def _would_surprise(state: silence_model.F32, least_nats: float, *, edge: int) -> NDArray[np.bool_]:
    """Return, per row, whether a gap of 2**edge s would be worth at least `least_nats`."""
    survived = state[:, silence_model.SURVIVED + edge].reshape(-1) + 0.5
    share: NDArray[np.float32] = survived / (state[:, silence_model.LIVE].reshape(-1) + 1.0)
    seldom: NDArray[np.bool_] = share <= math.exp(-least_nats)
    return seldom


def _given(vm: Vm, fresh_ms: float) -> int:
    """Return the bits of `guest` and `probe`; a probe answer before `fresh_ms` does not count."""
    found = 0
    if vm.panic_device or vm.watchdog or vm.agent_answered_ms:
        found |= _BIT["guest"]
    if vm.probe_answered_ms and vm.probe_answered_ms >= fresh_ms:
        found |= _BIT["probe"]
    return found


def devices_of(vm: Vm) -> int:
    """Return the second byte of a VM in `coverage`: its devices and its owner's consent."""
    has = _HAS["balloon"] if vm.balloon_period_s > 0 else 0
    has |= _HAS["panic_device"] if vm.panic_device else 0
    has |= _HAS["watchdog"] if vm.watchdog else 0
    has |= _HAS["guest_agent"] if vm.guest_agent else 0
    has |= _HAS["actionable"] if vm.actionable else 0
    return has


def witnesses_of(found: int) -> tuple[str, ...]:
    """Return the names of the witnesses whose bits are set in `found`, in order of `WITNESSES`.

    `found` is the first byte of a VM in `coverage`.
    """
    return tuple(name for name in WITNESSES if found & _BIT[name])


def is_actionable(has: int) -> bool:
    """Return whether the VM's owner agreed to actions; `has` is the second byte."""
    return bool(has & _HAS["actionable"])


def advice(found: int, has: int) -> str:
    """Return how to enable orders for a VM, in words; empty if they are enabled.

    Parameters
    ----------
    found, has
        The two bytes of the VM from `coverage`.
    """
    if may_be_reset(witnesses_of(found)):
        return ""
    if found & ~_BIT["activity"]:
        return "wait until the silence model of the VM has enough samples"
    return f"enable {ways(has)}"


def ways(has: int) -> str:
    """Return the devices missing in a VM's definition that would add a witness, in words.

    `has` is the second byte of a VM in `coverage`. The probe of the agent is always the last.
    """
    return " or ".join([*(way for name, way in _WAYS.items() if not has & _HAS[name]), _PROBE])
