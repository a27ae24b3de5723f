"""Render one miss or false alarm as one self-contained HTML page."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from flatline.engine.evaluation.closeup import Closeup, Window
from flatline.engine.plain_text import in_html

_WIDTH: Final = 960
_HEIGHT: Final = 130
_LEFT: Final = 90
_RIGHT: Final = 170
_COLOURS: Final = ("#1f6fb4", "#c9442b", "#2c8a4b", "#8a5fb0", "#b07d1a", "#4a4a4a", "#c25a9c")
_STATES: Final = {
    "pending": "#b07d1a",
    "firing": "#c9442b",
    "resolved": "#2c8a4b",
    "suppressed": "#6b6b6b",
}
# Signals by panel, keyed by the name of the axis.
PANELS: Final[Mapping[str, tuple[str, ...]]] = {
    "CPU, cores": ("cpu_cores",),
    "disk, bytes/s": ("disk_read_bytes_per_s", "disk_write_bytes_per_s"),
    "network, bytes/s": ("net_tx_bytes_per_s", "net_rx_bytes_per_s"),
    "memory, bytes": ("memory_bytes",),
}
_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1000px;padding:0 1em;color:#222;
background:#fff}
h1{font-size:1.4em}h2{font-size:1.1em;margin-top:1.6em}table{border-collapse:collapse}
td,th{text-align:left;padding:.15em .8em .15em 0;vertical-align:top}svg{display:block;margin:.4em 0}
.s{font-size:1.1em;border-left:4px solid #c9442b;padding-left:.8em}text{font:11px sans-serif}
"""


class Mark(NamedTuple):
    """A moment that is drawn as a line in every panel."""

    time_s: float
    state: str
    text: str


class Span(NamedTuple):
    """A time range of the ground truth."""

    start_s: float
    end_s: float
    text: str


def page(
    *,
    title: str,
    sentence: str,
    facts: Sequence[tuple[str, str]],
    closeups: Mapping[str, Closeup],
    window: Window,
    marks: Sequence[Mark],
    spans: Sequence[Span],
    limits: Mapping[str, float],
) -> str:
    """Return the page, as HTML.

    Parameters
    ----------
    title, sentence
        The mistake, and the sentence of the alert, or a sentence that there was no alert.
    facts
        Name and value of further facts.
    closeups
        By VM; the page shows the signals of each VM, and below them its likelihoods.
    window
        The time that the panels show.
    marks, spans
        Transitions of alerts, and time ranges of the ground truth.
    limits
        The score thresholds by name, in nats.
    """
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        f"<title>{in_html(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{in_html(title)}</h1><p class=s>{in_html(sentence)}</p><table>",
        *(f"<tr><th>{in_html(name)}<td>{in_html(value)}" for name, value in facts),
        "</table>",
    ]
    for vm, closeup in closeups.items():
        seen = closeup.cut(window)
        parts.append(f"<h2>{in_html(vm)}</h2>")
        if not seen.times_s and not seen.thought_s:
            parts.append("<p>No sample in this time.</p>")
            continue
        for name, signals in PANELS.items():
            lines = {signal: seen.signals.get(signal, []) for signal in signals}
            parts.append(_panel(name, seen.times_s, lines, window, marks, spans, {}))
        if seen.nats:
            name = "likelihood, nats"
            parts.append(_panel(name, seen.thought_s, seen.nats, window, marks, spans, limits))
    parts += ["<h2>Reports</h2><table>", *_reported(marks), "</table></body></html>\n"]
    return "".join(parts)


def moment(time_s: float) -> str:
    """Return a time in s since the epoch in readable form, in UTC."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _reported(marks: Iterable[Mark]) -> Iterable[str]:
    for mark in marks:
        colour = _STATES.get(mark.state, "#222")
        yield (
            f"<tr><td>{moment(mark.time_s)}<td style='color:{colour}'>{in_html(mark.state)}"
            f"<td>{in_html(mark.text)}"
        )


def _panel(
    name: str,
    times_s: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    window: Window,
    marks: Sequence[Mark],
    spans: Sequence[Span],
    limits: Mapping[str, float],
) -> str:
    values = [v for line in lines.values() for v in line if math.isfinite(v)]
    high = max([*values, *limits.values(), 1e-9])
    low = min([*values, 0.0])
    scale = _Scale(window, low, high if high > low else low + 1.0)
    parts = [
        f"<svg width={_WIDTH} height={_HEIGHT} role=img aria-label='{in_html(name)}'>",
        *(_span(scale, span, window) for span in spans),
        _text(4, 14, name),
        _text(_LEFT - 6, scale.y(scale.high) + 4, _number(scale.high), anchor="end"),
        _text(_LEFT - 6, scale.y(low) + 4, _number(low), anchor="end"),
        _line(_LEFT, scale.y(low), _WIDTH - _RIGHT, scale.y(low), "#bbb"),
    ]
    for row, (label, limit) in enumerate(limits.items()):
        y = scale.y(limit)
        parts.append(_line(_LEFT, y, _WIDTH - _RIGHT, y, "#999", dashes="4 3"))
        parts.append(_text(_WIDTH - _RIGHT + 6, _HEIGHT - 6 - 12 * row, f"-- {label}: {limit:.1f}"))
    for mark in marks:
        if window.holds(mark.time_s):
            x = scale.x(mark.time_s)
            tip = in_html(f"{moment(mark.time_s)} {mark.state}: {mark.text}")
            drawn = _line(x, 18, x, _HEIGHT - 4, _STATES.get(mark.state, "#222"), dashes="2 2")
            parts.append(f"<g><title>{tip}</title>{drawn}</g>")
    for place, (signal, line) in enumerate(lines.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        parts.append(_curve(scale, times_s, line, colour))
        parts.append(_text(_WIDTH - _RIGHT + 6, 26 + 13 * place, signal, fill=colour))
    parts.append("</svg>")
    return "".join(parts)


class _Scale:
    """Conversion of time and value to pixels."""

    def __init__(self, window: Window, low: float, high: float) -> None:
        self._start_s = window.start_s
        self._per_s = (_WIDTH - _LEFT - _RIGHT) / max(window.end_s - window.start_s, 1e-9)
        self._low = low
        self.high = high

    def x(self, time_s: float) -> float:
        place = _LEFT + (time_s - self._start_s) * self._per_s
        return min(max(place, _LEFT), _WIDTH - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self._low) / (self.high - self._low)
        return _HEIGHT - 8 - share * (_HEIGHT - 32)


def _curve(scale: _Scale, times_s: Sequence[float], values: Sequence[float], colour: str) -> str:
    """Return a line that breaks at unknown values, with a dot for each sample."""
    path: list[str] = []
    pen = "M"
    for time_s, value in zip(times_s, values, strict=False):
        if not math.isfinite(value):
            pen = "M"
            continue
        path.append(f"{pen}{scale.x(time_s):.1f} {scale.y(value):.1f}")
        pen = "L"
    if not path:
        return ""
    dots = "".join(f"{step.replace('L', 'M')}h.01" for step in path)
    return (
        f"<path d='{''.join(path)}' fill=none stroke='{colour}' stroke-width=1.2 />"
        f"<path d='{dots}' fill=none stroke='{colour}' stroke-width=3 stroke-linecap=round />"
    )


def _span(scale: _Scale, span: Span, window: Window) -> str:
    if span.end_s < window.start_s or span.start_s > window.end_s:
        return ""
    x, end = scale.x(span.start_s), scale.x(span.end_s)
    return (
        f"<rect x={x:.1f} y=18 width={max(end - x, 1.5):.1f} height={_HEIGHT - 22} fill='#f6dfb8'>"
        f"<title>{in_html(span.text)}</title></rect>"
    )


def _line(
    x: float, y: float, to_x: float, to_y: float, colour: str, *, dashes: str = "none"
) -> str:
    return (
        f"<line x1={x:.1f} y1={y:.1f} x2={to_x:.1f} y2={to_y:.1f} stroke='{colour}' "
        f"stroke-dasharray='{dashes}'/>"
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", fill: str = "#444") -> str:
    return f"<text x={x:.1f} y={y:.1f} text-anchor={anchor} fill='{fill}'>{in_html(text)}</text>"


def _number(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
