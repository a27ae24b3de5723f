"""Topics that each role reads and writes: the least rights for the log's access control.

`deploy/kafka` generates Kafka's ACLs from this list, and `flatline doctor` compares the rights of a
principal with it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from flatline.engine.wire.topics import (
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
    """Rights on the log that one role needs.

    Attributes
    ----------
    reads, writes
        Names of topics, without an installation's prefix.
    group
        Its consumer group, as settings name it by default; empty where it needs none.
    group_prefix
        Whether `group` is a prefix of group names: readers name their own groups.
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
    # The notifier runs in the planner's process, so the planner's principal has both roles.
    "notifier": Rights(reads=(JOURNAL.name,), writes=(JOURNAL.name,), group="flatline-notify"),
    # An owner runs `flatline event`: the frame reports work on a VM, the control record forbids
    # actions on it.
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
    """Return the operations of a role on a topic, in Kafka's terms; each implies `Describe`."""
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
    """Return the topics that these roles may see, without those that only other roles need."""
    chosen = tuple(roles)
    return frozenset(
        topic.name for topic in TOPICS if any(operations(role, topic.name) for role in chosen)
    )


def problems_of(
    found: Mapping[str, frozenset[str]], roles: Iterable[Role]
) -> tuple[list[str], list[str]]:
    """Return the rights that a principal lacks for its roles, and those that no role needs.

    Each right is a text such as "Read on flatline.frames.v1".

    Parameters
    ----------
    found
        The operations that the principal may do with each topic, by names without an installation's
        prefix. Only these topics are compared.
    """
    missing, excess = [], []
    chosen = tuple(roles)
    for topic, allowed in found.items():
        needed = frozenset[str]().union(*(operations(role, topic) for role in chosen))
        missing += [f"{operation} on {topic}" for operation in sorted(needed - allowed)]
        # `Describe` and `DescribeConfigs` do not count as excess: they reveal no records.
        more = allowed - needed - {"Describe", "DescribeConfigs"}
        excess += [f"{operation} on {topic}" for operation in sorted(more)]
    return missing, excess


def suited(found: Mapping[str, frozenset[str]]) -> tuple[Role, ...]:
    """Return the roles for which a principal's rights suffice; `found` is as in `problems_of`."""
    return tuple(
        role
        for role in ROLES
        if all(operations(role, topic) <= allowed for topic, allowed in found.items())
    )
