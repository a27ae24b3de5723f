"""The table of rights, its commands, and doctor's report on a principal's own rights."""

import asyncio
import tomllib
from contextlib import nullcontext

import pytest

from deploy.kafka.acls import acls, command
from flatline.engine.cli import doctor
from flatline.engine.settings import load_settings
from flatline.engine.wire.rights import RIGHTS, ROLES, operations, problems_of, suited
from flatline.engine.wire.topics import FRAMES, ORDERS, TOPICS
from flatline.engine.wiring import process
from tests.slices import ROOT

NAMES = [topic.name for topic in TOPICS]


def of(*roles: str) -> dict[str, frozenset[str]]:
    chosen = [role for role in ROLES if role in roles]
    return {
        name: frozenset[str]().union(*(operations(role, name) for role in chosen)) for name in NAMES
    }


def test_every_topic_has_a_writer_and_a_reader_and_orders_are_given_by_planners_alone() -> None:
    for name in NAMES:
        assert any(name in rights.writes for rights in RIGHTS.values()), name
        assert any(name in rights.reads for rights in RIGHTS.values()), name
    assert {role for role in ROLES if ORDERS.name in RIGHTS[role].writes} == {"planner", "agent"}
    assert RIGHTS["collector"].reads == ()
    assert RIGHTS["reader"].writes == ()


def test_each_acl_is_one_command_and_describe_is_not_said_where_it_is_implied() -> None:
    made = list(acls({"flatline-c": ["collector"], "flatline-r": ["reader"]}, prefix="x."))
    assert [acl for acl in made if acl.principal == "flatline-c"] == [
        ("flatline-c", "topic", f"x.{FRAMES.name}", False, "Write")
    ]
    lines = [command(acl, server="k:9093", config="admin.properties") for acl in made]
    assert lines[0] == (
        "kafka-acls.sh --bootstrap-server k:9093 --command-config admin.properties --add"
        f" --allow-principal User:flatline-c --operation Write --topic x.{FRAMES.name}"
    )
    assert lines[-1].endswith("--group flatline-reader- --resource-pattern-type prefixed")
    assert not any(acl.operation == "Describe" for acl in made)
    with pytest.raises(ValueError, match="'nobody' is not a role"):
        list(acls({"x": ["nobody"]}))


def test_the_shipped_principals_have_every_role_once() -> None:
    table = tomllib.loads((ROOT / "deploy/kafka/principals.toml").read_text())["principals"]
    assert sorted(role for roles in table.values() for role in roles) == sorted(ROLES)


def test_missing_and_excess_rights_are_reported_separately() -> None:
    assert problems_of(of("engine"), ["engine"]) == ([], [])
    missing, excess = problems_of(of("collector"), ["agent"])
    assert f"Read on {ORDERS.name}" in missing
    assert excess == []
    assert problems_of(of("planner", "notifier"), ["notifier"])[1]
    assert suited(of("planner", "notifier")) == ("planner", "notifier")


@pytest.mark.parametrize("asked", [["planner"], []])
def test_topics_that_only_other_roles_need_are_not_called_missing(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {name for name, allowed in of("planner").items() if allowed}
    assert FRAMES.name not in seen

    async def problems(_here: object, *, topics: frozenset[str]) -> tuple[str, ...]:
        return tuple(f"topic {name} is missing" for name in sorted(topics - seen))

    async def rights(_here: object) -> dict[str, frozenset[str]]:
        return of("planner")

    class Seen:
        def partitions(self, topic: str) -> int:
            assert topic in seen
            return 1

    monkeypatch.setattr(doctor, "topic_problems", problems)
    monkeypatch.setattr(doctor, "own_rights", rights)
    monkeypatch.setattr(doctor, "open_log", lambda _here: nullcontext(Seen()))
    monkeypatch.delenv("FLATLINE_CONFIG", raising=False)
    here, roles = process(load_settings()[0]), [role for role in ROLES if role in asked]
    check, readable = asyncio.run(doctor._log(here, roles, creating_topics=False))
    assert check.finding == "OK", check.sentence
    assert check.sentence == f"{len(seen)} topics of planner, {len(seen)} partitions."
    assert readable == set(RIGHTS["planner"].reads)
    seen.discard(ORDERS.name)
    check, readable = asyncio.run(doctor._log(here, roles, creating_topics=False))
    assert (check.finding, readable) == ("FAIL", frozenset())
    assert check.sentence.startswith(f"topic {ORDERS.name} is missing. ")


@pytest.mark.parametrize(
    ("found", "roles", "finding", "words"),
    [
        (of("collector"), [], "OK", "has exactly the rights that collector needs"),
        (of("collector", "agent"), ["collector"], "WARN", "has more rights than collector needs"),
        (of("collector"), ["agent"], "FAIL", f"lacks rights for agent: Describe on {NAMES[2]}"),
        (of(), [], "FAIL", "are not sufficient for any role"),
        (
            {name: frozenset({"Read", "Write", "Alter", "Delete", "Describe"}) for name in NAMES},
            [], "WARN", "has all rights",
        ),
        (None, [], "WARN", "does not report"),
    ],
)  # fmt: skip
def test_doctor_says_what_a_principal_lacks_and_has_too_much(
    found: dict[str, frozenset[str]] | None,
    roles: list[str],
    finding: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def answer(_here: object) -> dict[str, frozenset[str]] | None:
        return found

    monkeypatch.setattr(doctor, "own_rights", answer)
    monkeypatch.delenv("FLATLINE_CONFIG", raising=False)
    chosen = [role for role in ROLES if role in roles]
    check = asyncio.run(doctor._rights(process(load_settings()[0]), chosen))
    assert check.finding == finding
    assert words in check.sentence
