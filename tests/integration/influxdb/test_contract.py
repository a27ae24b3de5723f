"""InfluxDB keeps every promise of the port, and gives the same answers as Parquet."""

import pytest

from tests.contracts.history.suite import HistoryContract

pytestmark = pytest.mark.influxdb


class TestInfluxDB(HistoryContract):
    pass
