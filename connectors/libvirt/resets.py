"""Reset a VM through libvirt, and resume it if its panic device had stopped it.

libvirt leaves such a VM in a unique state: paused, reason crashed. Only a reset of a crashed VM
sets it, and it survives a restart of libvirtd. Before the reset the state is crashed. A pause by a
person has the reason user, before a reset and after it.
"""

from collections.abc import Sequence

from flatline.connectors.libvirt.binding import (
    PAUSED_CRASHED,
    STATE_CRASHED,
    STATE_PAUSED,
    Domain,
    Library,
)
from flatline.engine.errors import ActionRefused, HypervisorUnreachable


def crashed(state: Sequence[int]) -> bool:
    """Return whether the VM is stopped by its own crash, not paused by a person.

    `state` is the result of `Domain.state`: libvirt's numbers of state and reason.
    """
    return state[0] == STATE_CRASHED or was_reset(state)


def was_reset(state: Sequence[int]) -> bool:
    """Return whether the VM was reset after its own crash and only needs a resume.

    `state` is the result of `Domain.state`: libvirt's numbers of state and reason.
    """
    return (state[0], state[1]) == (STATE_PAUSED, PAUSED_CRASHED)


def reset(domain: Domain, *, library: Library) -> None:
    """Reset a VM, and resume it where its own crash had paused it.

    Raises
    ------
    HypervisorUnreachable
        The VM was reset, and its state after the reset is unknown.
    libvirtError
        The state cannot be read, or the reset itself failed.
    """
    had_crashed = crashed(domain.state())
    domain.reset(0)
    try:
        if had_crashed or crashed(domain.state()):
            _resume(domain, library=library)
    except library.libvirtError as error:
        # The error came after the reset was done, so the outcome is unknown.
        raise HypervisorUnreachable(
            f"the VM was reset, and its present state is unknown: {error}"
        ) from error


def finish(domain: Domain, *, library: Library) -> None:
    """Resume a VM that a reset has left paused; refuse a VM in any other state.

    Raises
    ------
    ActionRefused
        No reset has left the VM paused.
    HypervisorUnreachable
        The VM is still paused.
    libvirtError
        The state cannot be read.
    """
    state = domain.state()
    if not was_reset(state):
        raise ActionRefused(
            f"the VM is in state {state[0]}, reason {state[1]}, which a reset does not cause"
        )
    _resume(domain, library=library)


def _resume(domain: Domain, *, library: Library) -> None:
    try:
        domain.resume()
    except library.libvirtError as error:
        if not crashed(domain.state()):
            return  # the VM runs: another client, or libvirt itself, has resumed it
        raise HypervisorUnreachable(
            f"the VM was reset but stays paused, because the resume failed: {error}"
        ) from error
