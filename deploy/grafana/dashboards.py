"""Write Grafana's provisioning: a data source and two dashboards, with Grafana's own builders."""

import json
import sys
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders import dashboard, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models.dashboard import (
    AnnotationQuery,
    Dashboard,
    DataSourceRef,
    VariableRefresh,
)

FOLDER: Final = Path(__file__).parent
SOURCE: Final = DataSourceRef(type_val="influxdb", uid="flatline")
_VM: Final = "\"vm\" = '$vm'"

DATA_SOURCE: Final = """\
# The historian's `flatline history setup` leaves the token in influxdb/planner.token.
apiVersion: 1
datasources:
  - name: Flatline
    uid: flatline
    type: influxdb
    access: proxy
    url: $FLATLINE_INFLUXDB_URL
    jsonData:
      dbName: flatline
      httpHeaderName1: Authorization
      httpMethod: POST
    secureJsonData:
      httpHeaderValue1: Token $FLATLINE_PLANNER_TOKEN
"""
PROVIDER: Final = """\
apiVersion: 1
providers:
  - name: Flatline
    folder: Flatline
    type: file
    options:
      path: /var/lib/grafana/dashboards/flatline
"""


class InfluxQL(Dataquery, Builder[Dataquery]):
    """One InfluxQL query of a panel, in the format of Grafana's data source."""

    def __init__(self, query: str, *, alias: str = "", ref: str = "A") -> None:
        self.query = query
        self.alias = alias
        self.ref = ref

    def build(self) -> Dataquery:
        """Return self: the query is its own builder."""
        return self

    def to_json(self) -> dict[str, object]:
        """Return the JSON of the query in the dashboard."""
        return {
            "refId": self.ref,
            "alias": self.alias,
            "query": self.query,
            "rawQuery": True,
            "resultFormat": "time_series",
            "datasource": SOURCE,
        }


def _over_time(
    selected: str, source: str, *, where: str = "", by: str = "", every: str = "$__interval"
) -> str:
    condition = f" AND {where}" if where else ""
    groups = f"time({every}){f', {by}' if by else ''}"
    return (
        f"SELECT {selected} FROM {source} WHERE $timeFilter{condition} GROUP BY {groups} fill(none)"
    )


def _lines(title: str, unit: str, *queries: InfluxQL) -> timeseries.Panel:
    panel = timeseries.Panel().title(title).unit(unit).datasource(SOURCE).span(12).height(8)
    for place, query in enumerate(queries):
        query.ref = "ABCDEFGH"[place]
        panel = panel.with_target(query)
    return panel


def _number(title: str, unit: str, query: str) -> stat.Panel:
    panel = stat.Panel().title(title).unit(unit).datasource(SOURCE).span(6).height(4)
    return panel.with_target(InfluxQL(query))


def _nodes() -> dashboard.Dashboard:
    """Return the first part of the fleet's dashboard: its nodes."""
    node = '"minute"."flatline_node_1m"'
    return (
        dashboard.Dashboard("Flatline fleet")
        .uid("flatline-fleet")
        .tags(["flatline"])
        .refresh("1m")
        .time("now-24h", "now")
        .with_panel(
            _number(
                "VMs",
                "short",
                'SELECT sum("v") FROM (SELECT last("vms_last") AS "v" FROM '
                f'{node} WHERE $timeFilter GROUP BY "node")',
            )
        )
        .with_panel(
            _number(
                "Firing alerts",
                "short",
                'SELECT count("confidence") FROM "long"."flatline_alert" WHERE $timeFilter AND'
                " \"state\" = 'firing'",
            )
        )
        .with_panel(
            _lines(
                "CPU of each node",
                "percentunit",
                InfluxQL(
                    _over_time('mean("cpu_busy_ratio_mean")', node, by='"node"'), alias="$tag_node"
                ),
            )
        )
        .with_panel(
            _lines(
                "Free memory of each node",
                "bytes",
                InfluxQL(
                    _over_time('min("memory_available_bytes_min")', node, by='"node"'),
                    alias="$tag_node",
                ),
            )
        )
    )


def fleet() -> Dashboard:
    """Return the dashboard of a whole site."""
    pool = '"minute"."flatline_pool_1m"'
    return (
        _nodes()
        .with_panel(
            _lines(
                "Free space of each pool",
                "bytes",
                InfluxQL(
                    _over_time('min("available_bytes_min")', pool, by='"pool"'), alias="$tag_pool"
                ),
            )
        )
        .with_panel(
            _lines(
                "Alerts by kind",
                "short",
                InfluxQL(
                    _over_time(
                        'count("confidence")',
                        '"long"."flatline_alert"',
                        where="\"state\" = 'firing'",
                        by='"kind"',
                        every="1h",
                    ),
                    alias="$tag_kind",
                ),
            )
        )
        .with_panel(
            table.Panel()
            .title("Decisions and actions")
            .datasource(SOURCE)
            .span(24)
            .height(8)
            .with_target(
                InfluxQL(
                    'SELECT "sentence" FROM "long"."flatline_action" WHERE $timeFilter'
                    ' GROUP BY "kind"'
                )
            )
        )
        .build()
    )


def _cpu() -> dashboard.Dashboard:
    """Return the first part of a VM's dashboard: its CPU, forecasts and alerts."""
    minute, forecast = '"minute"."flatline_vm_1m"', '"minute"."flatline_forecast"'
    soll = f"{_VM} AND \"metric\" = 'cpu_cores' AND \"horizon_s\" = '1800'"
    return (
        dashboard.Dashboard("Flatline VM")
        .uid("flatline-vm")
        .tags(["flatline"])
        .refresh("1m")
        .time("now-6h", "now")
        .with_variable(
            dashboard.QueryVariable("vm")
            .label("VM")
            .datasource(SOURCE)
            # InfluxDB 2.x searches for tags only in the default policy, even if another is named
            # here.
            .query('SHOW TAG VALUES FROM "flatline_vm" WITH KEY = "vm"')
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        )
        .annotation(_Alerts())
        .with_panel(
            _lines(
                "CPU use, and its forecast half an hour before",
                "short",
                InfluxQL(_over_time('mean("cpu_cores_mean")', minute, where=_VM), alias="cores"),
                InfluxQL(_over_time('mean("mean")', forecast, where=soll), alias="forecast"),
                InfluxQL(_over_time('min("lo90")', forecast, where=soll), alias="90 % low"),
                InfluxQL(_over_time('max("hi90")', forecast, where=soll), alias="90 % high"),
            )
        )
        .with_panel(
            _lines(
                "CPU contention in cores",
                "short",
                InfluxQL(_over_time('mean("cpu_delay_cores_mean")', minute, where=_VM)),
            )
        )
    )


def vm() -> Dashboard:
    """Return the dashboard of one VM: its activity, forecasts and alerts."""
    minute = '"minute"."flatline_vm_1m"'
    return (
        _cpu()
        .with_panel(
            _lines(
                "Memory",
                "bytes",
                InfluxQL(
                    _over_time('mean("memory_used_bytes_mean")', minute, where=_VM), alias="used"
                ),
                InfluxQL(
                    _over_time('mean("memory_rss_bytes_mean")', minute, where=_VM),
                    alias="resident",
                ),
            )
        )
        .with_panel(
            _lines(
                "Disks",
                "Bps",
                InfluxQL(
                    _over_time('mean("disk_rd_bytes_per_s_mean")', minute, where=_VM), alias="read"
                ),
                InfluxQL(
                    _over_time('mean("disk_wr_bytes_per_s_mean")', minute, where=_VM),
                    alias="written",
                ),
            )
        )
        .with_panel(
            _lines(
                "Network",
                "Bps",
                InfluxQL(
                    _over_time('mean("net_rx_bytes_per_s_mean")', minute, where=_VM),
                    alias="received",
                ),
                InfluxQL(
                    _over_time('mean("net_tx_bytes_per_s_mean")', minute, where=_VM), alias="sent"
                ),
            )
        )
        .build()
    )


ALERTS_OF_VM: Final = (
    'SELECT "sentence" FROM "long"."flatline_alert" WHERE $timeFilter AND'
    " \"subject\" = '$vm' AND \"state\" = 'firing'"
)


class _AlertsQuery(AnnotationQuery):
    """The JSON of the annotation in the dashboard."""

    def to_json(self) -> dict[str, object]:
        return super().to_json() | {
            "query": ALERTS_OF_VM,
            "textColumn": "sentence",
        }


class _Alerts(Builder[AnnotationQuery]):
    """An annotation whose text comes from InfluxQL, which the library's builder lacks."""

    def build(self) -> AnnotationQuery:
        return _AlertsQuery(
            name="Alerts", datasource=SOURCE, enable=True, icon_color="red", hide=False
        )


def files() -> dict[str, str]:
    """Return every generated file below `deploy/grafana` with its text."""
    return {
        "datasource.yaml": DATA_SOURCE,
        "provider.yaml": PROVIDER,
        "fleet.json": _text(fleet()),
        "vm.json": _text(vm()),
    }


def _text(built: Dashboard) -> str:
    return json.dumps(built, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    for name, text in files().items():
        (FOLDER / name).write_text(text)
    sys.stdout.write(f"{len(files())} files in {FOLDER}\n")
