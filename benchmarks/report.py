"""A benchmark's figures as a table on the screen and as JSON in `reports/`."""

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

REPORTS = Path(__file__).resolve().parent.parent / "reports"

# Width for output to a file, so that no column is truncated.
_PLAIN_WIDTH = 140

Figure = str | int | float | bool | None


def report(name: str, *, claim: str, rows: Sequence[dict[str, Figure]], goals_met: bool) -> None:
    """Write `reports/NAME.json` and show the same rows as a table.

    Parameters
    ----------
    name
        Name of the benchmark, without `bench_`.
    claim
        One sentence: the measured quantity and its goal.
    rows
        One mapping for each variant or size, all with the keys of the first; units are in the keys.
    goals_met
        Whether this run reached every goal in the claim.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    table = Table(title=claim, title_justify="left", min_width=len(name))
    for key in rows[0]:
        table.add_column(key, justify="right")
    for row in rows:
        table.add_row(*(_cell(row[key]) for key in rows[0]))
    console.print(table)
    console.print(f"{name}: goals {'met' if goals_met else 'MISSED'}")

    REPORTS.mkdir(exist_ok=True)
    document = {
        "name": name,
        "claim": claim,
        "goals_met": goals_met,
        "machine": {
            "python": platform.python_version(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "load_1min": os.getloadavg()[0],
        },
        "rows": list(rows),
    }
    (REPORTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")


def _cell(figure: Figure) -> str:
    if figure is None:
        return "–"
    if isinstance(figure, float):
        return f"{figure:,.3g}" if abs(figure) < 100 else f"{figure:,.0f}"
    return f"{figure:,}" if type(figure) is int else str(figure)
