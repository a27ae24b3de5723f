"""Translate queries into SQL for DuckDB, with the same answers as InfluxDB."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from flatline.engine.ports import Query
from flatline.engine.wire.measurement import MEASUREMENTS, Measurement
from flatline.engine.wire.points import tag_text

_TYPES: Final = {"float": "DOUBLE", "integer": "BIGINT", "text": "VARCHAR"}
_CALLS: Final = {
    # The count of a field without values is NULL and not 0, as in InfluxQL.
    "count": 'nullif(count("{field}"), 0)',
    "sum": 'sum("{field}")',
    "mean": 'avg("{field}")',
    "min": 'min("{field}")',
    "max": 'max("{field}")',
    "first": 'arg_min("{field}", time)',
    "last": 'arg_max("{field}", time)',
}
_PERCENTILE: Final = re.compile(r"p(\d{1,2})")


def columns(declared: Measurement) -> dict[str, str]:
    """Return the columns of a measurement's files with their DuckDB types."""
    return (
        {"time": "BIGINT"}
        | dict.fromkeys(declared.tags, "VARCHAR")
        | {field.name: _TYPES[field.kind] for field in declared.fields}
    )


def source(measurement: str, partitions: Sequence[Sequence[Path]]) -> str:
    """Return a table expression that yields each row of these partitions exactly once.

    `partitions` holds the files of each partition. Rows with the same time and tags in a partition
    count as one row; that of the file whose name sorts last applies.
    """
    declared = MEASUREMENTS[measurement]
    # Files of an older release lack columns declared since; their values are unknown.
    nothing = ", ".join(f'NULL::{kind} AS "{name}"' for name, kind in columns(declared).items())
    parts = [f"SELECT {nothing} WHERE false"]
    single = [files[0] for files in partitions if len(files) == 1]
    several = [path for files in partitions if len(files) > 1 for path in files]
    if single:
        parts.append(f"SELECT * FROM {_reading(single)}")
    if several:
        key = ", ".join(["time", *(f'"{tag}"' for tag in declared.tags)])
        parts.append(
            f"SELECT * EXCLUDE (filename) FROM {_reading(several, filename=True)} QUALIFY"
            f" row_number() OVER (PARTITION BY {key} ORDER BY filename DESC) = 1"
        )
    union = " UNION ALL BY NAME ".join(f"({part})" for part in parts)
    # A foreign file may declare text where a number is expected. If a text is not a number, its
    # cast fails, and the file is set aside. Columns that the query does not use are not cast.
    cast = ", ".join(f'{_cast(name, kind)} AS "{name}"' for name, kind in columns(declared).items())
    return f"(SELECT * REPLACE ({cast}) FROM ({union}))"


def _cast(name: str, kind: str) -> str:
    """Return the SQL of a column in its declared type; infinity and NaN become NULL."""
    cast = f'CAST("{name}" AS {kind})'
    return f"CASE WHEN isfinite({cast}) THEN {cast} END" if kind == "DOUBLE" else cast


def misfits(measurement: str, found: Mapping[str, str]) -> str:
    """Return the errors in the columns of a file as one text; empty if there are none.

    `found` maps each column to its DuckDB type. Additional and missing columns other than the time
    are no errors: a later release writes more, an earlier one fewer.
    """
    declared = columns(MEASUREMENTS[measurement])
    if "time" not in found:
        return "it has no column time"
    if any(name.lower() == "filename" for name in found):
        return "it has a column filename, which the query uses to identify files"
    wrong = [
        f"{name} is {kind} and not {declared[name]}"
        for name, kind in found.items()
        if name in declared and kind != declared[name]
    ]
    return ", ".join(wrong)


def to_sql(query: Query, partitions: Sequence[Sequence[Path]]) -> str:
    """Return the SQL of a query over some files: tags, then time, then the selected values.

    `partitions` holds the files of each partition, as for `source`.

    Raises
    ------
    ValueError
        The query selects an unknown statistic.
    """
    rows = not query.select[0][1]
    selected = [
        f'"{field}" AS v{index}' if rows else f"{_call(field, statistic)} AS v{index}"
        for index, (field, statistic) in enumerate(query.select)
    ]
    tags = [f'"{tag}"' for tag in query.group_by]
    if rows:
        moment = "time"
    elif query.every_s is not None:
        moment = f"time - time % {query.every_s * 1_000_000_000}"
    else:
        moment = f"{query.begin_ns}::BIGINT"
    conditions = [
        f"time >= {query.begin_ns}",
        f"time < {query.end_ns}",
        *(f"\"{tag}\" = '{_quoted(tag_text(value))}'" for tag, value in query.where.items()),
    ]
    # Undeclared columns of a file must not shadow the names that this query defines.
    declared = ", ".join(f'"{name}"' for name in columns(MEASUREMENTS[query.measurement]))
    text = (
        f"SELECT {', '.join([*tags, f'{moment} AS moment', *selected])}"
        f" FROM (SELECT {declared} FROM {source(query.measurement, partitions)})"
        f" WHERE {' AND '.join(conditions)}"
    )
    if not rows:
        text += f" GROUP BY {', '.join([*tags, 'moment'])}"
    known = " OR ".join(f"v{index} IS NOT NULL" for index in range(len(query.select)))
    return f"SELECT * FROM ({text}) WHERE {known} ORDER BY {', '.join([*tags, 'moment'])}"


def _reading(paths: Sequence[Path], *, filename: bool = False) -> str:
    names = ", ".join(f"'{_quoted(str(path))}'" for path in paths)
    return f"read_parquet([{names}], union_by_name = true, filename = {str(filename).lower()})"


def _call(field: str, statistic: str) -> str:
    if rank := _PERCENTILE.fullmatch(statistic):
        index = f'floor(count("{field}") * {int(rank[1])}.0 / 100.0 + 0.5)::BIGINT'
        return f'list_sort(list("{field}") FILTER (WHERE "{field}" IS NOT NULL))[{index}]'
    try:
        return _CALLS[statistic].format(field=field)
    except KeyError:
        raise ValueError(
            f"{statistic!r} is not a statistic. Known: {', '.join(sorted(_CALLS))}, p0 to p99"
        ) from None


def _quoted(value: str) -> str:
    return value.replace("'", "''")
