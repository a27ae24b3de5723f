"""``deploy/lab/kafka``: the lab's Kafka from the shell."""

from __future__ import annotations

import argparse
import sys

from deploy.lab.kafka_broker import Cluster
from deploy.lab.kafka_jars import LabError, fetch
from deploy.lab.kafka_settings import PROTOCOLS
from deploy.lab.server_cli import parser_of, run_action


def main(arguments: list[str] | None = None) -> int:
    """Execute the command line and return the exit code."""
    parser = parser_of("kafka", "Kafka cluster", port=19092)
    parser.add_argument(
        "--nodes", type=int, choices=[1, 3], default=1, help="up: number of brokers"
    )
    parser.add_argument(
        "--security", choices=list(PROTOCOLS), default="plain", help="up: security protocol"
    )
    parser.add_argument("--node", type=int, help="start, stop, kill: only this node")
    return run_action(_act, parser.parse_args(arguments))


def _act(chosen: argparse.Namespace) -> str:
    if chosen.action == "fetch":
        return f"{fetch()}\n"
    if chosen.action != "up" and not (chosen.root / "cluster.json").exists():
        raise LabError(f"no cluster in {chosen.root}: run up first")
    cluster = Cluster(
        chosen.root, nodes=chosen.nodes, security=chosen.security, first_port=chosen.port
    )
    if chosen.action == "up" and chosen.security != cluster.security:
        raise LabError(f"{chosen.root} holds a {cluster.security} cluster: run down first")
    if chosen.node is not None and not 1 <= chosen.node <= len(cluster.brokers):
        raise LabError(f"no node {chosen.node}: this cluster has {len(cluster.brokers)}")
    one = cluster.brokers[chosen.node - 1] if chosen.node is not None else cluster
    match chosen.action:
        case "up":
            cluster.start().wait()
        case "start":
            one.start().wait()
        case "stop":
            one.stop()
        case "kill":
            one.kill()
        case "down":
            cluster.remove()
            return "down\n"
        case _:  # status only prints
            pass
    lines = [f"bootstrap {cluster.bootstrap} security {cluster.security}"]
    lines += [f"node at port {b.port}: pid {b.pid or 'none'}" for b in cluster.brokers]
    if cluster.credentials:
        lines.append(f"users and passwords: {cluster.root / 'cluster.json'}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
