"""The command line that `deploy/lab/kafka` and `deploy/lab/influx` share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from deploy.lab.kafka_jars import LabError, cache_dir


def parser_of(name: str, server: str, *, port: int) -> argparse.ArgumentParser:
    """Return the parser of ``deploy/lab/NAME``, which controls `server`."""
    parser = argparse.ArgumentParser(prog=name, description=f"Control the {server} of the lab.")
    parser.add_argument(
        "action", choices=["fetch", "up", "down", "start", "stop", "kill", "status"]
    )
    parser.add_argument(
        "--root", type=Path, default=cache_dir() / f"{name}-lab", help="state folder"
    )
    parser.add_argument("--port", type=int, default=port, help="up: first port")
    return parser


def run_action(act: Callable[[argparse.Namespace], str], chosen: argparse.Namespace) -> int:
    """Write the result of an action, or its error; return the exit code."""
    try:
        sys.stdout.write(act(chosen))
    except LabError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0
