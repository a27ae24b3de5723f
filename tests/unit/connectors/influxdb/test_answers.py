"""Rows that a server will never accept are reported with its reason; all others are stored.

A small server on this machine answers as each version does, according to its documentation and
source, and keeps the accepted rows.
"""

import asyncio
import gzip
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from flatline.connectors.influxdb.config import InfluxConfig
from flatline.connectors.influxdb.history import InfluxHistory
from flatline.connectors.influxdb.setup import set_up
from flatline.engine.errors import HistoryRefused, HistoryUnreachable
from flatline.engine.ports import Query, RefusedRow
from flatline.engine.wire.points import Points, Series

BAD = "poison"
# Status, body and whether the good lines of the body are kept, from the lines and the bad numbers.
Answering = Callable[[list[str], list[int]], tuple[int, Any, bool]]


def two(message: str, *, status: int = 422, code: str = "unprocessable entity") -> Answering:
    return lambda _, bad: (
        status, {"code": code, "message": message.format(len(bad))}, True,
    )  # fmt: skip


def three(lines: list[str], bad: list[int]) -> tuple[int, Any, bool]:
    named = [
        {"original_line": lines[n - 1], "line_number": n, "error_message": f"bad type in {n}"}
        for n in bad[:100]
    ]
    return 400, {"error": "partial write of line protocol occurred", "data": named}, True


def three_none(lines: list[str], bad: list[int]) -> tuple[int, Any, bool]:
    first = {"original_line": lines[bad[0] - 1], "line_number": bad[0], "error_message": "no"}
    return 400, {"error": "parsing failed for write_lp endpoint", "data": first}, False


def clustered(lines: list[str], bad: list[int]) -> tuple[int, Any, bool]:
    """Accept the good lines; refuse the write where there are none."""
    reported = {"code": "invalid", "line": bad[0], "message": "partial write: errors on line(s)"}
    return (201 if len(bad) < len(lines) else 400), reported, True


def serverless(lines: list[str], bad: list[int]) -> tuple[int, Any, bool]:
    why = "data in table flatline_vm_1m is outside of the retention period"
    return 403, {"code": "forbidden", "message": why}, False


# Answers that refuse some rows but name no line, e.g. those of a proxy before the server.
SAYS_NOTHING: dict[str, Answering] = {
    "says nothing of lines": lambda *_: (
        500, {"code": "internal error", "message": "unexpected"}, False),
    "a page of 400": lambda *_: (400, "<html>blocked</html>", False),
    "a page of 422": lambda *_: (422, "<html>blocked</html>", False),
    "a conflict": lambda *_: (409, {}, False),
}  # fmt: skip
POLICY = "partial write: points beyond retention policy dropped={}"
VERSIONS: dict[str, Answering] = {
    "2.0": two(f"unexpected error writing points to database: {POLICY}", status=500,
               code="internal error"),
    "2.7": two(f"failure writing points to database: {POLICY}"),
    "2.7.12": two("failure writing points to database: partial write: dropped {0} points outside"
                  " retention policy of duration 24h0m0s - oldest point x at 2022 dropped={0}"),
    "2.7 types": two("failure writing points to database: partial write: field type conflict:"
                     " input field \"x\" is type float, already exists as type integer dropped={}"),
    "2.7 text": lambda lines, bad: (
        400, {"code": "invalid", "message": f"unable to parse '{lines[bad[0] - 1]}'"}, False),
    "cloud": lambda _, bad: (
        400, {"code": "invalid", "line": bad[0], "message": "errors on line(s)"}, True),
    "3": three,
    "3 none": three_none,
    "3 table limit": lambda *_: (422, {"error": "would exceed number of tables limit"}, False),
    "1.8": lambda _, bad: (400, {"error": POLICY.format(len(bad))}, True),
    "clustered": clustered,
    "serverless": serverless,
    **SAYS_NOTHING,
}  # fmt: skip


class Server:
    """The written rows, and the answers to writes and queries."""

    def __init__(self) -> None:
        self.answering = VERSIONS["2.7"]
        self.kept: set[str] = set()
        self.writes = 0
        self.failing: tuple[int, bytes] | None = None
        self.version = 2
        self.queries: list[tuple[str, dict[str, list[str]]]] = []
        self.url = ""

    def write(self, body: bytes) -> tuple[int, bytes]:
        self.writes += 1
        if self.failing is not None:
            return self.failing
        lines = body.decode().splitlines()
        bad = [number for number, line in enumerate(lines, 1) if BAD in line]
        if not bad:
            self.kept |= set(lines)
            return 204, b""
        status, answer, keeps_good = self.answering(lines, bad)
        if keeps_good:
            self.kept |= {line for line in lines if BAD not in line}
        page = answer if isinstance(answer, str) else json.dumps(answer)
        return status, page.encode()

    def query(self, method: str, asked: dict[str, list[str]]) -> tuple[int, bytes]:
        self.queries.append((method, asked))
        database, text = asked.get("db", [""])[0], asked.get("q", [""])[0]
        if self.failing is not None:
            return self.failing
        series = {"series": [{"columns": ["time", "v0"], "values": [[0, 7.0]]}]}
        if self.version == 2:
            known = database == "flatline" and '"minute"."flatline_vm_1m"' in text
            result = series if known else {"error": f"database not found: {database}"}
            return 200, json.dumps({"results": [{"statement_id": 0, **result}]}).encode()
        if database != "flatline_minute":
            return 404, json.dumps({"error": "query error: database not found"}).encode()
        if '"minute".' in text:
            return 400, json.dumps({"error": "retention policies are not supported"}).encode()
        return 200, json.dumps({"results": [{"statement_id": 0, **series}]}).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if parts.path == "/query":
                self.answer(*found.query("GET", parse_qs(parts.query)))
            else:
                self.answer(404, b'{"error": "not found"}')

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            self.answer(*found.write(body))

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "11")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        found.url = f"http://user:s3cr3t@127.0.0.1:{http.server_address[1]}"
        found.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield found
        http.shutdown()
        thread.join()


def points(size: int, bad: set[int]) -> Points:
    names = [f"{BAD}-{row}" if row in bad else f"vm-{row}" for row in range(size)]
    series = Series({"vm": names, "cell": ["c"] * size, "node": ["n"] * size})
    return Points.of(
        "flatline_vm_1m", series, [10**18] * size, {"cpu_cores_mean": np.arange(1.0, size + 1)}
    )


def config(server: Server) -> InfluxConfig:
    return InfluxConfig(url=server.url, org="o", token="t")


def written(server: Server, batch: Points) -> tuple[RefusedRow, ...]:
    async def write() -> tuple[RefusedRow, ...]:
        async with InfluxHistory(config(server)) as history:
            for _ in range(8):  # as often as the historian would retry
                try:
                    return await history.write([batch])
                except HistoryUnreachable:
                    continue
        raise AssertionError("the same batch for ever")

    return asyncio.run(write())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("bad", [{0}, {11}, {3, 4, 5}, {0, 11}, set(range(1, 12))])
def test_bad_rows_are_reported_and_all_others_are_stored(
    server: Server, version: str, bad: set[int]
) -> None:
    server.answering = VERSIONS[version]
    refused = written(server, points(12, bad))
    assert {row.row for row in refused} == bad
    assert len(refused) == len(bad)
    assert len(server.kept) == 12 - len(bad)
    assert all(row.reason[:3].isdigit() and len(row.reason) > 4 for row in refused)
    assert all(f"{BAD}-{row.row}".encode() in row.text for row in refused)


@pytest.mark.parametrize("version", sorted(VERSIONS.keys() - SAYS_NOTHING.keys()))
@pytest.mark.parametrize("size", [1, 9])
def test_rows_that_are_all_bad_are_reported(server: Server, version: str, size: int) -> None:
    server.answering = VERSIONS[version]
    assert len(written(server, points(size, set(range(size))))) == size


def test_a_server_that_names_a_hundred_lines_a_time_is_asked_a_few_times(server: Server) -> None:
    server.answering = three
    refused = written(server, points(2000, set(range(0, 2000, 4))))
    assert [row.row for row in refused] == list(range(0, 2000, 4))
    assert refused[0].reason == "400 bad type in 1"
    assert len(server.kept) == 1500
    assert server.writes <= 7


def test_a_number_of_a_line_that_was_not_sent_names_nothing(server: Server) -> None:
    server.answering = lambda _, bad: (
        400, {"error": "partial", "data": [{"line_number": n} for n in (0, -3, 99)]}, False,
    )  # fmt: skip
    assert [row.row for row in written(server, points(12, {7}))] == [7]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, b"<html>bad request</html>"),
        (403, b"<html>"),
        (401, b'{"code":"unauthorized","message":"unauthorized access"}'),
        (404, b'{"code":"not found","message":"bucket not found"}'),
        (404, b'{"error":"database not found"}'),
        (429, b'{"code":"too many requests"}'),
        (500, b'{"code":"internal error","message":"engine: cache-max-memory-size exceeded"}'),
        (500, b"<html>"),
        (502, b""),
        (503, b'{"error":"dropped=3 busy"}'),
        (400, b'{"error": "partial wri'),
        (401, b'{"error":"unable to parse authentication credentials"}'),
        (200, b"<html>Please sign in</html>"),
        (200, b'{"message":"thank you"}'),
    ],
)
def test_what_is_no_fault_of_lines_is_blamed_on_none(
    server: Server, status: int, body: bytes
) -> None:
    async def write() -> None:
        async with InfluxHistory(config(server)) as history:
            for _ in range(12):
                with pytest.raises((HistoryUnreachable, HistoryRefused)) as caught:
                    await history.write([points(12, {4})])
                if status == 429:
                    assert caught.value.retry_after_s == 11.0  # type: ignore[attr-defined]
            server.failing = None
            assert len(await history.write([points(12, {4})])) == 1

    if status == 503:
        body = b'{"error":"busy"}'
    server.failing = (status, body)
    asyncio.run(write())
    assert len(server.kept) == 11


def test_a_server_that_fails_amid_the_search_for_a_bad_row_loses_no_row(server: Server) -> None:
    """It accepts some lines, then none: no line tried meanwhile is at fault."""

    async def write() -> None:
        async with InfluxHistory(config(server)) as history:
            answering = VERSIONS["says nothing of lines"]
            tries = 0

            def failing(lines: list[str], bad: list[int]) -> tuple[int, Any, bool]:
                nonlocal tries
                tries += 1
                if tries > 8:
                    server.failing = (500, b'{"message":"out of order"}')
                return answering(lines, bad)

            server.answering = failing
            for _ in range(12):
                with pytest.raises(HistoryUnreachable):
                    await history.write([points(12, {4})])
            assert server.failing is not None
            server.failing, server.answering = None, answering
            for _ in range(8):
                try:
                    refused = await history.write([points(12, {4})])
                except HistoryUnreachable:
                    continue
                assert [row.row for row in refused] == [4]
                return
            raise AssertionError

    asyncio.run(write())
    assert len(server.kept) == 11


def test_an_error_that_is_no_valid_text_is_read_as_far_as_it_is(server: Server) -> None:
    """A server that cuts a line within a character does not end the historian."""
    server.failing = (503, b'{"error":"\xff\xfe"}')
    with pytest.raises(AssertionError, match="for ever"):
        written(server, points(2, set()))
    server.failing = (400, b'{"error":"unable to parse \'b\xc3"}')
    assert len(written(server, points(2, {0, 1}))) == 2


QUERY = Query(
    measurement="flatline_vm_1m", select=(("cpu_cores_mean", "mean"),), begin_ns=0, end_ns=10**18
)


@pytest.mark.parametrize("version", [2, 3])
def test_a_query_is_asked_in_the_form_that_the_server_takes(server: Server, version: int) -> None:
    async def ask() -> None:
        async with InfluxHistory(config(server)) as history:
            for _ in range(3):
                [answer] = await history.ask(QUERY)
                assert answer.values == (7.0,)

    server.version = version
    asyncio.run(ask())
    # The result of the first question is reused.
    assert len(server.queries) == (3 if version == 2 else 4)
    assert {method for method, _ in server.queries} == {"GET"}


@pytest.mark.parametrize(
    ("failing", "kind"),
    [
        ((404, b'{"error":"database not found"}'), HistoryRefused),
        ((401, b'{"error":"no"}'), HistoryRefused),
        ((503, b""), HistoryUnreachable),
        ((200, b"{}"), HistoryUnreachable),
        ((200, b"<html>"), HistoryUnreachable),
        ((200, b'{"results":[{"error":"out of memory"}]}'), HistoryUnreachable),
        ((200, b'{"results":"\xff"}'), HistoryUnreachable),
        ((503, b"\xff\xfe"), HistoryUnreachable),
    ],
)
def test_a_query_without_an_answer_is_an_error_of_the_history(
    server: Server, failing: tuple[int, bytes], kind: type[Exception]
) -> None:
    async def ask() -> None:
        async with InfluxHistory(config(server)) as history:
            with pytest.raises(kind):
                await history.ask(QUERY)
            server.failing = None
            assert await history.ask(QUERY)

    server.failing = failing
    asyncio.run(ask())


def test_the_error_for_a_server_without_buckets_says_what_it_needs(server: Server) -> None:
    with pytest.raises(HistoryRefused, match="InfluxDB 3 requires no set-up"):
        set_up(config(server))
