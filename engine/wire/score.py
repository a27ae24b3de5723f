"""Scores: per closed minute and cell, expected and measured values of each VM.

Used for history and for retraining. Columns are 32-bit floats in the order of `FEATURES`.
"""

from typing import Final, Literal

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from flatline.engine.errors import RecordRejected
from flatline.engine.wire import limits
from flatline.engine.wire.envelope import decode_msgpack
from flatline.engine.wire.frame import UUID_BYTES

# Means over the minute; `*_expected` is the one-step forecast, `*_band` half the width of its
# interval (≈ 3 standard deviations).
FEATURES: Final = (
    "cpu_cores",
    "cpu_cores_expected",
    "cpu_cores_band",
    "disk_rd_bytes_per_s",
    "disk_wr_bytes_per_s",
    "net_tx_bytes_per_s",
    "worst_z",
    "silence_nats",
    "fault_nats",
    "forest_score",
)
# Workload classes by the average share of its vCPUs that a VM uses: below 2 % it is idle, from 40 %
# on it is busy.
CLASSES: Final = ("idle", "steady", "busy")
CLASS_EDGES: Final = np.array([0.02, 0.4])

# Devices in a VM's definition that enable a witness, and whether its owner agreed to actions.
SET_UP: Final = ("balloon", "panic_device", "watchdog", "guest_agent", "actionable")


class NodeMinute(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """State of a node for the choice of migration targets; None is not measured.

    `groups` names the anti-affinity groups whose members it runs, as `tenant/group`.
    """

    vms: limits.Count = 0
    cores: limits.Figure | None = None
    memory_available_bytes: limits.Figure | None = None
    groups: limits.Texts = ()


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """One minute of one cell.

    Attributes
    ----------
    values
        Shape (len(features), n), float32, row by row.
    pool_vms, network_vms
        Number of the cell's VMs that use each pool and each network. The minute of a large cell is
        split into several records by node; only the first record has these two fields.
    cell_vms
        Number of VMs of the whole cell; unset if all of them are in this record.
    coverage
        Shape (n, 2), uint8: witnesses available if the VM died (a bit for each of `WITNESSES`), and
        properties of its definition (a bit for each of `SET_UP`). Empty in records of an earlier
        release.
    """

    site: limits.Name
    cell: limits.Name
    minute_ms: limits.TimeMs
    uuids: bytes
    values: bytes
    classes: tuple[str, ...]
    node_load: dict[str, float]
    configuration: limits.Word
    features: limits.Words = FEATURES
    v: Literal[1] = 1
    nodes: dict[str, NodeMinute] = {}
    pool_vms: dict[str, int] = {}
    network_vms: dict[str, int] = {}
    coverage: bytes = b""
    cell_vms: limits.Count | UnsetType = UNSET

    @property
    def vm_count(self) -> int:
        """Number of VMs of the cell."""
        return len(self.uuids) // UUID_BYTES if self.cell_vms is UNSET else self.cell_vms

    def covered(self) -> NDArray[np.uint8]:
        """Return `coverage` as shape (n, 2); shape (0, 2) where it is absent."""
        return np.frombuffer(self.coverage, np.uint8).reshape(-1, 2)

    def matrix(self) -> NDArray[np.float32]:
        """Return `values` as shape (len(features), n); NaN is unknown."""
        return np.frombuffer(self.values, "<f4").reshape(len(self.features), -1)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Scores)


def encode_scores(scores: Scores) -> bytes:
    """Return the bytes of one minute."""
    return _encoder.encode(scores)


def decode_scores(value: bytes) -> Scores:
    """Return the minute that `value` encodes, or raise `RecordRejected`."""
    scores = decode_msgpack(value, _decoder)
    size, rest = divmod(len(scores.uuids), UUID_BYTES)
    if len(scores.coverage) not in (0, 2 * size):
        raise RecordRejected(
            "malformed", f"coverage of {len(scores.coverage)} bytes for {size} VMs"
        )
    if rest or len(scores.values) != 4 * size * len(scores.features):
        raise RecordRejected(
            "malformed", "the number of values does not fit the named VMs and features"
        )
    return scores
