"""The lab shows the faults of real guests as a hypervisor sees them."""

import os
import signal
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from deploy.lab.libvirt_lab import Guest, Guests, Lab, wait_until
from deploy.lab.records import missing

pytestmark = pytest.mark.libvirt

# After a panic the balloon's figures age by a second each second; a live guest renews them every 2
# s.
STALE_BALLOON_S = 6.0
# A spinning vCPU uses a whole core if one is free; a writing guest uses 0.04 of it.
SPINNING = 0.3


@dataclass(frozen=True)
class Sample:
    """One guest's domstats, and their time."""

    at_s: float
    state: int
    cpu_s: float
    writes_total: int
    balloon_age_s: float


def opened(uri: str) -> Any:
    # Imported here, so that a machine without libvirt can collect this file and report the lack.
    import libvirt

    libvirt.registerErrorHandler(lambda *_: None, None)
    return libvirt.open(uri)


def sampler(guest: Guest) -> Callable[[], Sample]:
    connection = opened(guest.lab.uri(guest.hypervisor))
    domain = connection.lookupByName(guest.name)

    def sample() -> Sample:
        [(_, stats)] = connection.domainListGetStats([domain])
        return Sample(
            at_s=time.monotonic(),
            state=stats["state.state"],
            cpu_s=stats["cpu.time"] / 1e9,
            writes_total=stats["block.0.wr.reqs"],
            balloon_age_s=time.time() - stats["balloon.last-update"],
        )

    return sample


def test_a_guest_writes_a_checked_record_about_once_a_second(guests: Guests) -> None:
    guest = guests.boot("writer")
    wait_until(lambda: len(guest.records()) >= 5, within_s=20, what="five records")
    assert missing(guest.records()) == []


def test_a_panicked_guest_spins_in_state_running_and_a_reset_brings_it_back(
    guests: Guests,
) -> None:
    guest = guests.boot("panicked", "--pool", "hdd")
    sample = sampler(guest)
    wait_until(lambda: sample().balloon_age_s < 4, within_s=20, what="fresh balloon figures")
    wait_until(lambda: len(guest.records()) >= 2, within_s=20, what="two records")
    guest.tell("panic")
    wait_until(lambda: "Kernel panic" in guest.console, within_s=30, what="a panic on the console")

    before = sample()
    wait_until(
        lambda: sample().balloon_age_s > STALE_BALLOON_S, within_s=20, what="a stale balloon"
    )
    after = sample()

    assert after.writes_total == before.writes_total
    assert (after.cpu_s - before.cpu_s) / (after.at_s - before.at_s) > SPINNING
    assert after.state == 1  # running: the state does not show that it is dead
    last = guest.records()[-1]

    opened(guest.lab.uri("a")).lookupByName(guest.name).reset()
    guest.wait(boots=2)
    wait_until(lambda: sample().writes_total > after.writes_total, within_s=30, what="writes again")
    wait_until(lambda: guest.records()[-1] > last, within_s=30, what="a record of the new boot")
    assert guest.records()[-1].boot == last.boot + 1


def test_a_frozen_guest_answers_ping_and_a_panicked_one_does_not(guests: Guests) -> None:
    guest = guests.boot("pinged", "--nic")
    sample = sampler(guest)
    with guest.pinged() as pings:
        wait_until(lambda: len(pings.answered_s()) >= 2, within_s=30, what="answers to ping")
        wait_until(lambda: sample().writes_total > 0, within_s=20, what="a first write")
        guest.tell("freeze")
        frozen_at_s, frozen = time.time(), sample()
        wait_until(
            lambda: len([s for s in pings.answered_s() if s > frozen_at_s + 1]) >= 4,
            within_s=30,
            what="answers of a frozen guest",
        )
        assert sample().writes_total == frozen.writes_total
        guest.tell("thaw")
        guest.tell("panic")
        panicked_at_s = time.time()
        wait_until(
            lambda: len([s for s in pings.unanswered_s() if s > panicked_at_s]) >= 4,
            within_s=30,
            what="silence of a panicked guest",
        )
    assert max(pings.answered_s()) < panicked_at_s + 1


def test_an_agent_answers_until_its_processes_are_stopped_and_halted_vcpus_gain_nothing(
    guests: Guests,
) -> None:
    import libvirt
    import libvirt_qemu

    guest = guests.boot("agent", "--vcpus", "2", "--no-balloon-stats", "--agent")
    connection = opened(guest.lab.uri("a"))
    domain = connection.lookupByName(guest.name)

    def answers() -> bool:
        try:
            libvirt_qemu.qemuAgentCommand(domain, '{"execute": "guest-ping"}', 2, 0)
        except libvirt.libvirtError:
            return False
        return True

    def vcpu_times() -> tuple[int, ...]:
        [(_, stats)] = connection.domainListGetStats([domain])
        return tuple(stats[f"vcpu.{n}.time"] + stats[f"vcpu.{n}.delay"] for n in range(2))

    wait_until(answers, within_s=20, what="an answer of the agent")
    guest.tell("freeze")
    wait_until(lambda: not answers(), within_s=20, what="silence of a stopped agent")
    guest.tell("thaw")
    wait_until(answers, within_s=20, what="an answer of the agent that goes on")
    guest.tell("halt")
    wait_until(lambda: "System halted" in guest.console, within_s=20, what="a halt")
    halted = vcpu_times()
    ended_s = time.monotonic() + 5
    wait_until(lambda: time.monotonic() > ended_s, within_s=10, what="five seconds")
    assert vcpu_times() == halted


def test_storage_of_the_network_and_a_frozen_file_system_hold_a_writer_up(guests: Guests) -> None:
    san = guests.define("san", "--nic", "--san")
    files = guests.define("files", "--files")
    for guest in (san, files):
        guest.start()
    for guest in (san, files):
        guest.wait()
    disk = san.lab.home / "guests" / f"{san.name}.san"
    sample = sampler(files)

    def written() -> tuple[int, int]:
        return disk.stat().st_mtime_ns, sample().writes_total

    def both_write() -> bool:
        return all(now > before for before, now in zip(first, written(), strict=True))

    first = written()
    wait_until(both_write, within_s=30, what="writes of both")
    assert sampler(san)().writes_total == 0
    os.kill(san.san_pid, signal.SIGSTOP)
    files.tell("frozen 12")
    frozen_s = time.monotonic()
    # Writes in progress when the file system was frozen are on the disk by then.
    wait_until(lambda: time.monotonic() > frozen_s + 3, within_s=10, what="three seconds")
    first = written()
    wait_until(lambda: time.monotonic() > frozen_s + 8, within_s=20, what="eight seconds")
    assert written() == first
    os.kill(san.san_pid, signal.SIGCONT)
    wait_until(both_write, within_s=60, what="writes of both again")


def test_a_migrated_guest_loses_no_record_and_still_obeys(guests: Guests) -> None:
    guest = guests.boot("mover", "--nic")
    # More than it can write between its arrival on b and the sample there.
    wait_until(lambda: len(guest.records()) >= 12, within_s=40, what="twelve records")
    writes_total = sampler(guest)().writes_total
    guest.migrate("b")
    assert guest.hypervisor == "b"
    assert sampler(guest)().writes_total < writes_total  # counters restart on the target

    moved = guest.records()[-1]
    wait_until(
        lambda: guest.records()[-1].sequence >= moved.sequence + 3,
        within_s=20,
        what="three records from the target",
    )
    guest.tell("up")
    assert guest.answers_ping()
    assert guest.boots == 1
    assert missing(guest.records()) == []


def test_a_burning_guest_spins_and_has_never_written(guests: Guests) -> None:
    guest = guests.boot("burner", "--burn")
    sample = sampler(guest)
    before = sample()
    wait_until(lambda: sample().at_s > before.at_s + 3, within_s=30, what="three seconds")
    after = sample()
    assert (after.cpu_s - before.cpu_s) / (after.at_s - before.at_s) > SPINNING
    assert after.writes_total == 0
    assert after.balloon_age_s < STALE_BALLOON_S
    assert guest.records() == []


def test_a_panic_device_has_the_domain_crashed_and_a_resume_after_reset_revives_it(
    guests: Guests,
) -> None:
    guest = guests.boot("device", "--pvpanic")
    sample = sampler(guest)
    guest.tell("panic")
    wait_until(lambda: sample().state == 6, within_s=30, what="the state crashed")
    domain = opened(guest.lab.uri("a")).lookupByName(guest.name)
    domain.reset()
    domain.resume()
    guest.wait(boots=2)


def test_the_owner_reboots_through_acpi(guests: Guests) -> None:
    guest = guests.boot("owned")
    opened(guest.lab.uri("a")).lookupByName(guest.name).reboot()
    guest.wait(boots=2)
    assert "Kernel panic" not in guest.console


def test_what_flatline_needs_to_know_of_a_vm_is_in_its_domain(guests: Guests) -> None:
    words = ["--tenant", "acme", "--group", "web", "--flavor", "small", "--actionable", "yes"]
    guest = guests.define("described", *words)
    xml = opened(guest.lab.ro_uri("a")).lookupByName(guest.name).XMLDesc()
    element = ET.fromstring(xml).find("metadata/{https://flatline.io/xmlns/domain/1}vm")
    assert element is not None
    expected = {"tenant": "acme", "group": "web", "flavor": "small", "actionable": "yes"}
    assert element.attrib == expected


def test_a_killed_libvirtd_leaves_its_guests_running_and_finds_them_again(
    hypervisors: Lab, guests: Guests
) -> None:
    guest = guests.boot("orphan")
    wait_until(lambda: len(guest.records()) >= 1, within_s=20, what="a record")
    qemu_pid = guest.qemu_pid
    hypervisors.kill("a")
    last = guest.records()[-1]
    wait_until(lambda: guest.records()[-1] > last, within_s=30, what="writes without libvirtd")
    hypervisors.start("a")
    assert guest.qemu_pid == qemu_pid
    assert sampler(guest)().state == 1
