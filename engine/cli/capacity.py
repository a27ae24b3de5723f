"""`flatline capacity`: the report and the what-if results, as a table, JSON or CSV."""

import asyncio
import csv
import io
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec
import typer
from rich.table import Table

from flatline.engine.capacity.report import CellRow, Report, ScopeRow, VmRow
from flatline.engine.capacity.usage_from_frames import UsageCollector
from flatline.engine.capacity.usage_snapshot import UsageSnapshot
from flatline.engine.capacity.whatif import Answer
from flatline.engine.cli.options import console
from flatline.engine.cli.usable import require_rows
from flatline.engine.errors import SettingsError
from flatline.engine.plain_text import in_csv, in_json
from flatline.engine.settings import Settings

Format = Literal["table", "json", "csv"]


def usage_of_recording(source: str | None, settings: Settings) -> UsageSnapshot:
    """Return the usage snapshot of recorded frames; by default that of the history.

    `source` is the folder of an embedded log or the path prefix of a dataset; None is the history.

    Raises
    ------
    SettingsError
        There is no data to report on.
    HistoryError, LogError
        The history or the log cannot be read.
    """
    from flatline.engine.wiring import open_recording

    if source is not None:
        recording = open_recording(source)
        usage = UsageCollector().take(recording.recorded_frames()).usage()
        require_rows(recording.figures())
        text = f"{source} holds no frame of a collector, so there is nothing to report."
    else:
        from flatline.engine.cli.control_commands import with_log
        from flatline.engine.wiring_planning import usage_from_history

        usage = with_log(settings, usage_from_history, patient=True, reading=True)
        text = (
            "The history has no complete hour in the last day. Run `flatline history` for longer, "
            "or name a recording or a dataset."
        )
    if not usage.nodes:
        raise SettingsError(text)
    return usage


def store(found: Report, settings: Settings) -> None:
    """Write a report's lines to the history, and print their number.

    Raises
    ------
    HistoryError
        The history cannot be written.
    """
    from flatline.engine.wiring import process
    from flatline.engine.wiring_planning import store_report

    count = asyncio.run(store_report(process(settings), found))
    console(stderr=True).print(f"{count} rows were written to the history as flatline_capacity.")


# Load varies by day and by week, so less than a week of data does not show the peak load of a VM.
_WEEK_DAYS: Final = 7.0


def show_report(found: Report, form: Format) -> None:
    """Print a report in the requested format."""
    if form == "json":
        typer.echo(_json(found))
    elif form == "csv":
        typer.echo(_csv(ScopeRow, found.scopes), nl=False)
    else:
        for table in _report_tables(found):
            console().print(table)
        if found.vms and found.days < _WEEK_DAYS:
            console().print(
                f"{found.days:.1f} days of data are less than a week and do not show the use on "
                "other days and nights. Do not shrink VMs on this basis."
            )
        if found.scopes and all(row.usable is None for row in found.scopes):
            console().print(
                "– means unknown: a dataset does not contain the capacity of its nodes. Use frames "
                "of a real log, or the history."
            )


def show_answer(found: Answer, form: Format) -> None:
    """Print a what-if result in the requested format."""
    if form == "json":
        typer.echo(_json(found))
        return
    if form == "csv":
        typer.echo(_csv(CellRow, found.cells), nl=False)
        return
    console().print(
        f"If {found.question}: {found.placed} of {found.asked} VMs can be placed"
        + (f", but not {', '.join(found.unplaced[:5])}" if found.unplaced else "")
        + (f" and {len(found.unplaced) - 5} more" if len(found.unplaced) > 5 else "")
        + "."
    )
    if found.placements:
        table = Table("node", "accepts VMs")
        for node, count in found.placements.items():
            table.add_row(node, str(count))
        console().print(table)
    if found.cells:
        console().print(_cell_table(found.cells, "afterwards"))


def _json(found: msgspec.Struct) -> str:
    return in_json(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())


def _csv(kind: type[msgspec.Struct], rows: Sequence[msgspec.Struct]) -> str:
    """Return rows as CSV; unknown is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = kind.__struct_fields__
    writer.writerow(names)
    for row in rows:
        values = [getattr(row, name) for name in names]
        writer.writerow(map(_field, values))
    return text.getvalue()


def _field(value: Any) -> Any:  # noqa: ANN401 -- the csv module writes any value
    if isinstance(value, tuple):
        return in_csv(" ".join(value))
    return in_csv(value) if isinstance(value, str) else value


def _report_tables(found: Report) -> list[Table]:
    usual = ""
    if found.usual_cores is not None and found.usual_memory_bytes is not None:
        usual = (
            f"; a typical VM needs {found.usual_cores:.2f} cores and "
            f"{_bytes(found.usual_memory_bytes)}"
        )
    scopes = Table(
        *("scope", "resource", "usable", "used", "left", "days to full (90 %)", "VMs that fit"),
        *("promised", "stranded"),
        title=f"over {found.days:.1f} days{usual}",
    )
    for row in found.scopes:
        amount = _cores if row.resource == "cpu" else _bytes
        scopes.add_row(
            f"{row.scope} {row.subject}",
            row.resource,
            amount(row.usable),
            amount(row.used),
            "–" if row.remaining_ratio is None else f"{row.remaining_ratio:.0%}",
            _days(row),
            "–" if row.vms_that_fit is None else str(row.vms_that_fit),
            "–" if row.oversubscription_ratio is None else f"{row.oversubscription_ratio:.2f}x",
            amount(row.stranded),
        )
    tables = [scopes, _cell_table(found.cells, "cells after a node failure")]
    if found.vms:
        tables.append(_vm_table(found.vms))
    return tables


def _cell_table(cells: Sequence[CellRow], title: str) -> Table:
    table = Table(
        *(
            "cell",
            "nodes",
            "VMs",
            ("survives a node failure"),
            "largest VM for one node",
            "contended",
        ),
        title=title,
    )
    for row in cells:
        may_fail = "–"
        if row.survives_node_loss is not None:
            short = f"{_cores(row.short_cores)} cores, {_bytes(row.short_memory_bytes)} short"
            may_fail = "yes" if row.survives_node_loss else f"no: {short}"
        table.add_row(
            row.cell,
            str(row.nodes),
            str(row.vms),
            may_fail,
            f"{_cores(row.largest_vm_cores)} cores, {_bytes(row.largest_vm_memory_bytes)}",
            ", ".join(row.contended_nodes) or "–",
        )
    return table


def _vm_table(vms: Sequence[VmRow]) -> Table:
    table = Table("VM", "node", "finding", "vCPUs", "memory", title="VMs that could be smaller")
    for row in vms:
        vcpus = f"{_number(row.vcpus)} → {_number(row.proposed_vcpus)}"
        memory = f"{_bytes(row.memory_bytes)} → {_bytes(row.proposed_memory_bytes)}"
        table.add_row(row.name or row.vm, row.node, row.finding, vcpus, memory)
    return table


def _days(row: ScopeRow) -> str:
    if not row.days_known:
        return "–"

    def text(days: float | None) -> str:
        return "never" if days is None else f"{days:.0f}"

    return f"{text(row.days_to_full)} ({text(row.days_to_full_low)}–{text(row.days_to_full_high)})"


def _cores(amount: float | None) -> str:
    return "–" if amount is None else f"{amount:.1f}"


def _number(amount: float | None) -> str:
    return "–" if amount is None else f"{amount:g}"


def _bytes(amount: float | None) -> str:
    if amount is None:
        return "–"
    size: Any = amount
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
