"""The subcommands for planners: forecasts and capacity."""

from pathlib import Path
from typing import Annotated

import typer

from engine.cli.options import File, Sets, console, settings_of
from engine.errors import SettingsError

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
    """Forecast CPU, memory, disk and network 5 min, 30 min and 24 h ahead, with intervals."""
    if dataset is None:
        if out is not None or judged:
            raise SettingsError("--out and --score are for a dataset: name its path prefix.")
        raise typer.Exit(_serve_forecasts(file, sets))
    if out is None:
        raise SettingsError(f"Where shall the forecasts of {dataset} go? Name a file with --out.")
    from connectors.traces.dataset import open_dataset
    from engine.cli.forecast import run_forecast, told_verdicts

    outcome = run_forecast(open_dataset(dataset), out=out, judged=judged)
    console().print(
        f"{outcome.rows:,} forecasts of {outcome.series} series stand in {out};"
        f" {outcome.us_per_update:.2f} μs for all horizons of a series and update."
    )
    if judged:
        console().print(told_verdicts(outcome.verdicts))


def _serve_forecasts(file: Path | None, sets: list[str] | None) -> int:
    from engine.cli.process import serve
    from engine.wiring import open_log, process
    from engine.wiring_planning import forecast_opener

    here = process(settings_of(file, sets))
    return serve(here, {"forecast": forecast_opener(here, lambda: open_log(here))})
