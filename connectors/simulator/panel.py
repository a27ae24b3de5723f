"""The hypervisors' values other than counters, computed for the whole site together.

The values stay the same until the world changes. So they are computed once for all nodes, and the
sample of each node takes its part.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from flatline.connectors.simulator.guests import NEVER_S, Condition, Guests
from flatline.connectors.simulator.meters import VCPUS, Meters
from flatline.connectors.simulator.rates import Rates
from flatline.connectors.simulator.topology import Topology
from flatline.engine.wire.metrics import (
    COUNTERS,
    DEVICE_SETS,
    INTEGER_ROW,
    INTEGERS,
    KVM_COUNTERS,
    LEVELS,
)

# Comparing an array with an int is much faster than with an enum member.
_OFF: Final = int(Condition.OFF)
_LEVEL: Final = {metric.name: row for row, metric in enumerate(LEVELS)}
_NETWORK: Final = np.array([row for name, row in INTEGER_ROW.items() if name.startswith("net_")])
_GLITCHING: Final = [INTEGER_ROW["block_wr_bytes"], INTEGER_ROW["net_tx_bytes"]]
# Values that the guest itself reports; unknown until its first report.
REPORTED: Final = np.array(
    [
        INTEGER_ROW[name]
        for name in ("balloon_usable_kib", "balloon_last_update_s", "balloon_major_faults")
    ]
)


class Panel:
    """Levels and missing values, as of one revision of the world.

    Attributes
    ----------
    shown
        Shape (len(INTEGERS), N), in the order of the wire format. The sample fills in `vcpus_busy`
        and adds the meters' values to the counters. Until then, the counters are 0, except for the
        major faults that the guest last reported and the error that a simulated faulty reading adds
        to the byte counters (`Guests.glitch`).
    missing
        Shape (len(INTEGERS), N), where even an answering monitor returns no value.
    hidden
        Shape (N,), VMs that no sample contains.
    any_hidden, any_silent
        Whether there are hidden VMs, and whether there are VMs whose monitor does not answer.
    stuck_share, memory_available
        Shape (nodes,): share of VMs whose disk is stuck, and free memory in bytes.
    """

    def __init__(
        self,
        topology: Topology,
        guests: Guests,
        rates: Rates,
        meters: Meters,
        *,
        origin_s: NDArray[np.float64],
    ) -> None:
        size = topology.plan.vms
        sight = topology.plan.telemetry
        never = guests.reported_s == NEVER_S
        shown = np.zeros((len(INTEGERS), size), np.uint64)
        levels = shown[len(COUNTERS) : len(COUNTERS) + len(LEVELS)]
        resident = guests.memory_kib * guests.resident_share
        levels[_LEVEL["balloon_current_kib"]] = topology.memory_kib
        levels[_LEVEL["balloon_rss_kib"]] = _in_pages(resident)
        levels[_LEVEL["balloon_usable_kib"]] = _in_pages(guests.usable_kib)
        stamps = np.where(never, 0.0, origin_s[guests.node] + guests.reported_s)
        levels[_LEVEL["balloon_last_update_s"]] = stamps
        levels[_LEVEL["instance"]] = guests.instance
        levels[_LEVEL["state"]] = guests.state(slice(None))
        levels[_LEVEL["vcpus"]] = topology.vcpus
        levels[_LEVEL["job_active"]] = guests.job
        speeds = meters.pace.gains[VCPUS:]
        levels[_LEVEL["vcpus_halted"]] = (
            (speeds < 0.01).sum(axis=0) + topology.vcpus - speeds.shape[0]
        )
        missing = np.zeros((len(INTEGERS), size), np.bool_)
        missing[REPORTED] = never
        missing[_NETWORK] = topology.network < 0
        # No KVM counters, as with qemu without KVM and with libvirt before 8.9. No device sets: no
        # device is plugged or unplugged.
        missing[len(COUNTERS) + len(LEVELS) :] = True
        missing[INTEGER_ROW["vcpus_halted"]] = not sight.halted_known
        shown[INTEGER_ROW["balloon_major_faults"]] = guests.faults_reported
        shown[_GLITCHING] += guests.glitch.astype(np.uint64)
        self.shown = shown
        self.missing = missing
        self.hidden = (guests.condition == _OFF) | guests.row_absent
        self.any_hidden = bool(self.hidden.any())
        self.any_silent = bool(np.isfinite(guests.silent_since_s).any())
        nodes = len(topology.nodes)
        stuck = np.bincount(guests.node, weights=rates.stuck(slice(None)), minlength=nodes)
        here = np.bincount(guests.node, minlength=nodes)
        self.stuck_share = stuck / np.maximum(here, 1)
        used = np.bincount(guests.node, weights=resident, minlength=nodes)
        self.memory_available = np.maximum(topology.node_memory_kib - used, 0.0) * 1024


def _in_pages(kib: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Round memory in KiB down to whole pages of 4 KiB."""
    return (kib.astype(np.uint64) // np.uint64(4)) * np.uint64(4)


assert COUNTERS + LEVELS + KVM_COUNTERS + DEVICE_SETS == INTEGERS
