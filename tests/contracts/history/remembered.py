"""A store in memory that takes rows and answers no queries, as Prometheus remote write does."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from flatline.connectors.clock import SystemClock
from flatline.engine.ports import Answer, Clock, Query, RefusedRow
from flatline.engine.wire.measurement import MEASUREMENTS, RETENTION_S
from flatline.engine.wire.points import MISSING, Points

Tags = tuple[tuple[str, str], ...]


class RememberedRows:
    """A `HistorySink` that is no `HistoryQuery`; `stored` is for tests."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = SystemClock() if clock is None else clock
        self.rows: dict[tuple[str, Tags, int], dict[str, Any]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    async def write(self, batch: Sequence[Points]) -> tuple[RefusedRow, ...]:
        refused = []
        for index, points in enumerate(batch):
            kept_ms = RETENTION_S[MEASUREMENTS[points.measurement].bucket] * 1000
            for row, at_ns in enumerate(points.time_ns.tolist()):
                if at_ns < (self._clock.now_ms() - kept_ms) * 1_000_000:
                    refused.append(RefusedRow(index, row, b"a row", "it is too old"))
                    continue
                tags = tuple((name, texts[row]) for name, texts in points.series.tags.items())
                values = {name: column[row] for name, column in points.fields.items()}
                known = {name: value for name, value in values.items() if _is_known(value)}
                if known:
                    self.rows.setdefault((points.measurement, tags, at_ns), {}).update(known)
        return tuple(refused)

    def stored(self, query: Query) -> list[Answer]:
        """Return each row's own values, ordered by tags and time."""
        answers = []
        for (measurement, tags, at_ns), values in self.rows.items():
            named = dict(tags)
            chosen = tuple(values.get(name) for name, _ in query.select)
            if (
                measurement == query.measurement
                and query.begin_ns <= at_ns < query.end_ns
                and all(named.get(name) == value for name, value in query.where.items())
                and chosen != (None,) * len(chosen)
            ):
                group = tuple(named.get(name, "") for name in query.group_by)
                answers.append(Answer(group, at_ns, chosen))
        return sorted(answers, key=lambda answer: (answer.tags, answer.time_ns))


def _is_known(value: object) -> bool:
    if isinstance(value, float):
        return bool(np.isfinite(value))
    return value is not None and value != MISSING
