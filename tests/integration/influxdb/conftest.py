"""One real server for all tests of this folder, and a separate database for each of them."""

import uuid
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from deploy.lab.influx_server import Influx
from flatline.connectors.influxdb.config import InfluxConfig
from flatline.connectors.influxdb.history import InfluxHistory
from flatline.connectors.influxdb.setup import set_up
from flatline.models.codecs.lines import write_lines

pytest.register_assert_rewrite("tests.contracts.history.suite")


@pytest.fixture
def configure(influx: Influx) -> Callable[..., InfluxConfig]:
    """Return configurations of a database of this test, with its historian's token."""
    database = f"flatline{uuid.uuid4().hex[:8]}"
    admin = InfluxConfig(url=influx.url, org=influx.org, database=database, token=influx.token)
    made = set_up(admin)

    def make(**settings: object) -> InfluxConfig:
        given: dict[str, object] = {
            "url": influx.url,
            "org": influx.org,
            "database": database,
            "token": made.historian,
        }
        return InfluxConfig(**(given | settings))  # type: ignore[arg-type]

    return make


@pytest_asyncio.fixture
async def history(configure: Callable[..., InfluxConfig]) -> AsyncIterator[InfluxHistory]:
    async with InfluxHistory(configure(), write_lines=write_lines) as history:
        yield history
