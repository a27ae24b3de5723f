"""The subcommands for planners: forecasts and capacity."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from engine.cli.options import File, Sets, console, settings_of
from engine.errors import SettingsError

Format = Literal["table", "json", "csv"]

capacity = typer.Typer(help="What is used, what still fits, and until when.", no_args_is_help=True)


def forecast(
    dataset: Annotated[
        str | None,
        typer.Argument(
            help="Path prefix of a dataset (PREFIX_traces.csv.gz or PREFIX_stream.csv.gz); without"
            " it the frames of the log are forecast, until Ctrl-C."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Table to write, gzipped where it ends in .gz.")
    ] = None,
    judged: Annotated[
        bool, typer.Option("--score", help="Judge the forecasts by what came of them.")
    ] = False,
    file: File = None,
    sets: Sets = None,
) -> None:
    """Forecast CPU, memory, disk and network. 5 min, 30 min and 24 h ahead, with intervals."""
    if dataset is None:
        if out is not None or judged:
            raise SettingsError("--out and --score are for a dataset: name its path prefix.")
        raise typer.Exit(_serve_forecasts(file, sets))
    if out is None:
        raise SettingsError(f"Where shall the forecasts of {dataset} go? Name a file with --out.")
    from connectors.traces.dataset import open_dataset
    from engine.cli.forecast import run_forecast, told_verdicts
    from engine.cli.usable import require_rows

    outcome = run_forecast(open_dataset(dataset), out=out, judged=judged)
    console().print(
        f"{outcome.rows:,} forecasts of {outcome.series} series stand in {out};"
        f" {outcome.us_per_update:.2f} μs for all horizons of a series and update."
    )
    require_rows(outcome.figures)
    if outcome.verdicts:
        console().print(told_verdicts(outcome.verdicts))
    elif judged:
        console().print(
            "Nothing to judge yet: a VM is judged after its first 7 days, and this dataset has no"
            " forecast beyond them whose outcome it holds."
        )


def _serve_forecasts(file: Path | None, sets: list[str] | None) -> int:
    from engine.cli.process import serve
    from engine.wiring import frame_keyring, open_log, process
    from engine.wiring_planning import forecast_opener

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
        bool, typer.Option("--store", help="Write the lines to the history too.")
    ] = False,
    file: File = None,
    sets: Sets = None,
) -> None:
    """Report what is left, until when, and what still fits. For pools, nodes, cells, zones."""
    from engine.capacity.report import report
    from engine.cli.capacity import show_report, store, surveyed

    settings = settings_of(file, sets)
    found = report(surveyed(source, settings))
    show_report(found, form)
    if storing:
        store(found, settings)


@capacity.command("whatif")
def capacity_whatif(
    source: Source = None,
    vms: Annotated[int | None, typer.Option(help="So many VMs come, of --flavor.")] = None,
    flavor: Annotated[str | None, typer.Option(help="Their flavor.")] = None,
    where: Annotated[
        str | None, typer.Option("--in", help="Only to cell:NAME or zone:NAME.")
    ] = None,
    lost: Annotated[str | None, typer.Option(help="This node is lost.")] = None,
    drained: Annotated[str | None, typer.Option(help="This cell is drained.")] = None,
    form: Form = "table",
    file: File = None,
    sets: Sets = None,
) -> None:
    """Say what happens when VMs come or a node or cell goes. VMs: --vms and --flavor."""
    from engine.capacity.whatif import cell_drained, node_lost, vms_come
    from engine.cli.capacity import show_answer, surveyed

    asked = [vms is not None, lost is not None, drained is not None]
    if sum(asked) != 1:
        raise SettingsError("Ask one thing: --vms N --flavor NAME, --lost NODE, or --drained CELL.")
    if (vms is None) != (flavor is None):
        raise SettingsError("--vms needs --flavor, and --flavor needs --vms.")
    if where is not None and vms is None:
        raise SettingsError("--in says where VMs come to: it needs --vms and --flavor.")
    estate = surveyed(source, settings_of(file, sets))
    if vms is not None and flavor is not None:
        answer = vms_come(estate, count=vms, flavor=flavor, scope=where)
    elif lost is not None:
        answer = node_lost(estate, lost)
    else:
        answer = cell_drained(estate, str(drained))
    show_answer(answer, form)
