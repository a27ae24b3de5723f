"""Write `deploy/grafana/PLANNERS.md` from the schema and the usual questions."""

import sys
from pathlib import Path
from typing import Final

from deploy.grafana.usual_queries import DAY_S, USUAL, Usual
from flatline.connectors.influxdb.influxql import to_influxql
from flatline.engine.wire.measurement import MEASUREMENTS, RETENTION_S, TAGS, Measurement

PAGE: Final = Path(__file__).with_name("PLANNERS.md")

_HEAD: Final = """# The history, for planners

The history is in InfluxDB database `flatline`, as three retention policies. Queries are in
InfluxQL, which InfluxDB 2.x and 3.x both answer. `flatline history setup` creates all of it and
writes a read-only token to `influxdb/planner.token` in its state folder:

```
curl -G http://localhost:8086/query -H "Authorization: Token $(cat planner.token)" \\
  --data-urlencode db=flatline --data-urlencode 'q=SELECT ...'
```

Without InfluxDB the same rows are Parquet files in `history` below the state folder, one folder
per measurement. DuckDB and every other reader of Parquet can open them. The same questions have
the same answers in both stores.

- Times are UTC. The time of a roll-up is the beginning of its window.
- A value that was not measured is absent, never 0.
- Numbers are kept with six decimals, with three from 1e9 on, and with none from 1e12 on.
- `count`, `mean`, `min`, `max`, `last` and the percentiles of an hour are computed from the samples
  of that hour.
- `percentile()` of InfluxQL returns the nearest rank.

This page is generated: `python -m deploy.grafana.planners_page`.
"""


def page() -> str:
    """Return the page's text."""
    parts = [_HEAD, "## The usual questions\n"]
    parts += [_asked(usual) for usual in USUAL]
    parts.append("## What is kept, and for how long\n")
    parts.append("| policy | days | what |\n|---|---|---|")
    what = {"raw": "each sample", "minute": "minutes and forecasts", "long": "hours and events"}
    parts += [
        f"| `{bucket}` | {keep_s // DAY_S} | {what[bucket]} |"
        for bucket, keep_s in RETENTION_S.items()
    ]
    parts.append("\n## Tags\n\n| tag | meaning |\n|---|---|")
    parts += [f"| `{name}` | {meaning} |" for name, meaning in TAGS.items()]
    parts.append("\n## Measurements and fields")
    parts += [_measured(measurement) for measurement in MEASUREMENTS.values()]
    return "\n".join(parts) + "\n"


def _asked(usual: Usual) -> str:
    days = usual.span_s // DAY_S
    text = to_influxql(usual.query, begin=f"now() - {days}d", end="now()")
    for place, (field, statistic) in enumerate(usual.query.select):
        text = text.replace(f'AS "v{place}"', f'AS "{"_".join(filter(None, (field, statistic)))}"')
    return f"**{usual.text}**\n\n```sql\n{text}\n```\n"


def _measured(measurement: Measurement) -> str:
    lines = [
        f"\n### {measurement.name}\n\n{measurement.meaning}. Policy `{measurement.bucket}`; tags"
        f" {', '.join(f'`{tag}`' for tag in measurement.tags)}.\n",
        "| field | type | unit | meaning |\n|---|---|---|---|",
    ]
    lines += [
        f"| `{field.name}` | {field.kind} | {field.unit} | {field.meaning} |"
        for field in measurement.fields
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"{PAGE}\n")
