"""``deploy/lab/influx``: the lab's InfluxDB from the shell."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deploy.lab.influx_server import Influx, fetch
from deploy.lab.kafka_jars import LabError, cache_dir


def main(arguments: list[str] | None = None) -> int:
    """Execute the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="influx", description="Control the InfluxDB of the lab.")
    parser.add_argument(
        "action", choices=["fetch", "up", "down", "start", "stop", "kill", "status"]
    )
    parser.add_argument(
        "--root", type=Path, default=cache_dir() / "influx-lab", help="state folder"
    )
    parser.add_argument("--port", type=int, default=18086, help="up: port")
    chosen = parser.parse_args(arguments)
    try:
        sys.stdout.write(_act(chosen))
    except LabError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _act(chosen: argparse.Namespace) -> str:
    if chosen.action == "fetch":
        return f"{fetch()}\n"
    if chosen.action != "up" and not (chosen.root / "server.json").exists():
        raise LabError(f"no server in {chosen.root}: run up first")
    influx = Influx(chosen.root, port=chosen.port)
    match chosen.action:
        case "up" | "start":
            influx.start().wait()
        case "stop":
            influx.stop()
        case "kill":
            influx.kill()
        case "down":
            influx.remove()
            return "down\n"
        case _:  # status only prints
            pass
    where = influx.root / "server.json"
    return f"url {influx.url} org {influx.org} pid {influx.pid or 'none'}\ntoken: {where}\n"


if __name__ == "__main__":
    sys.exit(main())
