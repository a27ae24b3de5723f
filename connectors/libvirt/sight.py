"""Read the state of one VM for the agent, from libvirt and from the events of this connection."""

import time
from typing import Final

from flatline.connectors.libvirt import resets
from flatline.connectors.libvirt.binding import JOB_IDLE, Connection, Domain, Stats
from flatline.connectors.libvirt.decoding import (
    balloon_last_update_s,
    block_total,
    counted_disks,
    counted_nics,
    instance_of,
    kvm_total,
    monitor_answered,
    net_total,
    plain_counter,
    state_of,
    vcpu_delays,
    vcpu_times,
)
from flatline.connectors.libvirt.heard import Heard
from flatline.connectors.libvirt.inventory import read_definition
from flatline.connectors.libvirt.polling import NOWAIT, STATS
from flatline.engine.errors import VmNotFound
from flatline.engine.preflight_data import PreflightSample, StateReason
from flatline.engine.wire.metrics import VM_STATES

# A call with NOWAIT does not wait while another call holds the VM. The collector's poll, a
# screenshot or the end of a copy holds a VM for some 10 ms, ten times as long on a busy node. With
# retries for half a second these differ from a hung monitor; the sample may take 3 s.
_HELD_TRIES: Final = 5
_HELD_PAUSE_S: Final = 0.1


def see(
    connection: Connection, domain: Domain, *, host_mark: int, heard: Heard, uri: str
) -> PreflightSample:
    """Return the current state of the VM; errors of libvirt are not translated.

    Parameters
    ----------
    host_mark
        See `connectors.libvirt.decoding.host_mark`.
    uri
        Address of libvirtd, for the message.

    Raises
    ------
    VmNotFound
        It no longer exists.
    """
    # Values that change fastest are read last, so the counters are as recent as `mono_ns` states.
    vm, xml = domain.UUID(), domain.XMLDesc()
    run = instance(domain, host_mark=host_mark)
    domain, stats, mono_ns = _statistics(connection, domain, uri=uri)
    job = False
    if monitor_answered(stats):
        # Query the job only after the monitor has answered: this query waits while another call
        # holds the VM, and fails if the VM is off.
        job = domain.jobInfo()[0] not in JOB_IDLE
        domain, stats, mono_ns = _statistics(connection, domain, uri=uri)
    wall_ms = time.time_ns() // 1_000_000
    state, reason = state_of(stats), plain_counter(stats, "state.reason")
    answered = monitor_answered(stats)
    definition = read_definition(
        xml, counted_nics=counted_nics(stats), counted_disks=counted_disks(stats)
    )
    times, delays = vcpu_times(stats), vcpu_delays(stats)
    reported, reported_ns = heard.report(vm)
    return PreflightSample(
        vm=vm,
        instance=run,
        mono_ns=mono_ns,
        wall_ms=wall_ms,
        state=VM_STATES[state if state is not None else 0],
        state_reason=_reason(state, reason),
        monitor_answered=answered,
        # If the monitor does not answer, a job may be running, so the value is unknown.
        job_active=job or definition.mirrored or (False if answered else None),
        boots_seen=heard.boots(vm),
        reported=reported,
        reported_ns=reported_ns,
        tenant=definition.tenant,
        group=definition.group,
        opted_out=not definition.actionable,
        uncounted=definition.uncounted,
        vcpus=plain_counter(stats, "vcpu.current"),
        vcpu_time_ns=tuple(times.values()),
        vcpu_delay_ns=tuple(delays[number] for number in times if number in delays),
        cpu_time_ns=plain_counter(stats, "cpu.time"),
        block_rd_reqs=block_total(stats, "rd.reqs"),
        block_wr_reqs=block_total(stats, "wr.reqs"),
        block_rd_bytes=block_total(stats, "rd.bytes"),
        block_wr_bytes=block_total(stats, "wr.bytes"),
        net_tx_pkts=net_total(stats, "tx.pkts"),
        net_tx_bytes=net_total(stats, "tx.bytes"),
        balloon_last_update_s=balloon_last_update_s(stats),
        balloon_period_s=definition.balloon_period_s,
        kvm_irq_injections=kvm_total(stats, "kvm_irq_injections"),
        kvm_io_exits=kvm_total(stats, "kvm_io_exits"),
    )


def moment_ns() -> int:
    """Return the node's monotonic clock in ns, the time base of `PreflightSample`."""
    return time.monotonic_ns()


def instance(domain: Domain, *, host_mark: int) -> int:
    """Return the number of the VM's run for `engine.preflight_data.PreflightSample`.

    `host_mark` is as in `connectors.libvirt.decoding.host_mark`.
    """
    # libvirt's number of a VM that does not run is -1.
    return instance_of(host_mark=host_mark, domain_id=max(0, domain.ID()))


def _statistics(connection: Connection, domain: Domain, *, uri: str) -> tuple[Domain, Stats, int]:
    """Return libvirt's statistics of a VM and the time of the query (monotonic ns).

    The query is repeated for half a second while another call holds the VM.
    """
    for pause_s in (*(_HELD_PAUSE_S,) * _HELD_TRIES, None):
        mono_ns = moment_ns()
        records = connection.domainListGetStats([domain], STATS, NOWAIT)
        if not records:
            raise VmNotFound(f"VM {domain.UUID().hex()} has disappeared from {uri}")
        if pause_s is None or monitor_answered(records[0][1]):
            break
        time.sleep(pause_s)
    return (*records[0], mono_ns)


def _reason(state: int | None, reason: int | None) -> StateReason:
    """Convert libvirt's numbers into the reason that `engine.action` reads."""
    if state is None or reason is None:
        return "unknown"
    return "crashed" if resets.crashed((state, reason)) else "other"
