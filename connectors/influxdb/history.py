"""`engine.ports.History` on InfluxDB: synchronous writes, each acknowledged or refused by line.

The client's own batching writer is never used: it drops what it could not deliver, silently.
"""

import asyncio
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import urllib3
from influxdb_client import InfluxDBClient
from influxdb_client.rest import ApiException
from influxdb_client.service.write_service import WriteService
from isal import igzip

from connectors.influxdb.config import BATCH_LINES, InfluxConfig
from connectors.influxdb.failures import Verdict, meaning, verdict
from connectors.influxdb.influxql import answers, to_influxql
from connectors.influxdb.lines import Body, Line, WriteLines
from engine.errors import HistoryRefused, HistoryUnreachable
from engine.ports import Answer, Question, RefusedRow
from engine.wire.measurement import Bucket
from engine.wire.points import Points

# isal's first level takes a third of zlib's time for fewer bytes; its second gains nothing.
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
        for bucket, body in bodies(batch, self._write_lines):
            said = self._post(bucket, body.text) if body.text else None
            if said is not None:
                refused += self._halved(bucket, body.lines(), said)
        return tuple(refused)

    def _halved(self, bucket: Bucket, lines: list[Line], said: Verdict) -> list[RefusedRow]:
        """Send what was refused in halves until the bad lines stand alone; return those."""
        if len(lines) == 1 or (said.status != 413 and said.dropped == len(lines)):
            reason = f"{said.status} {said.reason}"
            return [
                RefusedRow(line.points, line.row, line.text.rstrip(b"\n"), reason) for line in lines
            ]
        refused: list[RefusedRow] = []
        middle = len(lines) // 2
        for half in (lines[:middle], lines[middle:]):
            again = self._post(bucket, b"".join(line.text for line in half))
            if again is not None:
                refused += self._halved(bucket, half, again)
        return refused

    def _post(self, bucket: Bucket, body: bytes | memoryview) -> Verdict | None:
        """Write one body; None is acknowledged."""
        config = self._config
        service = WriteService(self._connected().api_client)
        try:
            service.post_write(
                org=config.org,
                bucket=config.bucket(bucket),
                body=igzip.compress(body, _GZIP_LEVEL),
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


def bodies(
    batch: Sequence[Points], write_lines: WriteLines | None
) -> Iterator[tuple[Bucket, Body]]:
    """Yield the rows of a batch by bucket, `BATCH_LINES` at a time; a body is valid until the next.

    A bucket's body is one buffer: fresh memory for each would cost as much as what is written.
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
