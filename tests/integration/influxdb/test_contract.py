"""InfluxDB keeps every promise of both ports, and gives the same answers as Parquet."""

import pytest

from tests.contracts.history.suite import QueryContract, SinkContract

pytestmark = pytest.mark.influxdb


class TestInfluxDB(SinkContract, QueryContract):
    pass
