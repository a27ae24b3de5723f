"""Every topic of a site, from which both kinds of log are set up.

Sizes are for one partition on the embedded log; on Kafka they become `retention.bytes`.
"""

from typing import Final, NamedTuple

_MIB: Final = 1 << 20
_HOUR_S: Final = 3600
_DAY_S: Final = 24 * _HOUR_S


class Topic(NamedTuple):
    """The properties of a topic that an installation must provide.

    Attributes
    ----------
    partitions
        None takes the site's setting (`log.partitions`), which all topics keyed by cell share, so
        that a cell has the same partition number in each of them.
    retention_s
        None keeps records until `retention_bytes` is reached.
    compacted
        Whether only the last record of each key is kept.
    durable
        Whether the embedded log waits for the disk at each append, because actions depend on the
        record.
    compressed
        Whether batches on Kafka are compressed. Compression does not help small records. Records
        for other programs and for agents must be readable without a compression library.
    """

    name: str
    partitions: int | None
    retention_s: int | None
    retention_bytes: int
    compacted: bool = False
    durable: bool = False
    compressed: bool = True


# Two days of frames let an engine catch up after an outage over a weekend.
FRAMES: Final = Topic("flatline.frames.v1", None, 2 * _DAY_S, 4096 * _MIB)
ALERTS: Final = Topic("flatline.alerts.v1", None, 30 * _DAY_S, 256 * _MIB, compressed=False)
# One partition, because the sequence of orders decides which of them may run. Limits look back 24
# h; a month lets people investigate.
ORDERS: Final = Topic(
    "flatline.orders.v1", 1, 30 * _DAY_S, 256 * _MIB, durable=True, compressed=False
)
# The audit log: at least a year.
JOURNAL: Final = Topic(
    "flatline.journal.v1", None, 400 * _DAY_S, 1024 * _MIB, durable=True, compressed=False
)
SCORES: Final = Topic("flatline.scores.v1", None, 7 * _DAY_S, 512 * _MIB)
FORECASTS: Final = Topic("flatline.forecasts.v1", None, 7 * _DAY_S, 512 * _MIB)
CONTROL: Final = Topic(
    "flatline.control.v1", 1, None, 64 * _MIB, compacted=True, durable=True, compressed=False
)
# Retention is by size, without compaction by key, so that the chunks and the manifests of the last
# two snapshots stay complete.
SNAPSHOTS: Final = Topic("flatline.snapshots.v1", None, None, 512 * _MIB)
# Forecasters have a separate topic. Their snapshot of a thousand VMs has tens of MB every few
# hours, that of the engine a few MB every 3 min. In one topic with retention by size, the snapshots
# of one would delete those of the other.
FORECASTER: Final = Topic("flatline.forecaster.v1", None, None, 1024 * _MIB)
REJECTED: Final = Topic("flatline.rejected.v1", None, 7 * _DAY_S, 128 * _MIB, compressed=False)

TOPICS: Final = (
    FRAMES,
    ALERTS,
    ORDERS,
    JOURNAL,
    SCORES,
    FORECASTS,
    CONTROL,
    SNAPSHOTS,
    FORECASTER,
    REJECTED,
)


def partition_count(topic: Topic, site_partitions: int) -> int:
    """Return the number of partitions of `topic` where the site's setting is `site_partitions`."""
    return site_partitions if topic.partitions is None else topic.partitions
