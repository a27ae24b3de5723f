"""The history in InfluxDB: each write waits until the server has accepted or rejected every line.

The client's own batching writer is not used: it silently drops lines that it could not deliver.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Literal, Self

import msgspec
import urllib3
from influxdb_client import InfluxDBClient
from influxdb_client.rest import ApiException
from influxdb_client.service.write_service import WriteService
from isal import igzip

from flatline.connectors.influxdb.config import BATCH_LINES, InfluxConfig
from flatline.connectors.influxdb.failures import (
    Verdict,
    doubted,
    is_unknown_database,
    meaning,
    verdict,
)
from flatline.connectors.influxdb.influxql import answers, to_influxql
from flatline.connectors.influxdb.lines import Body, Line, WriteLines
from flatline.engine.errors import HistoryError, HistoryRefused, HistoryUnreachable
from flatline.engine.plain_text import masked_url
from flatline.engine.ports import Answer, Query, RefusedRow
from flatline.engine.wire.measurement import MEASUREMENTS, Bucket
from flatline.engine.wire.points import Points

# isal's level 1 takes a third of zlib's time for fewer bytes; its level 2 gains nothing.
_GZIP_LEVEL: Final = 1
# Connection errors; the client does not wrap them.
_BROKEN: Final = (urllib3.exceptions.HTTPError, OSError)
# After more consecutive server failures than this, the lines are sent in ever smaller parts: the
# server may fail at one line. A server that restarts causes only a few failures.
_DOUBTED_AFTER: Final = 5
# If this many single lines fail before any is accepted, the server is at fault.
_DOUBTED_LINES: Final = 64


# How the server addresses a bucket: as a retention policy of a database, or as a database.
_Form = Literal["policy", "database"]


class _UnknownDatabase(HistoryRefused):
    """The server has no database of the queried name; the other `_Form` may have the bucket."""


class InfluxHistory:
    """The history in InfluxDB.

    Parameters
    ----------
    write_lines
        `models.codecs.lines.write_lines` where Numba may be imported; None writes the same text in
        Python, twenty times slower.
    """

    def __init__(self, config: InfluxConfig, *, write_lines: WriteLines | None = None) -> None:
        self._config = config
        self._write_lines = write_lines
        self._client: InfluxDBClient | None = None
        # Consecutive failures by bucket.
        self._failures: Counter[Bucket] = Counter()
        self._form: _Form | None = None

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
        """See `engine.ports.HistorySink`."""
        return await asyncio.to_thread(self._write, batch)

    async def ask(self, query: Query) -> list[Answer]:
        """See `engine.ports.HistoryQuery`."""
        return answers(query, await asyncio.to_thread(self._ask, query))

    async def query(self, text: str) -> list[dict[str, Any]]:
        """Return the series of an InfluxQL query, times in ns; [] where there are none.

        Each series is as in the server's JSON: `columns`, `values` and, for groups, `tags`. The
        query runs in the database `InfluxConfig.database`.

        Raises
        ------
        HistoryUnreachable, HistoryRefused
            See `engine.ports.HistoryQuery`; `HistoryRefused` also for a query that the server
            cannot parse.
        """
        return await asyncio.to_thread(self._query, text, self._config.database)

    def _ask(self, one_query: Query) -> list[dict[str, Any]]:
        """Query in the form that this server accepts; the first query determines which one it is.

        2.x finds a bucket as a retention policy of the database, 3.x as a database.
        """
        bucket = MEASUREMENTS[one_query.measurement].bucket
        forms: dict[_Form, tuple[str, bool]] = {
            "policy": (self._config.database, True),
            "database": (self._config.bucket(bucket), False),
        }
        first: HistoryError | None = None
        for form, (database, has_policy) in forms.items():
            if self._form not in (None, form):
                continue
            text = to_influxql(one_query, has_policy=has_policy)
            try:
                found = self._query(text, database)
            except _UnknownDatabase as error:
                first = first or error
                continue
            self._form = form
            return found
        self._form = None
        assert first is not None, "at least one known form is tried"
        raise first

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
        for bucket, body in bodies(batch, self._write_lines):
            said = self._post(bucket, body.text) if body.text else None
            if said is not None:
                refused += self._without_bad_lines(bucket, body.lines(), said)
        return tuple(refused)

    def _without_bad_lines(
        self, bucket: Bucket, lines: list[Line], said: Verdict
    ) -> list[RefusedRow]:
        """Send rejected lines again without the bad ones, and return the bad ones.

        Lines that the server names are left out. Where it names none, halves are sent until the bad
        lines are isolated. Lines already written are sent again, which changes nothing.
        """
        refused: list[RefusedRow] = []
        doubted_lines: list[RefusedRow] = []
        taken, doubting = b"", not said.is_sure
        # A stack: the last entry is the next, so lines keep their order.
        waiting: list[tuple[list[Line], Verdict]] = [(lines, said)]
        while waiting:
            lines, said = waiting.pop()
            if (bad := _named(lines, said)) is not None:
                refused += bad
                if not said.is_sure:
                    doubted_lines += bad
                    if not taken and len(doubted_lines) >= _DOUBTED_LINES:
                        raise self._unsure(said)
                gone = {(row.points, row.row) for row in bad}
                halves = [[line for line in lines if (line.points, line.row) not in gone]]
            else:
                middle = len(lines) // 2
                halves = [lines[:middle], lines[middle:]]
            for half in reversed(halves):
                body = b"".join(line.text for line in half)
                again = self._post(bucket, body, doubting=doubting) if half else None
                if again is not None:
                    waiting.append((half, again))
                elif half:
                    taken = body
        # A server that failed at single lines must still accept the good ones; else it is at fault.
        if doubted_lines and (not taken or self._post(bucket, taken, doubting=True) is not None):
            raise self._unsure(said)
        return refused

    def _unsure(self, said: Verdict) -> HistoryUnreachable:
        """Return the error for a server that accepts no line, and reset the failure counts."""
        self._failures.clear()
        return HistoryUnreachable(
            f"InfluxDB at {masked_url(self._config.url)} rejects every row ({said.status} "
            f"{said.reason})."
        )

    def _post(
        self, bucket: Bucket, body: bytes | memoryview, *, doubting: bool = False
    ) -> Verdict | None:
        """Write one body; None means acknowledged.

        With `doubting`, a server error counts as a fault of the body and not of the server.
        """
        config = self._config
        service = WriteService(self._connected().api_client)
        try:
            answer = service.post_write(
                org=config.org,
                bucket=config.bucket(bucket),
                body=igzip.compress(body, _GZIP_LEVEL),
                precision="ns",
                content_encoding="gzip",
                # Keep the answer as bytes: decoding one that is not UTF-8 would end the role.
                _preload_content=False,
            )
            if answer.data:
                # A server that accepted all lines returns no body.
                raise ApiException(http_resp=answer)
        except ApiException as error:
            said = verdict(error)
            if said is None:
                self._failures[bucket] += 1
                doubting = doubting or self._failures[bucket] > _DOUBTED_AFTER
                said = doubted(error) if doubting else None
            if said is None:
                raise self._failed(error, config.bucket(bucket)) from error
            return said
        except _BROKEN as error:
            raise self._failed(error, config.bucket(bucket)) from error
        self._failures[bucket] = 0
        return None

    def _failed(self, error: Exception, bucket: str) -> HistoryError:
        """Return the error for a failure; the next attempt reconnects and reads the token again."""
        self._close()
        return meaning(error, url=self._config.url, bucket=bucket)

    def _query(self, text: str, database: str) -> list[dict[str, Any]]:
        config = self._config
        # All parameters are in the URL: 2.x also reads a form, 3.x only the URL.
        query = [("db", database), ("epoch", "ns"), ("q", text)]
        headers = {
            "Authorization": f"Token {config.read_token()}",
            "Accept": "application/json",
        }
        client = self._connected()
        url = f"{config.url.rstrip('/')}/query"
        try:
            response = client.api_client.request(
                "GET", url, query_params=query, headers=headers, _preload_content=False
            )
            answer = _result(response.data)
        except ApiException as error:
            failed: HistoryError = self._failed(error, database)
            if error.status == 400:
                failed = HistoryRefused(f"InfluxDB cannot parse {text!r}: {error.body!r}")
            if is_unknown_database(error):
                failed = _UnknownDatabase(str(failed))
            raise failed from error
        except _BROKEN as error:
            raise self._failed(error, database) from error
        if "error" in answer:
            said = f"InfluxDB rejected {text!r}: {answer['error']}."
            if "not found" in answer["error"]:
                raise _UnknownDatabase(said)
            # The field type is wrong, or the server ran out of time or memory.
            raise HistoryUnreachable(said)
        return list(answer.get("series", ()))


def _named(lines: list[Line], said: Verdict) -> list[RefusedRow] | None:
    """Return the lines that a verdict certainly rejects; None if it does not tell which ones."""
    reasons: dict[int, str] = {}
    if len(lines) == 1 or (said.status != 413 and said.dropped == len(lines)):
        reasons = dict.fromkeys(range(len(lines)), said.reason)
    reasons |= {
        fault.number - 1: fault.reason for fault in said.faults if 1 <= fault.number <= len(lines)
    }
    if not reasons:
        return None
    return [
        RefusedRow(
            lines[place].points,
            lines[place].row,
            lines[place].text.rstrip(b"\n"),
            f"{said.status} {reason or said.reason}",
        )
        for place, reason in sorted(reasons.items())
    ]


def _result(body: bytes) -> dict[str, Any]:
    """Return the only result of an answer; it holds `error` where the query failed."""
    try:
        decoded = msgspec.json.decode(body)
        if "error" in decoded:
            return {"error": str(decoded["error"])}
        result = decoded["results"][0]
        return {**result, "error": str(result["error"])} if "error" in result else dict(result)
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError, ValueError):
        return {"error": f"this is not an answer of InfluxDB: {body[:100]!r}"}


def connect(config: InfluxConfig) -> InfluxDBClient:
    """Return a client that sends each request once: the role decides about retries.

    Raises
    ------
    HistoryRefused
        The token file cannot be read or is empty.
    """
    return InfluxDBClient(
        url=config.url,
        token=config.read_token(),
        org=config.org,
        timeout=round(config.timeout_s * 1000),
        ssl_ca_cert=None if config.ca_file is None else str(config.ca_file),
        retries=urllib3.Retry(0, redirect=0, raise_on_status=False),
    )


def bodies(
    batch: Sequence[Points], write_lines: WriteLines | None
) -> Iterator[tuple[Bucket, Body]]:
    """Yield the rows of a batch by bucket, at most `BATCH_LINES` in a body.

    A body is valid until the next one is yielded: all bodies of a bucket share one buffer, because
    allocating a buffer would cost as much as writing a body.

    `Line.points` of a body's lines is an index into `batch`. Without a kernel (`write_lines` None),
    Python writes the same text. A body may have no text, if no row in it has a known field.
    """
    filling: dict[Bucket, Body] = {}
    for number, points in enumerate(batch):
        bucket = points.declared.bucket
        body = filling.get(bucket)
        if body is None:
            body = filling[bucket] = Body(write_lines)
        begin = 0
        while begin < len(points):
            end = min(len(points), begin + BATCH_LINES - body.rows)
            body.add(points, begin, end, number=number)
            begin = end
            if body.rows == BATCH_LINES:
                yield bucket, body
                body.clear()
    for bucket, body in filling.items():
        yield bucket, body
