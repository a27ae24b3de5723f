"""The subcommands for planners: forecasts and capacity."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from flatline.engine.cli.options import File, Sets, console, settings_of
from flatline.engine.errors import SettingsError

Format = Literal["table", "json", "csv"]

capacity = typer.Typer(
    help="Show what is used, what still fits, and for how long.", no_args_is_help=True
)


def forecast(
    dataset: Annotated[
        str | None,
        typer.Argument(
            help=(
                "Path prefix of a dataset (PREFIX_traces.csv.gz or PREFIX_stream.csv.gz). Without "
                "it, frames of the log are forecast until Ctrl-C."
            )
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Output table, gzipped if the name ends in .gz.")
    ] = None,
    judged: Annotated[
        bool, typer.Option("--score", help="Compare the forecasts with the actual values.")
    ] = False,
    file: File = None,
    sets: Sets = None,
) -> None:
    """Forecast CPU, memory, disk and network. Horizons: 5 min, 30 min and 24 h, with intervals."""
    if dataset is None:
        if out is not None or judged:
            raise SettingsError("--out and --score require the path prefix of a dataset.")
        raise typer.Exit(_serve_forecasts(file, sets))
    if out is None:
        raise SettingsError(f"The forecasts of {dataset} need an output file. Use --out.")
    from flatline.connectors.traces.dataset import open_dataset
    from flatline.engine.cli.forecast_command import run_forecast, verdict_table
    from flatline.engine.cli.usable import require_rows

    outcome = run_forecast(open_dataset(dataset), out=out, judged=judged)
    console().print(
        f"{outcome.rows:,} forecasts of {outcome.series} series are in {out}. "
        f"{outcome.us_per_update:.2f} μs for all horizons of a series and update."
    )
    require_rows(outcome.figures)
    if outcome.verdicts:
        console().print(verdict_table(outcome.verdicts))
    elif judged:
        console().print(
            "There is nothing to score yet: a VM is scored after its first 7 days, and this "
            "dataset holds no actual value for a forecast after that."
        )


def _serve_forecasts(file: Path | None, sets: list[str] | None) -> int:
    from flatline.engine.cli.process import serve
    from flatline.engine.wiring import frame_keyring, open_log, process
    from flatline.engine.wiring_planning import forecast_opener

    settings = settings_of(file, sets)
    here = process(settings)
    frames = frame_keyring(settings, here.clock)
    return serve(here, {"forecast": forecast_opener(here, lambda: open_log(here), frames)})


Source = Annotated[
    str | None,
    typer.Argument(
        help="Folder of an embedded log with recorded frames, or path prefix of a dataset; by"
        " default the history."
    ),
]
Form = Annotated[Format, typer.Option("--format", help="table, json or csv.")]


@capacity.command("report")
def capacity_report(
    source: Source = None,
    form: Form = "table",
    storing: Annotated[
        bool, typer.Option("--store", help="Also write the rows to the history.")
    ] = False,
    file: File = None,
    sets: Sets = None,
) -> None:
    """Report what is left, until when, and what still fits. Covers pools, nodes, cells, zones."""
    from flatline.engine.capacity.report import report
    from flatline.engine.cli.capacity import show_report, store, usage_of_recording

    settings = settings_of(file, sets)
    found = report(usage_of_recording(source, settings))
    show_report(found, form)
    if storing:
        store(found, settings)


@capacity.command("whatif")
def capacity_whatif(
    source: Source = None,
    vms: Annotated[int | None, typer.Option(help="Number of new VMs, of --flavor.")] = None,
    flavor: Annotated[str | None, typer.Option(help="Flavor of the new VMs.")] = None,
    where: Annotated[
        str | None, typer.Option("--in", help="Place new VMs only in cell:NAME or zone:NAME.")
    ] = None,
    lost: Annotated[str | None, typer.Option(help="Node that fails.")] = None,
    drained: Annotated[str | None, typer.Option(help="Cell that is drained.")] = None,
    form: Form = "table",
    file: File = None,
    sets: Sets = None,
) -> None:
    """Compute what happens if VMs are added, or a node or cell is lost. VMs: --vms and --flavor."""
    from flatline.engine.capacity.whatif import cell_drained, node_lost, vms_come
    from flatline.engine.cli.capacity import show_answer, usage_of_recording

    asked = [vms is not None, lost is not None, drained is not None]
    if sum(asked) != 1:
        raise SettingsError(
            "Use exactly one of: --vms N --flavor NAME, --lost NODE, or --drained CELL."
        )
    if (vms is None) != (flavor is None):
        raise SettingsError("--vms and --flavor must be used together.")
    if where is not None and vms is None:
        raise SettingsError("--in names the place of new VMs and requires --vms and --flavor.")
    usage = usage_of_recording(source, settings_of(file, sets))
    if vms is not None and flavor is not None:
        answer = vms_come(usage, count=vms, flavor=flavor, scope=where)
    elif lost is not None:
        answer = node_lost(usage, lost)
    else:
        answer = cell_drained(usage, str(drained))
    show_answer(answer, form)
