"""Which witnesses could say of each VM that it is dead, and what would give it a second one.

A VM without a second witness is alerted and never ordered, so its owner should know before it
dies.
"""

import math
from typing import Final

from engine.detection.cell import Node, Vm
from engine.detection.configuration import Configuration
from engine.detection.lanes import F, I, Lanes
from engine.wire.alert import Witness
from models.kernels import gaps
from models.kernels.lanes import LANES

# An order is given about half a minute after a death: what is worth too little by then comes
# too late.
_BY_THEN_EDGE: Final = 5  # 2**5 s
_ADVICE: Final[tuple[tuple[Witness, str], ...]] = (
    ("balloon", "balloon statistics (<memballoon><stats period='5'/></memballoon>)"),
    ("guest", "a panic device (<panic model='pvpanic'/>)"),
    ("probe", "the agent's probe (agent.probe, and CAP_NET_RAW for its unit)"),
)


def available(
    node: Node, lanes: Lanes, lane: int, vm: Vm, configuration: Configuration
) -> tuple[Witness, ...]:
    """Return the witnesses beside activity that would be heard if the VM died now."""
    found: list[Witness] = []
    least = configuration.standstill_least_nats
    if lanes.vcpu_counts[lane] > 1 and _would_surprise(lanes.others_gaps, lane, least):
        found.append("vcpus")
    if _would_surprise(lanes.exit_gaps, lane, least):
        found.append("exits")
    if lanes.integers[I["balloon_moved"], lane] >= 2 and lanes.floats[F["balloon_period_s"], lane]:
        found.append("balloon")
    if vm.panic_device or vm.watchdog or vm.agent_answered_ms:
        found.append("guest")
    answered_s = (node.event_ms - vm.probe_answered_ms) / 1000
    if vm.probe_answered_ms and answered_s <= configuration.probe_fresh_s:
        found.append("probe")
    return tuple(found)


def _would_surprise(state: gaps.F32, lane: int, least_nats: float) -> bool:
    """Return whether half a minute of standstill would be worth what a witness needs."""
    fields = state[lane // LANES, :, lane % LANES]
    survived = fields[gaps.SURVIVED + _BY_THEN_EDGE] + 0.5
    return -math.log(survived / (fields[gaps.LIVE] + 1.0)) >= least_nats


def advice(known: tuple[Witness, ...], vm: Vm) -> str:
    """Return what would give a VM a second witness, in words; empty where it has one."""
    if known:
        return ""
    ways = [way for witness, way in _ADVICE if not _is_set_up(witness, vm)]
    if not vm.guest_agent:
        ways.append("a guest agent (org.qemu.guest_agent.0)")
    return " or ".join(ways) or "its second witness has yet to be heard for the first time"


def _is_set_up(witness: Witness, vm: Vm) -> bool:
    return {
        "balloon": vm.balloon_period_s > 0,
        "guest": vm.panic_device,
        "probe": vm.probe_answered_ms > 0,
    }.get(witness, False)
