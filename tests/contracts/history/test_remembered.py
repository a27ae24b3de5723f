"""A store that cannot be queried keeps every promise of a sink, and is no `HistoryQuery`."""

from collections.abc import Sequence

import pytest

from flatline.engine.ports import Answer, HistoryQuery, HistorySink, Query
from tests.contracts.history.remembered import RememberedRows
from tests.contracts.history.suite import SinkContract


class TestRememberedRows(SinkContract):
    @pytest.fixture
    def history(self) -> RememberedRows:
        return RememberedRows()

    async def stored(self, history: HistorySink, query: Query) -> Sequence[Answer]:
        assert isinstance(history, RememberedRows)
        assert not isinstance(history, HistoryQuery)
        return history.stored(query)
