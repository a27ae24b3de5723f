"""Lines have the content of the rows, for any text: checked with an independent parser."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatline.connectors.influxdb.lines import Body
from flatline.engine.wire.points import MISSING, Points, Series
from flatline.models.codecs.lines import write_lines

WRITERS = pytest.mark.parametrize(
    "write", [None, write_lines, write_lines.py_func], ids=["python", "compiled", "interpreted"]
)
TEXTS = st.text(max_size=12) | st.sampled_from(
    ["a b", "a,b", "a=b", 'a"b', "a\\", "a\\ ", "\n", "\r\n", "🦆", "\ud800", "\x85", " ", "="]
)
NUMBERS = st.floats(allow_nan=True, allow_infinity=True, width=64)


def text_of(points: Points, write=None) -> str:
    """Write rows in two parts, like a batch that fills up between them."""
    body = Body(write)
    middle = len(points) // 2
    body.add(points, 0, middle)
    body.add(points, middle, len(points))
    return bytes(body.text).decode()


def parsed(text: str) -> list[tuple[str, dict[str, str], dict[str, object], int]]:
    """Parse line protocol character by character, as its reference describes it."""
    lines = []
    at = 0
    while at < len(text):
        words: list[str] = [""]
        ends = ""
        # Measurement and tags: up to the first unescaped space.
        while (character := text[at]) != " ":
            assert character != "\n"
            if character == "\\" and text[at + 1] in ",= ":
                words[-1] += text[at + 1]
                at += 2
                continue
            if character in ",=":
                words.append("")
                ends += character
            else:
                words[-1] += character
            at += 1
        assert ends == ",=" * (len(ends) // 2)
        tags = dict(zip(words[1::2], words[2::2], strict=True))
        fields: dict[str, object] = {}
        at += 1
        while True:
            end = text.index("=", at)
            name, at = text[at:end], end + 1
            value = ""
            if text[at] == '"':
                at += 1
                while text[at] != '"':
                    at += text[at] == "\\"
                    value += text[at]
                    at += 1
                fields[name] = value
                at += 1
            else:
                while text[at] not in ", ":
                    value += text[at]
                    at += 1
                fields[name] = int(value[:-1]) if value.endswith("i") else float(value)
            at += 1
            if text[at - 1] == " ":
                break
        end = text.index("\n", at)
        lines.append((words[0], tags, fields, int(text[at:end])))
        at = end + 1
    return lines


@WRITERS
@settings(max_examples=80)
@given(
    rows=st.lists(st.tuples(TEXTS, NUMBERS, NUMBERS, st.integers(0, 2**62)), min_size=1, max_size=8)
)
def test_numbers_come_back_to_the_last_bit(write, rows):
    names, first, second, times = zip(*rows, strict=True)
    series = Series({"vm": names, "cell": ["c"] * len(rows), "node": names})
    fields = {"cpu_cores": np.array(first), "cpu_ratio": np.array(second)}
    points = Points.of("flatline_vm", series, times, fields)
    expected = []
    for row in range(len(rows)):
        known = {name: float(np.asarray(column)[row]) for name, column in points.fields.items()}
        known = {name: value for name, value in known.items() if math.isfinite(value)}
        tags = {name: texts[row] for name, texts in series.tags.items() if texts[row]}
        if known:
            expected.append(("flatline_vm", tags, known, times[row]))
    assert parsed(text_of(points, write)) == expected


@WRITERS
@settings(max_examples=40)
@given(values=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8))
def test_integers_come_back_digit_by_digit(write, values):
    series = Series({"vm": [str(row) for row in range(len(values))]})
    points = Points.of(
        "libvirt_state", series, [1] * len(values), {"state": np.array(values, np.int64)}
    )
    found = {
        int(tags["vm"]): fields["state"] for _, tags, fields, _ in parsed(text_of(points, write))
    }
    assert found == {row: value for row, value in enumerate(values) if value != MISSING}


@settings(max_examples=80)
@given(texts=st.lists(st.none() | TEXTS, min_size=1, max_size=8))
def test_texts_come_back_as_they_were(texts):
    series = Series({"subject": [f"s{row}" for row in range(len(texts))]})
    points = Points.of("flatline_action", series, [7] * len(texts), {"sentence": texts})
    kept = {
        f"s{row}": text.encode(errors="replace").decode()
        for row, text in enumerate(texts)
        if text is not None
    }
    lines = parsed(text_of(points))
    assert {tags["subject"]: fields["sentence"] for _, tags, fields, _ in lines} == kept


def test_each_line_is_identified_by_its_points_and_row():
    series = Series({"vm": ["a", "b", "c"]})
    points = Points.of(
        "flatline_vm", series, [1, 2, 3], {"cpu_cores": np.array([1.0, np.nan, 2.5])}
    )
    body = Body(write_lines)
    body.add(points, 0, 2, number=4)
    body.add(points, 1, 3, number=5)
    assert body.rows == 4
    assert body.lines() == [
        (4, 0, b"flatline_vm,vm=a cpu_cores=1 1\n"),
        (5, 2, b"flatline_vm,vm=c cpu_cores=2.5 3\n"),
    ]
    assert bytes(body.text) == b"".join(line.text for line in body.lines())
    body.clear()
    assert (bytes(body.text), body.lines(), body.rows) == (b"", [], 0)


def test_a_body_grows_without_losing_what_it_holds():
    size = 30_000
    series = Series({"vm": [f"{row:0100d}" for row in range(size)]})
    points = Points.of("libvirt_state", series, [1] * size, {"state": np.arange(size)})
    body = Body(write_lines)
    for begin in range(0, size, 10_000):
        body.add(points, begin, begin + 10_000)
    states = [fields["state"] for _, _, fields, _ in parsed(bytes(body.text).decode())]
    assert states == list(range(size))


def test_a_time_is_that_of_its_own_row_though_rows_before_it_have_no_line():
    series = Series({"vm": ["a", "b", "c", "d"]})
    numbers = np.array([1.0, np.nan, 2.0, 3.0])
    points = Points.of("flatline_vm", series, [1, 2, 2, 1], {"cpu_cores": numbers})
    assert [time for _, _, _, time in parsed(text_of(points, write_lines))] == [1, 2, 1]
    body = Body(write_lines)
    body.add(points, 0, 4)
    assert [line.text.rsplit(b" ")[-1] for line in body.lines()] == [b"1\n", b"2\n", b"1\n"]
