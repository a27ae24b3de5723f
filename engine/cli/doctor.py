"""Checks each part of an installation and states the remedy for each fault."""

import asyncio
import importlib.util
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from flatline.engine.cli.control_commands import controls_in_force, scope_of
from flatline.engine.cli.covered import covered, summary
from flatline.engine.cli.logs import set_up_logs
from flatline.engine.cli.options import moment
from flatline.engine.cli.reported import Asking, firing, left_out
from flatline.engine.errors import FlatlineError, HypervisorError, SettingsError
from flatline.engine.frame_keyring import read_site_keys
from flatline.engine.keyring import SIGNERS, read_key
from flatline.engine.roles.health import as_sentence
from flatline.engine.settings import Settings
from flatline.engine.wire.control import Control, ControlScope
from flatline.engine.wire.order import key_id
from flatline.engine.wire.rights import RIGHTS, Role, problems_of, suited, topics_of
from flatline.engine.wire.topics import ALERTS, CONTROL, FRAMES, REJECTED, SCORES, TOPICS
from flatline.engine.wiring import (
    Process,
    create_topics,
    frame_keyring,
    open_log,
    own_rights,
    policy_of,
    process,
    this_node,
    topic_problems,
    trusted_now,
)

Finding = Literal["OK", "WARN", "FAIL"]

# A person waits at the terminal; a part that answers later has a fault anyway.
PATIENCE_S: Final = 15.0
_NO_LOG: Final = (
    f"The log did not answer within {PATIENCE_S:.0f} s. Check that it is running and that section "
    "[log] of the settings names its address."
)
# Time of the first release: a clock that shows an earlier time has never been set.
_BORN_MS: Final = 1_785_000_000_000
# The newest file may be dated ahead of the clock by this much, for example if another machine wrote
# it. A larger difference means that the clock was set back, so that earlier pauses and orders seem
# to be in the future.
_CLOCK_SLACK_S: Final = 3600.0


# If the log's clock is ahead of a machine's clock by more than this, agents refuse to act.
_LOG_CLOCK_SLACK_S: Final = 5.0

# Kinds of control records that forbid actions, and how many of these records the doctor lists: a
# storm may have quarantined many VMs.
_STOPS: Final = frozenset({"pause", "maintenance", "quarantine"})
_SHOWN_STOPS: Final = 5
# Site keys that expire within this time are reported, so that each node gets a new key in time.
_SOON_MS: Final = 14 * 86_400_000


@dataclass(frozen=True, slots=True)
class Check:
    """The part that was checked, the result, and the remedy for a fault."""

    part: str
    finding: Finding
    sentence: str


async def examine(
    settings: Settings, *, creating_topics: bool = False, roles: Sequence[Role] = ()
) -> AsyncIterator[Check]:
    """Yield the results of all checks; a failed check does not stop the others.

    On Kafka the rights of this machine's principal are compared with those that `roles` need; if
    `roles` is empty, with those of all roles for which the rights suffice.
    """
    # The results contain all faults, which log lines would only repeat.
    set_up_logs(level=logging.CRITICAL)
    here = process(settings)
    for sample in (_state_folder, _clock, _policy, _keys, _frame_keys, _programs, _probe):
        for check in sample(here):
            yield check
    log, readable = await _log(here, roles, creating_topics=creating_topics)
    yield log
    if settings.log.kind == "kafka":
        yield await _rights(here, roles)
    if log.finding == "OK":
        for topic, ask in (
            (FRAMES, _log_clock),
            (CONTROL, _pauses),
            (SCORES, _witnesses),
            (ALERTS, _sources),
            (REJECTED, _left_out),
        ):
            if topic.name in readable:
                yield await ask(here)
    yield await _hypervisor(here)


def _state_folder(here: Process) -> Iterator[Check]:
    folder = here.settings.state.folder
    probe = folder / f".doctor-{here.run}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with probe.open("wb") as file:
            file.write(b"\0")
            file.flush()
            os.fsync(file.fileno())
        probe.unlink()
    except OSError as error:
        yield Check(
            "state folder",
            "FAIL",
            f"{folder} cannot be written: {error.strerror}. Create it for the user of this "
            "process, or set state.folder to another folder.",
        )
    else:
        yield Check("state folder", "OK", f"{folder} is writable.")


def _clock(here: Process) -> Iterator[Check]:
    now_ms, newest_s = here.clock.now_ms(), _newest_s(here.settings.state.folder)
    if now_ms < _BORN_MS:
        sentence = "The wall clock is not set. Start a time service such as chrony."
        yield Check("clock", "FAIL", sentence)
    elif newest_s - now_ms / 1000 > _CLOCK_SLACK_S:
        hours = (newest_s - now_ms / 1000) / 3600
        yield Check(
            "clock",
            "FAIL",
            f"The wall clock is {hours:.1f} h behind the newest file of this installation, so it "
            "was set back. Correct it before orders are issued. Durations are not affected.",
        )
    else:
        yield Check("clock", "OK", "The wall clock is later than all files of this installation.")


def _has(name: str) -> bool:
    # Faust replaces its own module by one without a spec, which `find_spec` rejects.
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _newest_s(folder: Path) -> float:
    try:
        return max((path.stat().st_mtime for path in folder.rglob("*")), default=0.0)
    except OSError:
        return 0.0


def _policy(here: Process) -> Iterator[Check]:
    try:
        policy = policy_of(here.settings)
    except FlatlineError as error:
        yield Check("policy", "FAIL", str(error))
    else:
        mode = policy.modes.default
        what = "allows no action" if mode == "observe" and not policy.modes.actions else "may act"
        sentence = f"{policy.name!r} ({policy.hash[:12]}) is in force and {what}."
        yield Check("policy", "OK", sentence)


def _keys(here: Process) -> Iterator[Check]:
    settings = here.settings
    try:
        # Read-only: a check must not create keys that are never used.
        own = {signer: read_key(settings.key_folder, signer) for signer in SIGNERS}
        trusted = trusted_now(settings)
    except FlatlineError as error:
        yield Check("keys", "FAIL", str(error))
        return
    missing = [
        name
        for name, keys in (
            ("planner-NAME", trusted.planners),
            ("agent-NODE", trusted.agents),
            ("engine-NAME", trusted.engines),
        )
        # On the embedded log each role creates its own key at its first start.
        if not keys and settings.log.kind != "embedded"
    ]
    agent_key, node = own["agent"], settings.site.node
    agent = "" if agent_key is None else key_id(agent_key.public_key())
    if missing:
        yield Check(
            "keys",
            "FAIL",
            f"No {' and no '.join(name.split('-')[0] for name in missing)} is trusted, so orders "
            f"are neither issued nor executed. Copy their .pub files to {settings.trusted_folder} "
            f"as {' and '.join(f'{name}.pub' for name in missing)}.",
        )
    elif node not in trusted.nodes.get(agent, (node,)):
        yield Check(
            "keys",
            "FAIL",
            f"The agent key of this machine is trusted for {', '.join(trusted.nodes[agent])}, but "
            f"its site.node is {node}, so its records are rejected. Rename the file in every "
            f"trusted folder to agent-{node}.pub.",
        )
    else:
        sentence = (
            f"Trusted planners: {len(trusted.planners)}, agents: {len(trusted.agents)}, engines:"
            f" {len(trusted.engines)}, operators: {len(trusted.operators)}."
        )
        yield Check("keys", "OK", sentence)


def _frame_keys(here: Process) -> Iterator[Check]:
    settings, part = here.settings, "frame keys"
    folder, node = settings.key_folder, settings.site.node
    try:
        site_keys = read_site_keys(folder)
        making = settings.log.kind == "embedded" and not site_keys
        if not making:
            frame_keyring(settings, here.clock).signer("node", node)
    except FlatlineError as error:
        yield Check(part, "FAIL", str(error))
        return
    if making:
        yield Check(part, "OK", "The first start creates the site key of this machine.")
        return
    if settings.keys.frames == "accept":
        sentence = (
            "keys.frames is accept, so anyone who may write the topic can send frames for any "
            "node. Give each node a key (`flatline keys create node NAME`), then remove the "
            "setting."
        )
        yield Check(part, "WARN", sentence)
        return
    soon_ms = here.clock.now_ms() + _SOON_MS
    ending = [
        name
        for name, key in site_keys.items()
        if key.until_ms is not None and key.until_ms < soon_ms
    ]
    if ending and len(ending) == len(site_keys):
        sentence = (
            f"Every site key expires within {_SOON_MS // 86_400_000} days. Run `flatline keys "
            "rotate`."
        )
        yield Check(part, "WARN", sentence)
    else:
        what = f"{len(site_keys)} site keys" if site_keys else f"the key of node {node}"
        yield Check(part, "OK", f"This machine has {what}.")


def _programs(here: Process) -> Iterator[Check]:
    absent = [name for name in ("numba", "river", "faust") if not _has(name)]
    if absent:
        yield Check(
            "engine's libraries",
            "WARN",
            f"{', '.join(absent)} not installed, so only collector and agent can run here. The "
            "engine requires: pip install flatline",
        )
    else:
        yield Check("engine's libraries", "OK", "The engine can run here.")


def _probe(here: Process) -> Iterator[Check]:
    """Check the right to probe guests for a sign of life."""
    from flatline.connectors.probe.prober import may_probe

    why = may_probe()
    if why:
        sentence = (
            f"Guests are not probed for signs of life: {why}. An agent with CAP_NET_RAW probes "
            "them over the bridges of the node (see flatline-agent.service). Without the probe a "
            "reset requires another second witness."
        )
        yield Check("probe", "WARN", sentence)
    else:
        yield Check("probe", "OK", "Guests can be probed for signs of life over bridges here.")


async def _log(
    here: Process, roles: Sequence[Role], *, creating_topics: bool
) -> tuple[Check, frozenset[str]]:
    """Check the topics that the roles of this principal need, and return those it may read."""
    nothing = frozenset[str]()
    topics = topics_of(roles) if roles else frozenset(topic.name for topic in TOPICS)
    try:
        async with asyncio.timeout(PATIENCE_S):
            made = await create_topics(here) if creating_topics else ()
            problems = await topic_problems(here, topics=topics)
            if problems and not roles:
                # Topics that only other roles need are not missing.
                roles = suited(await own_rights(here) or dict.fromkeys(topics, nothing))
                topics = topics_of(roles) or topics
                problems = await topic_problems(here, topics=topics)
            if not problems:
                async with open_log(here) as log:
                    counts = [log.partitions(topic) for topic in topics]
    except FlatlineError as error:
        return Check("log", "FAIL", str(error)), nothing
    except TimeoutError:
        return Check("log", "FAIL", _NO_LOG), nothing
    if problems:
        cure = "`flatline doctor --create-topics` creates missing topics."
        return Check("log", "FAIL", f"{'; '.join(problems)}. {cure}"), nothing
    whose = f" of {', '.join(roles)}" if roles else ""
    new = f", {len(made)} of them created now" if made else ""
    sentence = f"{len(counts)} topics{whose}{new}, {sum(counts)} partitions."
    readable = nothing.union(*(RIGHTS[role].reads for role in roles)) if roles else topics
    return Check("log", "OK", sentence), readable


async def _rights(here: Process, roles: Sequence[Role]) -> Check:
    """Compare the rights of the principal with those that its roles need."""
    part = "rights"
    try:
        async with asyncio.timeout(PATIENCE_S):
            found = await own_rights(here)
    except FlatlineError as error:
        return Check(part, "FAIL", str(error))
    except TimeoutError:
        return Check(part, "FAIL", _NO_LOG)
    if found is None:
        return Check(part, "WARN", "This broker does not report the rights of a principal.")
    user = here.settings.log.kafka.username or "this principal"
    if not roles and {"Alter", "Delete"} <= frozenset[str]().union(*found.values()):
        return Check(
            part,
            "WARN",
            f"{user} has all rights. Either the broker has no ACLs, or this is its administrator. "
            "Give each role its own principal (deploy/kafka/README.md).",
        )
    chosen = tuple(roles) or suited(found)
    if not chosen:
        return Check(
            part,
            "FAIL",
            f"The rights of {user} are not sufficient for any role. Use --as ROLE to list what is "
            "missing (deploy/kafka/README.md).",
        )
    missing, excess = problems_of(found, chosen)
    named = ", ".join(chosen)
    if missing:
        return Check(
            part,
            "FAIL",
            f"{user} lacks rights for {named}: {'; '.join(missing)}. deploy/kafka/README.md lists "
            "the ACLs.",
        )
    if excess:
        return Check(
            part,
            "WARN",
            f"{user} has more rights than {named} needs: {'; '.join(excess)}. Remove those ACLs.",
        )
    return Check(part, "OK", f"{user} has exactly the rights that {named} needs.")


async def _log_clock(here: Process) -> Check:
    """Compare this machine's clock with the append time of the log's newest frame or tick."""
    part, newest_ms = "log's clock", 0
    try:
        async with asyncio.timeout(PATIENCE_S), open_log(here) as log:
            for partition in range(log.partitions(FRAMES.name)):
                bounds = await log.bounds(FRAMES.name, partition)
                start = max(bounds.earliest, bounds.end - 1)
                for record in await log.read_to_end(FRAMES.name, partition, offset=start):
                    newest_ms = max(newest_ms, record.time_ms)
    except FlatlineError as error:
        return Check(part, "WARN", f"The clock of the log cannot be read: {error}")
    except TimeoutError:
        return Check(part, "WARN", f"The newest frame could not be read within {PATIENCE_S:.0f} s.")
    ahead_s = (newest_ms - here.clock.now_ms()) / 1000
    if not newest_ms:
        return Check(part, "OK", "The log has no frames yet.")
    if ahead_s > _LOG_CLOCK_SLACK_S:
        return Check(
            part,
            "FAIL",
            f"The log dates its newest frame {ahead_s:.0f} s ahead of the clock of this machine, "
            "so one of the two clocks is wrong. Correct NTP on the broker and here.",
        )
    return Check(
        part, "OK", f"The newest frame is {-ahead_s:.0f} s old by the clock of this machine."
    )


async def _pauses(here: Process) -> Check:
    try:
        async with asyncio.timeout(PATIENCE_S), open_log(here) as log:
            commands = await controls_in_force(here, log)
    except FlatlineError as error:
        return Check("pauses", "FAIL", str(error))
    except TimeoutError:
        return Check("pauses", "FAIL", f"The pauses could not be read within {PATIENCE_S:.0f} s.")
    stops = [command for command in commands if command.kind in _STOPS]
    if not stops:
        return Check("pauses", "OK", "Nothing is paused.")
    shown = [_shown_stop(command) for command in sorted(stops, key=_widest_first)[:_SHOWN_STOPS]]
    if len(stops) > _SHOWN_STOPS:
        shown.append(f"and {len(stops) - _SHOWN_STOPS} more: `flatline pause show` lists all")
    return Check("pauses", "WARN", f"Actions are paused on {'; '.join(shown)}.")


async def _witnesses(here: Process) -> Check:
    try:
        async with asyncio.timeout(PATIENCE_S), open_log(here) as log:
            is_well, sentence = summary(await covered(here, log))
    except FlatlineError as error:
        return Check("witnesses", "FAIL", str(error))
    except TimeoutError:
        return Check(
            "witnesses", "FAIL", f"The scores could not be read within {PATIENCE_S:.0f} s."
        )
    return Check("witnesses", "OK" if is_well else "WARN", sentence)


async def _sources(here: Process) -> Check:
    """Report alerts on clock steps, several sources with one identity, and skipped records."""
    return await _noted(
        here,
        "sources",
        firing,
        ("No alert reports a clock step, a duplicate source or a skipped record."),
    )


async def _left_out(here: Process) -> Check:
    well = "No record was rejected or set aside in the last hour."
    return await _noted(here, "rejected", left_out, well)


async def _noted(here: Process, part: str, ask: Asking, well: str) -> Check:
    try:
        async with asyncio.timeout(PATIENCE_S), open_log(here) as log:
            sentence = await ask(here, log)
    except FlatlineError as error:
        return Check(part, "FAIL", str(error))
    except TimeoutError:
        return Check(part, "FAIL", _NO_LOG)
    return Check(part, "WARN" if sentence else "OK", sentence or well)


def _widest_first(command: Control) -> int:
    return get_args(ControlScope).index(command.scope)


def _shown_stop(command: Control) -> str:
    scope = scope_of(command)
    ends = f"`flatline pause off {scope}`" if command.until_ms is None else moment(command.until_ms)
    return f"{scope} until {ends} ({command.kind} by {command.by}: {command.reason})"


async def _hypervisor(here: Process) -> Check:
    kind, node = here.settings.hypervisor.kind, this_node(here.settings)
    try:
        hypervisor = node.hypervisor()
    except SettingsError as error:
        return Check(kind, "WARN", f"{as_sentence(error)} Only a node needs it.")
    try:
        async with asyncio.timeout(PATIENCE_S), hypervisor:
            sample = await hypervisor.sample()
    except HypervisorError as error:
        return Check(kind, "FAIL", f"{as_sentence(error)} Only a node needs it.")
    except TimeoutError:
        return Check(
            kind,
            "FAIL",
            f"{node.address} did not answer within {PATIENCE_S:.0f} s. "
            "Check that its daemon is running.",
        )
    return Check(kind, "OK", f"{node.address} answers and runs {len(sample.rows)} VMs.")
