"""Which role reads and writes which topic: what the log's access control is to allow, no more.

`deploy/kafka` makes Kafka's ACLs of it, and `flatline doctor` holds a principal's rights to it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from engine.wire.topics import (
    ALERTS,
    CONTROL,
    FORECASTER,
    FORECASTS,
    FRAMES,
    JOURNAL,
    ORDERS,
    REJECTED,
    SCORES,
    SNAPSHOTS,
    TOPICS,
)

Role = Literal[
    "collector", "agent", "engine", "forecaster", "planner", "historian", "notifier", "owner",
    "operator", "reader",
]  # fmt: skip
ROLES: Final[tuple[Role, ...]] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Rights:
    """What one role needs of the log.

    Attributes
    ----------
    reads, writes
        Names of topics, without an installation's prefix.
    group
        Consumer group it reads with, as settings name it by default; empty where it needs none.
    group_prefix
        Whether every group whose name begins so is meant: readers name their own.
    describes
        Whether it reads the topics' settings, for `flatline doctor`.
    """

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    group: str = ""
    group_prefix: bool = False
    describes: bool = False


RIGHTS: Final[dict[Role, Rights]] = {
    "collector": Rights(writes=(FRAMES.name,)),
    "agent": Rights(
        reads=(CONTROL.name, ORDERS.name),
        writes=(ORDERS.name, FRAMES.name, JOURNAL.name, REJECTED.name),
    ),
    "engine": Rights(
        reads=(FRAMES.name, SNAPSHOTS.name),
        # Frames too: ticks in idle partitions.
        writes=(ALERTS.name, SCORES.name, REJECTED.name, SNAPSHOTS.name, FRAMES.name),
        group="flatline-engine",
    ),
    "forecaster": Rights(
        reads=(FRAMES.name, FORECASTER.name),
        writes=(FORECASTS.name, FORECASTER.name, REJECTED.name),
        group="flatline-forecast",
    ),
    "planner": Rights(
        reads=(ALERTS.name, ORDERS.name, CONTROL.name, SCORES.name),
        writes=(ORDERS.name, CONTROL.name, JOURNAL.name, REJECTED.name),
    ),
    "historian": Rights(
        reads=(FRAMES.name, ALERTS.name, FORECASTS.name, JOURNAL.name, SCORES.name, SNAPSHOTS.name),
        writes=(SNAPSHOTS.name, REJECTED.name),
        group="flatline-history",
    ),
    # It runs in the planner's process: that principal has both roles.
    "notifier": Rights(reads=(JOURNAL.name,), writes=(JOURNAL.name,), group="flatline-notify"),
    # `flatline event`: its frames tell of a VM, and its word of control keeps machines off it.
    "owner": Rights(reads=(CONTROL.name, SCORES.name), writes=(FRAMES.name, CONTROL.name)),
    "operator": Rights(
        reads=(
            ALERTS.name,
            CONTROL.name,
            FRAMES.name,
            JOURNAL.name,
            ORDERS.name,
            REJECTED.name,
            SCORES.name,
        ),
        writes=(CONTROL.name,),
        describes=True,
    ),
    "reader": Rights(
        reads=(ALERTS.name, JOURNAL.name, SCORES.name, FORECASTS.name),
        group="flatline-reader-",
        group_prefix=True,
    ),
}


def operations(role: Role, topic: str) -> frozenset[str]:
    """Return what a role may do with a topic, as Kafka names it; each implies `Describe`."""
    rights = RIGHTS[role]
    found = set()
    if topic in rights.reads:
        found |= {"Read", "Describe"}
    if topic in rights.writes:
        found |= {"Write", "Describe"}
    if rights.describes:
        found |= {"Describe", "DescribeConfigs"}
    return frozenset(found)


def topics_of(roles: Iterable[Role]) -> frozenset[str]:
    """Return the topics that roles may see: those that another role needs are none of theirs."""
    chosen = tuple(roles)
    return frozenset(
        topic.name for topic in TOPICS if any(operations(role, topic.name) for role in chosen)
    )


def problems_of(
    found: Mapping[str, frozenset[str]], roles: Iterable[Role]
) -> tuple[list[str], list[str]]:
    """Return what a principal lacks for its roles, and what it may do that none of them needs.

    Parameters
    ----------
    found
        What it may do with each topic.
    """
    missing, excess = [], []
    chosen = tuple(roles)
    for topic, allowed in found.items():
        needed = frozenset[str]().union(*(operations(role, topic) for role in chosen))
        missing += [f"{operation} on {topic}" for operation in sorted(needed - allowed)]
        # To see a topic and its settings tells nobody what stands in it.
        more = allowed - needed - {"Describe", "DescribeConfigs"}
        excess += [f"{operation} on {topic}" for operation in sorted(more)]
    return missing, excess


def suited(found: Mapping[str, frozenset[str]]) -> tuple[Role, ...]:
    """Return the roles for which a principal's rights suffice."""
    return tuple(
        role
        for role in ROLES
        if all(operations(role, topic) <= allowed for topic, allowed in found.items())
    )
