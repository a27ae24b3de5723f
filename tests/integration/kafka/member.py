"""A group's member in a separate process, to be killed: prints each value it received.

It commits later than it reads, as the engine does after a snapshot.
"""

import asyncio
import sys

import structlog

from flatline.connectors.kafka.config import KafkaConfig
from flatline.connectors.kafka.faust_worker import FaustKafkaLog
from flatline.connectors.kafka.log import KafkaLog
from tests.contracts.log.declared import KEYED, PARTITIONS, TOPICS

COMMIT_BEHIND = 25


async def main(bootstrap: str, prefix: str, kind: str, group: str) -> None:
    config = KafkaConfig(
        bootstrap=bootstrap,
        topic_prefix=prefix,
        topics=TOPICS,
        partitions=PARTITIONS,
        session_timeout_s=2.0,
    )
    made = FaustKafkaLog(config, through=frozenset({KEYED.name}))
    async with (
        made if kind == "faust" else KafkaLog(config) as log,
        log.subscribe(KEYED.name, group=group) as subscription,
    ):
        while True:
            delivery = await subscription.poll(max_records=10, wait_s=0.5)
            for record in delivery.records:
                sys.stdout.write(f"{record.partition} {record.offset} {int(record.value)}\n")
            sys.stdout.flush()
            if delivery.records:
                ends = {record.partition: record.offset + 1 for record in delivery.records}
                await subscription.commit(
                    {number: max(0, end - COMMIT_BEHIND) for number, end in ends.items()}
                )


# Standard output is only for values.
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
asyncio.run(main(*sys.argv[1:]))
