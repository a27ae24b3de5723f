"""Determine which witnesses are available for each VM, and how to add a second one.

A VM without a second witness gets alerts but no orders. Its owner should know this before a
fault.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.detection.cell import Cell, Node, Vm
from engine.detection.configuration import Configuration
from engine.detection.lanes import F, I, Lanes
from engine.wire.alert import WITNESSES, may_be_reset
from engine.wire.score import SET_UP
from models.kernels import gaps, standstill

U8 = NDArray[np.uint8]

# An order is given about half a minute after a death, 2**5 s. Evidence that reaches its minimum
# later is too late.
_BY_THEN_EDGE: Final = 5
_STANDSTILL_EDGE: Final = _BY_THEN_EDGE + round(math.log2(standstill.SHARE))
_BIT: Final = {name: 1 << place for place, name in enumerate(WITNESSES)}
_HAS: Final = {name: 1 << place for place, name in enumerate(SET_UP)}
# Devices that add a witness and are missing in the definition of a VM.
_WAYS: Final = {
    "balloon": "balloon statistics (<memballoon><stats period='10'/></memballoon>)",
    "panic_device": "a panic device (<panic model='isa'/>)",
    "guest_agent": "a guest agent (a channel org.qemu.guest_agent.0)",
}
_PROBE: Final = "the agent's probe"


def coverage(
    cell: Cell, node: Node, lanes: Lanes, places: NDArray[np.intp], configuration: Configuration
) -> U8:
    """Return the two bytes of `Scores.coverage` for each lane, shape (len(places), 2)."""
    least = configuration.standstill_least_nats
    found = np.zeros(len(places), np.uint8)
    silent = _would_surprise(
        lanes.gaps, places, configuration.activity_least_nats, edge=_BY_THEN_EDGE
    )
    found |= _BIT["activity"] * silent.astype(np.uint8)
    several = lanes.vcpu_counts[places] > 1
    stands = several & _would_surprise(lanes.others_gaps, places, least, edge=_STANDSTILL_EDGE)
    found |= _BIT["vcpus"] * stands.astype(np.uint8)
    exits = _would_surprise(lanes.exit_gaps, places, least, edge=_STANDSTILL_EDGE)
    found |= _BIT["exits"] * exits.astype(np.uint8)
    reports = lanes.integers[I["balloon_moved"], places] >= 2
    reports &= lanes.floats[F["balloon_period_s"], places] > 0
    found |= _BIT["balloon"] * reports.astype(np.uint8)
    of_vms = [_of_vm(cell.vms[lanes.vm(int(lane))], node, configuration) for lane in places]
    of_vms_array = np.array(of_vms, np.uint8).reshape(-1, 2)
    return np.stack([found | of_vms_array[:, 0], of_vms_array[:, 1]], axis=1)


def _would_surprise(
    state: gaps.F32, places: NDArray[np.intp], least_nats: float, *, edge: int
) -> NDArray[np.bool_]:
    """Return, per lane, whether a gap of 2**edge s would be worth at least `least_nats`."""
    blocks, lane = np.divmod(places, state.shape[2])
    survived = state[blocks, gaps.SURVIVED + edge, lane] + 0.5
    share: NDArray[np.float32] = survived / (state[blocks, gaps.LIVE, lane] + 1.0)
    seldom: NDArray[np.bool_] = share <= math.exp(-least_nats)
    return seldom


def _of_vm(vm: Vm, node: Node, configuration: Configuration) -> tuple[int, int]:
    """Return the bits of the witnesses that the VM itself or a probe of it can give."""
    found = 0
    if vm.panic_device or vm.watchdog or vm.agent_answered_ms:
        found |= _BIT["guest"]
    if vm.probe_answered_ms:
        answered_s = (node.event_ms - vm.probe_answered_ms) / 1000
        found |= _BIT["probe"] if answered_s <= configuration.probe_fresh_s else 0
    has = _HAS["balloon"] if vm.balloon_period_s > 0 else 0
    has |= _HAS["panic_device"] if vm.panic_device else 0
    has |= _HAS["watchdog"] if vm.watchdog else 0
    has |= _HAS["guest_agent"] if vm.guest_agent else 0
    has |= _HAS["actionable"] if vm.actionable else 0
    return found, has


def witnesses_of(found: int) -> tuple[str, ...]:
    """Return the names of the witnesses whose bits are set."""
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
        return "wait: its own silences have yet to be learned"
    return f"switch on {ways(has)}"


def ways(has: int) -> str:
    """Return the devices missing in a VM's definition that would add a witness, in words."""
    return " or ".join([*(way for name, way in _WAYS.items() if not has & _HAS[name]), _PROBE])
