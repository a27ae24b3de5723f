"""Prints the ACLs of an installation as commands of Kafka's own `kafka-acls.sh`.

    python -m deploy.kafka.acls --command-config admin.properties deploy/kafka/principals.toml | sh

Only rights that a role needs are allowed; the broker must deny what no ACL allows.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from flatline.engine.wire.rights import RIGHTS, ROLES, Role, operations
from flatline.engine.wire.topics import TOPICS


class Acl(NamedTuple):
    """One right of one principal."""

    principal: str
    resource: str
    name: str
    prefixed: bool
    operation: str


def acls(principals: Mapping[str, Iterable[str]], *, prefix: str = "") -> Iterator[Acl]:
    """Yield the ACLs of principals with their roles.

    Parameters
    ----------
    principals
        Names as the broker sees them (`User:NAME` without `User:`) to roles.
    prefix
        Prefix of the topics' names, as `log.kafka.topic_prefix`.

    Raises
    ------
    ValueError
        A role does not exist.
    """
    for principal, names in principals.items():
        roles = [_role(name) for name in names]
        for topic in TOPICS:
            allowed = frozenset[str]().union(*(operations(role, topic.name) for role in roles))
            # Read and Write imply Describe.
            implied = {"Describe"} if allowed & {"Read", "Write"} else set()
            for operation in sorted(allowed - implied):
                yield Acl(principal, "topic", prefix + topic.name, False, operation)
        for role in roles:
            rights = RIGHTS[role]
            if rights.group:
                yield Acl(principal, "group", rights.group, rights.group_prefix, "Read")


def _role(name: str) -> Role:
    for role in ROLES:
        if role == name:
            return role
    raise ValueError(f"{name!r} is not a role. Known roles: {', '.join(ROLES)}")


def command(acl: Acl, *, server: str, config: str) -> str:
    """Return the command that adds one ACL."""
    words = ["kafka-acls.sh", "--bootstrap-server", server]
    if config:
        words += ["--command-config", config]
    words += ["--add", "--allow-principal", f"User:{acl.principal}"]
    words += ["--operation", acl.operation, f"--{acl.resource}", acl.name]
    if acl.prefixed:
        words += ["--resource-pattern-type", "prefixed"]
    return shlex.join(words)


def main() -> int:
    """Print the commands and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("principals", type=Path, help="TOML file: [principals], name = [roles]")
    parser.add_argument("--bootstrap-server", default="localhost:9092")
    parser.add_argument("--command-config", default="", help="client settings of an administrator")
    parser.add_argument("--topic-prefix", default="", help="same value as log.kafka.topic_prefix")
    given = parser.parse_args()
    table = tomllib.loads(given.principals.read_text())["principals"]
    for acl in acls(table, prefix=given.topic_prefix):
        line = command(acl, server=given.bootstrap_server, config=given.command_config)
        sys.stdout.write(f"{line}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
