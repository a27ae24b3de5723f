"""The display of the demo: live on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from flatline.engine.cli.demo_story import Story

# Updates of the display per second. A higher rate is not visible, and each update takes some ms of
# the thread that also simulates the fleet.
_PICTURES_PER_S: Final = 8
_PANELS_ABREAST: Final = 2
_ALERT_ROWS: Final = 5
_ORDER_ROWS: Final = 2
# Rows of the display without the sentences. The sentences get the other rows of the terminal, and
# at least `_LEAST_LINES`.
_FIXED_ROWS: Final = 20
_LEAST_LINES: Final = 3
_STYLES: Final = {
    "alert firing": "bold red",
    "alert resolved": "green",
    "alert suppressed": "yellow",
    "order": "bold magenta",
    "call": "bold cyan",
    "outcome": "cyan",
    "refusal": "yellow",
}


class Fleet(Protocol):
    """The nodes of the VMs, and their names."""

    def nodes(self) -> Sequence[tuple[str, Sequence[tuple[str, str]]]]:
        """Return each node's name with UUID text and name of each VM that it runs."""
        ...


class View:
    """Displays a story as it grows.

    Parameters
    ----------
    plain
        Whether to print each sentence as a line instead of a live view.
    """

    def __init__(self, console: Console, fleet: Fleet, story: Story, *, plain: bool) -> None:
        self._console = console
        self._fleet = fleet
        self._story = story
        self._live: Live | None = None
        if not plain:
            self._live = Live(console=console, auto_refresh=False, transient=True)
        self._next_s = 0.0
        self._names: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print one line that stays."""
        self._console.print(text)

    def show(self, *, now_ms: int, title: str) -> None:
        """Display what is new; updates in quick succession are skipped.

        `now_ms` is the simulated time, in ms since the epoch; `title` is the title of the live
        view.
        """
        if self._live is None:
            self._show_lines()
            return
        if time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + 1 / _PICTURES_PER_S
        self._live.update(self._picture(now_ms, title), refresh=True)

    def _show_lines(self) -> None:
        for line in self._story.take_unread():
            self._console.print(f"{_clock(line.time_ms)}  {line.kind:16}  {line.text}")

    def _picture(self, now_ms: int, title: str) -> RenderableType:
        head = Text.assemble(
            ("Flatline ", "bold"), (f" {_clock(now_ms)} ", "reverse"), f"  {title}"
        )
        return Group(head, self._cells(), self._alerts(now_ms), self._lines())

    def _cells(self) -> RenderableType:
        cells: dict[str, list[Text]] = {}
        for node, vms in self._fleet.nodes():
            dots = Text(f"{node} ", style="dim")
            for vm, name in vms:
                self._names[vm] = name
                dots.append(*self._dot(vm))
            cells.setdefault(node.partition("-")[0], []).append(dots)
        panels = [Panel(Group(*rows), title=cell, padding=(0, 1)) for cell, rows in cells.items()]
        grid = Table.grid(expand=True)
        for _ in range(_PANELS_ABREAST):
            grid.add_column(ratio=1)
        for first in range(0, len(panels), _PANELS_ABREAST):
            grid.add_row(*panels[first : first + _PANELS_ABREAST])
        return grid

    def _dot(self, vm: str) -> tuple[str, str]:
        state = self._story.suspects.get(vm)
        if state == "firing":
            return "●", "bold red"
        if state in {"pending", "suppressed"}:
            return "●", "yellow"
        if vm in self._story.explained:
            return "○", "yellow"
        if vm in self._story.acted:
            return "●", "bold cyan"
        return "·", "green"

    def _alerts(self, now_ms: int) -> RenderableType:
        table = Table(expand=True, show_edge=False, pad_edge=False)
        table.add_column("alert", no_wrap=True)
        table.add_column("subject", no_wrap=True)
        table.add_column("kind", no_wrap=True)
        table.add_column("conf", justify="right")
        table.add_column("age", justify="right")
        table.add_column("suggests", no_wrap=True)
        shown = [alert for alert in self._story.latest() if alert.state != "pending"]
        for alert in shown[-_ALERT_ROWS:]:
            table.add_row(
                Text(alert.state, style=_STYLES.get(f"alert {alert.state}", "")),
                self._names.get(alert.subject, f"{alert.scope} {alert.subject}"),
                alert.kind,
                f"{alert.confidence:.2f}",
                f"{(now_ms - alert.opened_ms) / 1000:.0f} s",
                alert.suggested_action,
            )
        for order in self._story.orders[-_ORDER_ROWS:]:
            name = self._names.get(order.vm, order.vm)
            target = f" to {order.target}" if order.target else ""
            table.add_row(Text("order", style="bold magenta"), name, f"{order.action}{target}")
        return table

    def _lines(self) -> RenderableType:
        table = Table(expand=True, show_header=False, show_edge=False, box=None, padding=(0, 1))
        table.add_column(no_wrap=True, min_width=8)
        table.add_column(no_wrap=True, min_width=14)
        table.add_column(overflow="ellipsis", no_wrap=True, ratio=1)
        rows = max(_LEAST_LINES, self._console.height - _FIXED_ROWS)
        for line in list(self._story.lines)[-rows:]:
            kind = Text(line.kind, style=_STYLES.get(line.kind, ""))
            table.add_row(_clock(line.time_ms), kind, line.text)
        return table


def _clock(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%H:%M:%S")
