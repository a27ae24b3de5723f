"""``deploy/lab/influx``: the lab's InfluxDB from the shell."""

from __future__ import annotations

import argparse
import sys

from deploy.lab.influx_server import Influx, fetch
from deploy.lab.kafka_jars import LabError
from deploy.lab.server_cli import parser_of, run_action


def main(arguments: list[str] | None = None) -> int:
    """Execute the command line and return the exit code."""
    parser = parser_of("influx", "InfluxDB", port=18086)
    return run_action(_act, parser.parse_args(arguments))


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
