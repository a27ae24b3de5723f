import math
import re
from html.parser import HTMLParser

from flatline.engine.evaluation.closeup import Closeup, Window
from flatline.engine.evaluation.page import Mark, Span, page


class Strict(HTMLParser):
    """Records every address that a page would load, and unclosed tags."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in {"src", "href"} and value]
        if tag in {"svg", "g", "title", "table"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in {"svg", "g", "title", "table"}:
            assert self.open.pop() == tag


def drawn(**more):
    times = [float(t) for t in range(0, 100, 10)]
    closeup = Closeup(
        times,
        {"cpu_cores": [0.1, 0.2, math.nan, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]},
        times,
        {"dead": [0.0] * 5 + [12.0] * 5},
    )
    known = {
        "title": "False: <reboot> of a & b",
        "sentence": "It said <so>.",
        "facts": [("note", "x=1 & y")],
        "closeups": {"vm<1>": closeup},
        "window": Window(0.0, 90.0),
        "marks": [Mark(40.0, "firing", "panic_spin, reboot: 'dead'")],
        "spans": [Span(30.0, 60.0, "batch")],
        "limits": {"order": 11.5},
    }
    return page(**{**known, **more})


def test_a_page_needs_nothing_but_itself() -> None:
    text = drawn()
    parser = Strict()
    parser.feed(text)
    assert parser.loads == []
    assert parser.open == []
    assert "http" not in text
    assert "<script" not in text


def test_what_others_wrote_cannot_become_markup() -> None:
    text = drawn()
    assert "&lt;reboot&gt; of a &amp; b" in text
    assert "vm&lt;1&gt;" in text
    assert "<so>" not in text


def test_series_limits_marks_and_truth_are_all_drawn() -> None:
    text = drawn()
    assert text.count("<svg") == 5
    assert "order: 11.5" in text
    assert "1970-01-01 00:00:40 firing: panic_spin" in text
    assert "<title>batch</title>" in text


def test_a_curve_breaks_where_nothing_is_known() -> None:
    paths = re.findall(r"<path d='(M[^']*)'", drawn())
    assert paths[0].count("M") == 2


def test_nothing_seen_is_said() -> None:
    assert "No sample in this time." in drawn(closeups={"a": Closeup()})
