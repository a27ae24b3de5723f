"""InfluxDB keeps every promise of the port, and gives the answers that Parquet gives."""

import pytest

from tests.contracts.history.suite import HistoryContract

pytestmark = pytest.mark.influxdb


class TestInfluxDB(HistoryContract):
    pass
