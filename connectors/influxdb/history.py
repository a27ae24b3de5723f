"""`engine.ports.History` on InfluxDB: synchronous writes, each acknowledged or refused by line.

The client's own batching writer is never used: it drops what it could not deliver, silently.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import cramjam
import msgspec
import urllib3
from influxdb_client import InfluxDBClient
from influxdb_client.rest import ApiException
from influxdb_client.service.write_service import WriteService

from connectors.influxdb.config import BATCH_LINES, InfluxConfig
from connectors.influxdb.failures import Verdict, meaning, verdict
from connectors.influxdb.influxql import answers, to_influxql
from connectors.influxdb.lines import Lines, WriteLines, to_lines
from engine.errors import HistoryRefused, HistoryUnreachable
from engine.ports import Answer, Question, RefusedRow
from engine.wire.measurement import Bucket
from engine.wire.points import Points

# The fastest level: the next one takes twice as long for a tenth less.
_GZIP_LEVEL: Final = 1
# What a connection breaks with; the client passes them on as they are.
_BROKEN: Final = (urllib3.exceptions.HTTPError, OSError)


class InfluxHistory:
    """The history in InfluxDB.

    Parameters
    ----------
    write_lines
        `models.kernels.lines.write_lines` where Numba may be imported; None writes the same
        text in Python, twenty times slower.
    """

    def __init__(self, config: InfluxConfig, *, write_lines: WriteLines | None = None) -> None:
        self._config = config
        self._write_lines = write_lines
        self._client: InfluxDBClient | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    async def write(self, batch: Sequence[Points]) -> tuple[RefusedRow, ...]:
        """See `engine.ports.History`."""
        return await asyncio.to_thread(self._write, batch)

    async def ask(self, question: Question) -> list[Answer]:
        """See `engine.ports.History`."""
        text = to_influxql(question)
        return answers(question, await self.query(text))

    async def query(self, text: str) -> list[dict[str, Any]]:
        """Return the series that an InfluxQL query gives, times in ns; [] where there are none.

        Raises
        ------
        HistoryUnreachable, HistoryRefused
            See `engine.ports.History`; a query that the server does not understand is refused.
        """
        return await asyncio.to_thread(self._query, text)

    def _connected(self) -> InfluxDBClient:
        if self._client is None:
            self._client = connect(self._config)
        return self._client

    def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _write(self, batch: Sequence[Points]) -> tuple[RefusedRow, ...]:
        refused: list[RefusedRow] = []
        for bucket, chunk in _chunks(batch, self._write_lines):
            self._send(bucket, chunk, refused)
        return tuple(refused)

    def _send(self, bucket: Bucket, chunk: "_Chunk", refused: list[RefusedRow]) -> None:
        """Send rows, halving what is refused until the bad ones stand alone."""
        body = chunk.body()
        said = self._post(bucket, body) if body else None
        if said is None:
            return
        rows = chunk.rows()
        if len(rows) == 1 or (said.status != 413 and said.dropped == len(rows)):
            refused += [
                RefusedRow(
                    span.points,
                    row,
                    span.lines.rows(row, row + 1).rstrip(b"\n"),
                    f"{said.status} {said.reason}",
                )
                for span, row in rows
            ]
            return
        middle = len(rows) // 2
        for half in (rows[:middle], rows[middle:]):
            self._send(bucket, _chunk_of(half), refused)

    def _post(self, bucket: Bucket, body: bytes) -> Verdict | None:
        """Write one body; None is acknowledged."""
        config = self._config
        service = WriteService(self._connected().api_client)
        try:
            service.post_write(
                org=config.org,
                bucket=config.bucket(bucket),
                body=bytes(cramjam.gzip.compress(body, _GZIP_LEVEL)),
                precision="ns",
                content_encoding="gzip",
            )
        except ApiException as error:
            said = verdict(error)
            if said is None:
                raise self._failed(error, config.bucket(bucket)) from error
            return said
        except _BROKEN as error:
            raise self._failed(error, config.bucket(bucket)) from error
        return None

    def _failed(self, error: Exception, bucket: str) -> Exception:
        """Return what a failure means; the next try has a new connection and reads the token."""
        self._close()
        return meaning(error, url=self._config.url, bucket=bucket)

    def _query(self, text: str) -> list[dict[str, Any]]:
        config = self._config
        client = self._connected()
        try:
            response = client.api_client.request(
                "POST",
                f"{config.url.rstrip('/')}/query",
                post_params=[("db", config.database), ("epoch", "ns"), ("q", text)],
                headers={
                    "Authorization": f"Token {config.read_token()}",
                    "Content-Type": "application/x-www-form-urlencoded",
                    "Accept": "application/json",
                },
            )
        except ApiException as error:
            if error.status == 400:
                raise HistoryRefused(
                    f"InfluxDB does not understand {text!r}: {error.body!r}"
                ) from error
            raise self._failed(error, config.database) from error
        except _BROKEN as error:
            raise self._failed(error, config.database) from error
        result = msgspec.json.decode(response.data)["results"][0]
        if "error" in result:
            # A wrong database, a wrong field type or a server that ran out of time or memory.
            raise HistoryUnreachable(f"InfluxDB did not answer {text!r}: {result['error']}.")
        return list(result.get("series", ()))


def connect(config: InfluxConfig) -> InfluxDBClient:
    """Return a client that tries each request once: when to try again is the role's business."""
    return InfluxDBClient(
        url=config.url,
        token=config.read_token(),
        org=config.org,
        timeout=round(config.timeout_s * 1000),
        ssl_ca_cert=None if config.ca_file is None else str(config.ca_file),
        retries=urllib3.Retry(0, redirect=0, raise_on_status=False),
    )


class _Span(NamedTuple):
    """Rows of one of the points given, in a chunk."""

    points: int
    lines: Lines
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Rows that go out together."""

    spans: tuple[_Span, ...]

    def body(self) -> bytes:
        return b"".join(span.lines.rows(span.begin, span.end) for span in self.spans)

    def rows(self) -> list[tuple[_Span, int]]:
        """Return the rows that have a line; asked for only when something was refused."""
        return [
            (span, row)
            for span in self.spans
            for row in range(span.begin, span.end)
            if span.lines.rows(row, row + 1)
        ]


def _chunk_of(rows: Sequence[tuple[_Span, int]]) -> _Chunk:
    return _Chunk(tuple(span._replace(begin=row, end=row + 1) for span, row in rows))


def _chunks(
    batch: Sequence[Points], write_lines: WriteLines | None
) -> Iterator[tuple[Bucket, _Chunk]]:
    """Yield the rows of a batch by bucket, `BATCH_LINES` at most at a time."""
    waiting: dict[Bucket, list[_Span]] = {}
    counts: dict[Bucket, int] = {}
    for index, points in enumerate(batch):
        bucket = points.declared.bucket
        lines = to_lines(points, write_lines)
        begin = 0
        while begin < len(points):
            room = BATCH_LINES - counts.get(bucket, 0)
            end = min(len(points), begin + room)
            waiting.setdefault(bucket, []).append(_Span(index, lines, begin, end))
            counts[bucket] = counts.get(bucket, 0) + end - begin
            begin = end
            if counts[bucket] == BATCH_LINES:
                yield bucket, _Chunk(tuple(waiting.pop(bucket)))
                counts[bucket] = 0
    for bucket, spans in waiting.items():
        yield bucket, _Chunk(tuple(spans))
