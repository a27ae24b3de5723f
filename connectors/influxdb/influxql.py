"""Translate queries into InfluxQL, which InfluxDB 2.x and 3.x both accept, and parse answers."""

import re
from collections.abc import Sequence
from typing import Any, Final

from flatline.engine.ports import Answer, Query
from flatline.engine.wire.measurement import MEASUREMENTS
from flatline.engine.wire.points import tag_text

_PLAIN: Final = frozenset({"count", "sum", "mean", "min", "max", "first", "last"})
_PERCENTILE: Final = re.compile(r"p(\d{1,2})")


def to_influxql(
    query: Query,
    *,
    begin: str | None = None,
    end: str | None = None,
    has_policy: bool = True,
) -> str:
    """Return the InfluxQL text of a query.

    Parameters
    ----------
    begin, end
        Bounds as text that replace the query's own, such as `now() - 30d`; None keeps those.
    has_policy
        Whether the bucket is a retention policy of the queried database, as in 2.x; in 3.x it is
        the database.

    Raises
    ------
    ValueError
        The query selects an unknown statistic.
    """
    bucket = MEASUREMENTS[query.measurement].bucket
    selected = ", ".join(
        f'{_call(field, statistic)} AS "{_column(place)}"'
        for place, (field, statistic) in enumerate(query.select)
    )
    conditions = [
        f"time >= {begin or query.begin_ns}",
        f"time < {end or query.end_ns}",
        *(f"\"{tag}\" = '{_quoted(tag_text(value))}'" for tag, value in query.where.items()),
    ]
    groups = [f'"{tag}"' for tag in query.group_by]
    if query.every_s is not None:
        groups.insert(0, f"time({query.every_s}s)")
    source = f'"{query.measurement}"'
    if has_policy:
        source = f'"{bucket}".{source}'
    text = f"SELECT {selected} FROM {source} WHERE {' AND '.join(conditions)}"
    if groups:
        text += f" GROUP BY {', '.join(groups)}"
    return f"{text} fill(none)" if query.every_s is not None else text


def answers(query: Query, series: Sequence[dict[str, Any]]) -> list[Answer]:
    """Return the answers in the server's series, ordered by tags and time.

    `series` is the server's answer to the text of `to_influxql`, with times in ns. A count of 0
    becomes None, and a row with only None is left out.
    """
    found: list[Answer] = []
    windowed = query.every_s is not None or not query.select[0][1]
    for one in series:
        tags = tuple(one.get("tags", {}).get(tag, "") for tag in query.group_by)
        order = [one["columns"].index(_column(place)) for place in range(len(query.select))]
        for row in one["values"]:
            values = tuple(
                None if statistic == "count" and row[place] == 0 else row[place]
                for place, (_, statistic) in zip(order, query.select, strict=True)
            )
            if any(value is not None for value in values):
                # Without windows the server returns the time of the selected row; the answer has
                # the begin of the query instead.
                found.append(Answer(tags, row[0] if windowed else query.begin_ns, values))
    return sorted(found, key=lambda answer: answer[:2])


def _column(place: int) -> str:
    return f"v{place}"


def _call(field: str, statistic: str) -> str:
    if not statistic:
        return f'"{field}"'
    if statistic in _PLAIN:
        return f'{statistic}("{field}")'
    if rank := _PERCENTILE.fullmatch(statistic):
        return f'percentile("{field}", {int(rank[1])})'
    raise ValueError(
        f"{statistic!r} is not a statistic. Known: {', '.join(sorted(_PLAIN))}, p0 to p99"
    )


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")
