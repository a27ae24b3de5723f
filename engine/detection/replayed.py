"""Run the engine without a log: records in, alerts and a digest out."""

from collections.abc import Iterable
from typing import NamedTuple

from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.partition import Partition
from flatline.engine.detection.snapshot import digest
from flatline.engine.ports import Record
from flatline.engine.wire.alert import Alert


class Replay(NamedTuple):
    """Alerts and state digest of the records of one partition."""

    alerts: list[Alert]
    digest: str


def run_records(records: Iterable[Record], configuration: Configuration | None = None) -> Replay:
    """Return the alerts of `records` of one partition, and the digest of the state.

    The writers of the records are not verified. Without `configuration` the defaults apply.

    Raises
    ------
    FoldFailed
        A record could not be folded because of an error in the code.
    """
    partition = Partition(Configuration() if configuration is None else configuration)
    alerts = [
        output.alert
        for record in records
        for output in partition.fold(record)
        if output.alert is not None
    ]
    return Replay(alerts, digest(partition))
