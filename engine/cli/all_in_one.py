"""`flatline run`: a whole site in one process, on the embedded log."""

from contextlib import AbstractAsyncContextManager, nullcontext

import structlog

from flatline.connectors.embedded.lock import held_in
from flatline.connectors.simulator.fleet import build_world
from flatline.connectors.simulator.plan import WorldPlan
from flatline.engine.cli.logs import set_up_logs
from flatline.engine.cli.process import abandonable, until_stopped
from flatline.engine.frame_keyring import FrameKeyring
from flatline.engine.ports import Log
from flatline.engine.roles.run import Opener, run_roles
from flatline.engine.settings import Settings
from flatline.engine.wiring import (
    Process,
    authority,
    compile_engine,
    open_log,
    probes,
    process,
    simulated_nodes,
    site_openers,
    this_node,
)
from flatline.engine.wiring_history import history_opener
from flatline.engine.wiring_planning import compile_forecaster, forecast_opener

_log = structlog.get_logger()


def run_all_in_one(settings: Settings, *, simulated: bool, acting: bool, seed: int) -> int:
    """Run every role until a signal, and return the exit code.

    Parameters
    ----------
    simulated
        Whether to simulate a fleet of 200 VMs in 4 cells, on which actions are allowed. The policy
        is that of the demo unless the settings name another. Otherwise the VMs of this machine's
        hypervisor are observed.
    acting
        Whether the agent runs, without which no action on this machine's VMs is possible.
    seed
        Seed of the simulated fleet; not used without one.

    Raises
    ------
    AlreadyRunning
        Another process runs all roles with this state folder.
    FlatlineError
        A role cannot start, or fails with a fault that waiting does not resolve.
    """
    set_up_logs()
    # The lock is taken first, so that a second process fails at once and not later in each role.
    with held_in(settings.state.folder, "run", what="runs all roles"):
        if simulated:
            return until_stopped(lambda: _run_simulated(process(settings), seed=seed))
        return until_stopped(lambda: _run_real(process(settings), acting=acting))


async def _compiled(settings: Settings) -> None:
    """Compile before sampling starts: a gap after the first samples would look like a fault."""
    _log.info("Compiling the kernels.")
    await abandonable(lambda: compile_engine(settings))
    await abandonable(lambda: compile_forecaster(settings))
    _log.info("Compiled. `flatline audit show` lists the decisions from now on.")


async def _run_real(here: Process, *, acting: bool) -> None:
    allowed, node = authority(here.settings), this_node(here.settings)
    what = "may be acted on as the policy allows" if acting else "is only observed (no --act)"
    _log.info(f"{node.address} {what}.", policy=allowed.policy.name)
    async with probes(here), open_log(here) as log:
        await _compiled(here.settings)
        openers = site_openers(here, log, nodes=[node], authority=allowed, acting=acting)
        openers |= _for_planners(here, log, allowed.frames)
        await run_roles(openers, health=here.health)


async def _run_simulated(here: Process, *, seed: int) -> None:
    site = here.settings.site.name
    plan = WorldPlan(seed=seed, site=site, cells=4, nodes_per_cell=2, vms_per_node=25)
    fleet = build_world(plan, here.clock)
    allowed = authority(here.settings, shipped="demo")
    _log.info(f"A simulated fleet of {plan.vms} VMs runs.", seed=seed, policy=allowed.policy.name)
    async with probes(here), open_log(here) as log:
        await _compiled(here.settings)
        openers = site_openers(here, log, nodes=simulated_nodes(fleet), authority=allowed)
        openers |= _for_planners(here, log, allowed.frames)
        await run_roles(openers, health=here.health)


def _for_planners(here: Process, log: Log, frames: FrameKeyring) -> dict[str, Opener]:
    """Return an `Opener` for each of the roles `history` and `forecast`."""

    def connect() -> AbstractAsyncContextManager[Log]:
        return nullcontext(log)

    return {
        "history": history_opener(here, connect, frames),
        "forecast": forecast_opener(here, connect, frames),
    }
