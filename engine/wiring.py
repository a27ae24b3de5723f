"""Connects ports and adapters: turns settings into running roles.

Each adapter is imported only in the function that needs it. So a collector or an agent never loads
the kernels, and a machine without libvirt can run all roles except collector and agent.
"""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    nullcontext,
)
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from flatline.connectors.clock import SystemClock
from flatline.connectors.http.probes import ProbeServer
from flatline.engine.action.catalogue import Policy
from flatline.engine.errors import SettingsError
from flatline.engine.frame_keyring import FrameKeyring
from flatline.engine.kernel_cache import compile_kept, users_folder
from flatline.engine.log_factory import Process as Process
from flatline.engine.log_factory import create_topics as create_topics
from flatline.engine.log_factory import kafka_config as kafka_config
from flatline.engine.log_factory import open_log as open_log
from flatline.engine.log_factory import own_rights as own_rights
from flatline.engine.log_factory import topic_problems as topic_problems
from flatline.engine.ports import Log, Recording
from flatline.engine.roles.health import STUCK_AFTER_S, Health, Verdict
from flatline.engine.roles.run import Opener, Role
from flatline.engine.secret_file import read_secret
from flatline.engine.settings import Settings
from flatline.engine.wiring_keys import Authority as Authority
from flatline.engine.wiring_keys import authority as authority
from flatline.engine.wiring_keys import frame_keyring as frame_keyring
from flatline.engine.wiring_keys import frame_opener as frame_opener
from flatline.engine.wiring_keys import policy_of as policy_of
from flatline.engine.wiring_keys import read_policy as read_policy
from flatline.engine.wiring_keys import state_keys as state_keys
from flatline.engine.wiring_keys import trusted_now as trusted_now
from flatline.engine.wiring_nodes import Node as Node
from flatline.engine.wiring_nodes import simulated_nodes as simulated_nodes
from flatline.engine.wiring_nodes import this_node as this_node

if TYPE_CHECKING:
    from flatline.engine.evaluation.truth import Occurrence

_log = structlog.get_logger()

Connect = Callable[[], AbstractAsyncContextManager[Log]]


def process(settings: Settings) -> Process:
    """Return a process with the machine's own clocks."""
    clock = SystemClock()
    # A collector with an interval of 5 min reports no progress between two samples; it must not
    # count as stuck.
    stuck_s = max(STUCK_AFTER_S, 3 * settings.collect.interval_s)
    return Process(settings, clock, Health(clock, stuck_after_s=stuck_s))


def probes(process: Process) -> AbstractAsyncContextManager[object]:
    """Return the server of probes and metrics, or an empty context where none is configured.

    Entering it raises `SettingsError` if the server cannot listen on `http.host` and `http.port`.
    """
    http = process.settings.http
    if http.port is None:
        return nullcontext()

    def answer(verdict: Verdict) -> tuple[bool, tuple[str, ...]]:
        return verdict.ok, verdict.sentences

    server = ProbeServer(
        host=http.host,
        port=http.port,
        live=lambda: answer(process.health.live()),
        ready=lambda: answer(process.health.ready()),
    )

    @asynccontextmanager
    async def served() -> AsyncIterator[None]:
        with server:
            host, port = server.address
            _log.info("Health checks and metrics are served.", host=host, port=port)
            yield

    return served()


def open_recording(source: str) -> Recording:
    """Return the input of a replay: the frames in the folder of a log, or a dataset by its prefix.

    Raises
    ------
    SettingsError
        `source` is neither.
    """
    from flatline.connectors.embedded.recording import FILE_NAME, FrameRecording
    from flatline.connectors.traces.dataset import open_dataset
    from flatline.connectors.traces.recording import DatasetRecording
    from flatline.models.codecs.columns import widen

    if (Path(source) / FILE_NAME).exists():
        return FrameRecording(Path(source), widen=widen)
    return DatasetRecording(open_dataset(source))


def read_truth(events: Path) -> "list[Occurrence]":
    """Return the true events of a dataset, from its `PREFIX_events.csv`.

    Raises
    ------
    SettingsError
        It cannot be read.
    """
    from flatline.connectors.traces.dataset import read_vms
    from flatline.connectors.traces.table import read_rows
    from flatline.engine.evaluation.truth import COLUMNS, parse_truth

    table = events.with_name(events.name.removesuffix("events.csv") + "vms.csv")
    vcpus = {vm.id: vm.vcpus for vm in read_vms(table)} if table.exists() else {}
    return parse_truth(read_rows(events, COLUMNS), source=str(events), vcpus=vcpus)


def collect_opener(process: Process, connect: Connect, node: Node, frames: FrameKeyring) -> Opener:
    """Return the `Opener` of the collector of `node`, which signs frames with its key in `frames`.

    Raises
    ------
    SettingsError, KeyDamaged, StateUnwritable
        See `FrameKeyring.signer`: there is no key, and frames without a MAC would not be accepted;
        or a key is not usable.
    """
    from flatline.engine.roles.collect import Collector
    from flatline.engine.roles.framing import CollectConfig

    collect = process.settings.collect
    config = CollectConfig(
        site=process.settings.site.name,
        zone=node.zone,
        cell=node.cell,
        node=node.name,
        interval_s=collect.interval_s,
        buffer_s=collect.buffer_s,
        buffer_bytes=collect.buffer_bytes,
        inventory_every_s=collect.inventory_every_s,
    )
    sign = frames.signer("node", node.name)

    @asynccontextmanager
    async def opened() -> AsyncIterator[Role]:
        async with node.hypervisor() as hypervisor:
            yield Collector(
                hypervisor=hypervisor,
                connect=connect,
                config=config,
                clock=process.clock,
                health=process.health.of(f"collect {node.name}"),
                run=process.run,
                sign=sign,
            )

    return opened


def plan_opener(process: Process, connect: Connect, authority: Authority) -> Opener:
    """Return the opener of a planner named after this process's node.

    Raises
    ------
    SettingsError, KeyDamaged, StateUnwritable
        The planner's signing key cannot be created or used; see `own_key`.
    """
    from flatline.engine.roles.plan import PlanConfig, Planner

    config = PlanConfig(
        site=process.settings.site.name,
        name=process.settings.site.node,
        run=process.run,
        policy=authority.policy,
        key=authority.key("planner"),
        trusted=authority.trusted,
    )

    @asynccontextmanager
    async def opened() -> AsyncIterator[Role]:
        async with connect() as log:
            health = process.health.of("plan")
            yield Planner(log=log, config=config, clock=process.clock, health=health)

    return opened


def notify_opener(process: Process, connect: Connect) -> dict[str, Opener]:
    """Return the opener of the notifier by its role's name, empty where none is configured.

    Raises
    ------
    SettingsError
        The token's file cannot be read or is empty.
    """
    settings = process.settings.notify
    if settings.url is None:
        return {}
    from flatline.connectors.notify.webhook import Webhook
    from flatline.engine.roles.notify import Notifying

    file = settings.token_file
    token = None if file is None else read_secret(file, name="notify.token_file")
    notifier = Webhook(settings.url, token=token)
    site = process.settings.site.name

    @asynccontextmanager
    async def opened() -> AsyncIterator[Role]:
        async with connect() as log:
            health = process.health.of("notify")
            yield Notifying(
                log=log,
                notifier=notifier,
                site=site,
                clock=process.clock,
                health=health,
                # A role may be opened several times in one process. Each time it is a new writer
                # with a separate hash chain in the journal.
                writer=f"notify/{site}/{process.run}.{process.clock.mono_ns():x}",
            )

    return {"notify": opened}


def act_opener(process: Process, connect: Connect, node: Node, authority: Authority) -> Opener:
    """Return the opener of the agent of `node`; a second one of the same node is refused.

    Opening the second one raises `AlreadyRunning`.

    Raises
    ------
    SettingsError
        The policy is for a simulated fleet, and the node is real.
    SettingsError, KeyDamaged, StateUnwritable
        A key is missing or not usable; see `own_key` and `FrameKeyring.signer`.
    """
    from flatline.engine.roles.act import Agent
    from flatline.engine.roles.act_config import ActConfig

    if node.real:
        _check_purpose(authority.policy, node=node.name)
    config = ActConfig(
        site=process.settings.site.name,
        zone=node.zone,
        cell=node.cell,
        node=node.name,
        run=process.run,
        policy=authority.policy,
        key=authority.key("agent"),
        trusted=authority.trusted,
        sign=authority.frames.signer("node", node.name),
        sets_balloons=process.settings.act.enable_balloon_stats,
    )

    @asynccontextmanager
    async def opened() -> AsyncIterator[Role]:
        # Locks come first: the process that holds them is the node's agent, whatever its settings.
        with node.alone(), node.ledger() as ledger:
            async with (
                connect() as log,
                node.actuator() as actuator,
                node.evidence() as evidence,
                node.watch() as watch,
            ):
                yield Agent(
                    log=log,
                    actuator=actuator,
                    ledger=ledger,
                    evidence=evidence,
                    watch=watch,
                    prober=node.prober(),
                    config=config,
                    clock=process.clock,
                    health=process.health.of(f"act {node.name}"),
                )

    return opened


def _check_purpose(policy: Policy, *, node: str) -> None:
    """Refuse a demo policy on real VMs, and warn of a lab policy.

    Both allow actions on VMs that were observed for only a short time.
    """
    if policy.purpose == "demo":
        raise SettingsError(
            f"Policy {policy.name!r} is for a simulated fleet (purpose demo), but node {node} runs "
            "real VMs. Set policy.file to a policy for production, or remove it to observe only."
        )
    if policy.purpose == "lab":
        _log.warning(
            f"Policy {policy.name!r} is for a lab, but node {node} runs real VMs. It requires less "
            "before an action than a production policy."
        )


def compile_engine(settings: Settings | None = None) -> None:
    """Compile the engine's kernels. This takes seconds and blocks the calling thread.

    Parameters
    ----------
    settings
        The kernels are kept for the next start in the state folder of these settings; None: in the
        user's cache.
    """
    from flatline.engine.detection.compiled import compile_kernels

    compile_kept(compile_kernels, kernel_folder(settings) / "engine")


def kernel_folder(settings: Settings | None) -> Path:
    """Return the folder of compiled kernels; without settings the user's cache."""
    return users_folder() if settings is None else settings.state.folder / "kernels"


def engine_opener(process: Process, connect: Connect, authority: Authority) -> Opener:
    """Return the opener of the engine, with all cells whose partitions are assigned to it.

    It verifies a recovery for as long as the policy's escalation steps require, checks frames with
    the site's keys, and signs its alerts, scores and snapshots.

    Raises
    ------
    SettingsError, KeyDamaged, StateUnwritable
        There is no site key to check frames with; or a key cannot be created or used, see `own_key`
        and `FrameKeyring`.
    """
    from flatline.engine.detection.configuration import Configuration
    from flatline.engine.roles.detect import DetectConfig, Detector
    from flatline.engine.roles.state_keys import StateKeys

    settings = process.settings
    ladders = authority.policy.ladders
    stable_s = max((step.stable_s for steps in ladders.values() for step in steps), default=60)
    config = DetectConfig(
        site=settings.site.name,
        node=settings.site.node,
        run=process.run,
        group=settings.engine.group,
        snapshot_every_s=settings.engine.snapshot_every_s,
        configuration=Configuration(verify_stable_s=float(stable_s)),
    )

    open_frame = frame_opener(process, authority.frames, reader="engine")
    sign = authority.frames.signer("engine", settings.site.node)
    key = authority.key("engine")

    upgrading = settings.keys.frames == "accept"

    @asynccontextmanager
    async def opened() -> AsyncIterator[Role]:
        # The kernels are compiled before the engine joins its group, or loaded if an earlier start
        # has compiled them.
        compile_engine(settings)
        async with connect() as log:
            health = process.health.of("engine")
            yield Detector(
                log=log,
                config=config,
                clock=process.clock,
                health=health,
                open_frame=open_frame,
                sign=sign,
                key=key,
                state_keys=StateKeys(key, authority.trusted, upgrading),
            )

    return opened


def site_openers(
    process: Process, log: Log, *, nodes: Iterable[Node], authority: Authority, acting: bool = True
) -> dict[str, Opener]:
    """Return the openers of every role of a site in one process, by role name, on one open log.

    Without `acting` there are no agents. The errors are those of the opener of each role.
    """

    def connect() -> AbstractAsyncContextManager[Log]:
        return nullcontext(log)

    openers = {
        "engine": engine_opener(process, connect, authority),
        "plan": plan_opener(process, connect, authority),
        **notify_opener(process, connect),
    }
    for node in nodes:
        openers[f"collect {node.name}"] = collect_opener(process, connect, node, authority.frames)
        if acting:
            openers[f"act {node.name}"] = act_opener(process, connect, node, authority)
    return openers
