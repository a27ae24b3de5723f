"""Forecasts: per step and node, the expected values of each VM and of the node itself.

Values are 32-bit floats in the order VM, metric, horizon, band. Forecasts of the node itself are in
`node_values`. A forecast is made at `time_ms` for the time `time_ms + horizon`.
"""

from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from flatline.engine.errors import RecordRejected
from flatline.engine.wire import limits
from flatline.engine.wire.envelope import decode_msgpack
from flatline.engine.wire.frame import UUID_BYTES

# Each value is the mean over a step. Memory is the use that the guest reports through its balloon;
# without a report, the resident memory on the node. Disk and network of a node are the sums over
# its VMs.
METRICS: Final = (
    "cpu_cores",
    "memory_used_bytes",
    "disk_rd_bytes_per_s",
    "disk_wr_bytes_per_s",
    "net_rx_bytes_per_s",
    "net_tx_bytes_per_s",
)
HORIZONS_S: Final = (300, 1800, 86_400)
# `mean` is the median of the distribution in spite of its name: the median has the least absolute
# error.
BANDS: Final = ("mean", "lo90", "hi90", "lo50", "hi50")
# Values and UUID of a VM take 376 bytes, so a full record has 752 kB of at most 900 kB.
MAX_VMS: Final = 2_000


class Forecasts(msgspec.Struct, frozen=True, kw_only=True):
    """Forecasts of one node and all or some of its VMs at the end of one step.

    `values` has shape (n, len(metrics), len(horizons_s), len(bands)); NaN is no forecast. The VMs
    of a large node are in several records. `node_values` has the same shape without n; only the
    first record has it. The horizon of a day is forecast only every 5 min.
    """

    site: limits.Name
    zone: limits.Name
    cell: limits.Name
    node: limits.Name
    time_ms: limits.TimeMs
    step_s: Annotated[int, Meta(ge=1, le=limits.MAX_PERIOD_S)]
    uuids: bytes
    values: bytes
    node_values: bytes
    metrics: limits.Words = METRICS
    horizons_s: limits.Periods = HORIZONS_S
    bands: limits.Words = BANDS
    v: Literal[1] = 1

    def vms(self) -> NDArray[np.float32]:
        """Return `values` as shape (n, metrics, horizons, bands)."""
        return np.frombuffer(self.values, "<f4").reshape(-1, *self._shape())

    def own(self) -> NDArray[np.float32] | None:
        """Return the forecasts of the node itself, None where another part has them.

        The shape is (metrics, horizons, bands); NaN is no forecast.
        """
        if not self.node_values:
            return None
        return np.frombuffer(self.node_values, "<f4").reshape(self._shape())

    def _shape(self) -> tuple[int, int, int]:
        return len(self.metrics), len(self.horizons_s), len(self.bands)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Forecasts)


def encode_forecasts(forecasts: Forecasts) -> bytes:
    """Return the bytes of one record."""
    return _encoder.encode(forecasts)


def decode_forecasts(value: bytes) -> Forecasts:
    """Return the forecasts that `value` encodes, or raise `RecordRejected`."""
    forecasts = decode_msgpack(value, _decoder)
    size, rest = divmod(len(forecasts.uuids), UUID_BYTES)
    row = 4 * len(forecasts.metrics) * len(forecasts.horizons_s) * len(forecasts.bands)
    if rest or len(forecasts.values) != row * size or len(forecasts.node_values) not in (0, row):
        raise RecordRejected(
            "malformed", "the number of values does not fit the named VMs, metrics and horizons"
        )
    return forecasts
