"""Real guests fail under real libvirt; real processes detect and repair it through real Kafka."""

import time
from typing import NamedTuple

import pytest

from benchmarks.report import report
from deploy.lab.libvirt_lab import Guest, Lab, wait_until
from deploy.lab.records import missing
from flatline.engine.keyring import own_key
from flatline.engine.wire.alert import Alert, EvidenceItem, SamplePosition, alert_id, encode_alert
from flatline.engine.wire.topics import ALERTS
from tests.integration.e2e.fleet import Fleet, at_first_reboot, untouched
from tests.integration.e2e.process import run
from tests.integration.e2e.site import CELL, NODE, Site
from tests.signing import with_signature

pytestmark = [pytest.mark.kafka, pytest.mark.libvirt, pytest.mark.slow]

# A guest counts as known after ten signs of life, which make a silence significant.
FRAMES_BEFORE = 15
# DESIGN 9: an order within 60 s at p95; a busy machine of two cores gets twice that.
ALERT_S = 60.0
ORDER_S = 90.0
VERIFIED_S = 180.0
# An engine needs 10 s of a core before it reads, and the spinning guest uses one of two.
RESTART_S = 180.0


class Steps(NamedTuple):
    """Seconds from the panic to each step of its repair."""

    alert_s: float
    order_s: float
    reset_s: float
    userland_s: float
    verified_s: float


@pytest.fixture(scope="class")
def running(site: Site) -> Site:
    site.start("collect", "engine", "plan", "act")
    site.wait_for_frames(FRAMES_BEFORE, within_s=120)
    # An engine that holds partitions writes ticks to idle ones. Its first start compiles, 20 s of a
    # core that guests and a broker need as well.
    site.wait_until(lambda: "shell" in site.writers(), within_s=120, what="a tick of the engine")
    return site


@pytest.fixture(scope="class")
def calm(fleet: Fleet) -> None:
    """Free the core of the burner for an engine that restarts."""
    fleet.dismiss(fleet.burner)


class TestOnePlanner:
    def test_a_real_guest_panics_and_is_reset_and_verified(
        self, running: Site, fleet: Fleet, capsys: pytest.CaptureFixture[str]
    ) -> None:
        victim, before = fleet.victim, fleet.boots()
        vm = running.vm(victim.name)
        with victim.pinged() as pings:
            wait_until(lambda: len(pings.answered_s()) >= 2, within_s=30, what="answers to ping")
            last = victim.records()[-1]
            panic_s = time.time()
            victim.tell("panic")
            steps = follow_repair(running, victim, vm, panic_s=panic_s)
            silent = [s for s in pings.unanswered_s() if s > panic_s]
            assert silent, "the pings went on, so the card went on receiving"

        [order] = [seen.order for seen in running.orders(vm) if seen.time_s >= panic_s]
        assert (order.action, order.step, order.dry_run) == ("reset", 0, False)
        wait_until(lambda: victim.records()[-1] > last, within_s=20, what="records again")
        assert victim.records()[-1].boot == last.boot + 1
        assert missing(victim.records()) == []
        assert victim.boots == before["victim"] + 1
        assert untouched(before, fleet.boots(), but=victim)
        assert [seen.order.vm for seen in running.orders()] == [vm]
        with capsys.disabled():
            tell(steps)

    def test_an_alert_that_no_engine_signed_leads_to_no_order(
        self, running: Site, fleet: Fleet
    ) -> None:
        vm = running.vm(fleet.writer.name)
        value, headers = encode_alert(forged(vm, instance=running.instance(vm)))
        running.watcher.append(ALERTS.name, key=CELL.encode(), value=value, headers=headers)
        running.wait_until(
            lambda: any(
                f"A record of {ALERTS.name} was rejected: no signature" in entry.sentence
                for entry in running.watcher.journal()
            ),
            within_s=30,
            what="the refusal of the forged alert",
        )
        assert running.orders(vm) == []

    def test_a_live_guest_is_not_reset_by_an_alert_of_a_stolen_engine_key(
        self, running: Site, fleet: Fleet
    ) -> None:
        writer, before = fleet.writer, fleet.boots()
        vm = running.vm(writer.name)
        alert = forged(vm, instance=running.instance(vm))
        key = own_key(running.processes["engine"].state / "keys", "engine")
        value, headers = with_signature(encode_alert(alert), key)
        running.watcher.append(ALERTS.name, key=CELL.encode(), value=value, headers=headers)
        running.wait_until(
            lambda: bool(running.marks(vm)), within_s=60, what="the end of the forged order"
        )
        [mark] = [seen.result for seen in running.marks(vm)]
        assert (mark.incident, mark.outcome) == (alert.id, "refused")
        assert mark.sentence.startswith("Refused: the VM is alive: disk-write requests increased")
        assert running.calls(vm) == []
        running.wait_until(
            lambda: mark.sentence in [entry.sentence for entry in running.watcher.journal()],
            within_s=30,
            what="the refusal in the journal",
        )
        last = writer.records()[-1]
        wait_until(lambda: writer.records()[-1] > last, within_s=20, what="records")
        assert untouched(before, fleet.boots())

    def test_a_guest_whose_processes_all_hang_is_alerted_and_never_reset(
        self, running: Site, fleet: Fleet
    ) -> None:
        hanger, before = fleet.hanger, fleet.boots()
        vm = running.vm(hanger.name)
        frozen_s = time.time()
        hanger.tell("freeze")
        try:
            running.wait_until(
                lambda: bool(running.firing(vm, since_s=frozen_s)),
                within_s=90,
                what="an alert about the guest whose processes hang",
            )
            running.wait_for_frames(6, within_s=60)
            assert hanger.answers_ping()
            seen = {(s.alert.kind, s.alert.suggested_action) for s in running.alerts(vm)}
            # The kind depends on whether another VM of the node waits for a disk meanwhile.
            assert seen <= {("hung_userland", "alert"), ("hung_io", "alert")}
        finally:
            hanger.tell("thaw")
        assert running.orders(vm) == []
        assert untouched(before, fleet.boots())


@pytest.mark.usefixtures("calm")
class TestKillsAndRaces:
    def test_a_killed_engine_and_a_killed_agent_leave_exactly_one_reset(
        self, running: Site, fleet: Fleet, hypervisors: Lab
    ) -> None:
        victim, before = fleet.victim, fleet.boots()
        vm, engine, agent = running.vm(victim.name), *running.pick("engine", "act")
        with at_first_reboot(hypervisors, NODE, agent.kill):
            panic_s = time.time()
            victim.tell("panic")
            running.wait_until(
                lambda: bool(running.firing(vm, since_s=panic_s)), within_s=ALERT_S, what="alert"
            )
            engine.kill()
            assert running.orders(vm) == []
            engine.start()
            running.wait_until(
                lambda: bool(running.orders(vm)), within_s=RESTART_S, what="an order"
            )
            running.wait_until(lambda: agent.is_gone, within_s=30, what="the agent's call")
        agent.start()
        running.wait_until(
            lambda: bool(running.verified(vm, since_s=panic_s)),
            within_s=VERIFIED_S,
            what="the engine's word that the reset helped",
        )
        running.wait_for_frames(5, within_s=60)
        incidents = {seen.alert.id for seen in running.alerts(vm, since_s=panic_s)}
        assert [(s.order.incident, s.order.step) for s in running.orders(vm)] == [
            (incident, 0) for incident in incidents
        ]
        assert len(running.calls(vm)) <= 1
        assert agent.stop() == 0
        assert running.promised(vm).count("sent") == 1
        agent.start()
        assert victim.boots == before["victim"] + 1
        assert untouched(before, fleet.boots(), but=victim)

    def test_two_planners_and_one_that_slept_lead_to_one_reset(
        self, running: Site, fleet: Fleet
    ) -> None:
        writer, before = fleet.writer, fleet.boots()
        vm = running.vm(writer.name)
        second, sleeper, agent = running.pick("second", "sleeper", "act")
        running.start("second", "sleeper")
        for process in (second, sleeper):
            process.says("starts under policy", within_s=60)
        running.wait_for_frames(2, within_s=30)
        sleeper.pause()

        panic_s = time.time()
        writer.tell("panic")
        follow_repair(running, writer, vm, panic_s=panic_s)
        sleeper.resume()
        running.wait_for_frames(5, within_s=60)

        [incident] = {seen.alert.id for seen in running.alerts(vm, since_s=panic_s)}
        given = {(s.order.incident, s.order.step) for s in running.orders(vm)}
        assert given == {(incident, 0)}
        assert len(running.calls(vm)) == 1
        for process in (sleeper, second, agent):
            assert process.stop() == 0
        assert running.promised(vm).count("sent") == 1
        assert untouched(before, fleet.boots(), but=writer)
        assert writer.boots == before["writer"] + 1
        assert "no errors found" in run("audit", "verify", config=agent.config)


def follow_repair(site: Site, guest: Guest, vm: str, *, panic_s: float) -> Steps:
    """Return when each step of the repair was done, in seconds after the panic."""
    boots = guest.boots

    def ordered() -> bool:
        return any(seen.time_s >= panic_s for seen in site.orders(vm))

    site.wait_until(lambda: bool(site.firing(vm, since_s=panic_s)), within_s=ALERT_S, what="alert")
    site.wait_until(ordered, within_s=ORDER_S, what="an order")
    site.wait_until(lambda: bool(site.calls(vm)), within_s=30, what="the agent's call")
    site.wait_until(lambda: guest.boots > boots, within_s=60, what="userland after the reset")
    userland_s = time.time()
    site.wait_until(
        lambda: bool(site.verified(vm, since_s=panic_s)), within_s=VERIFIED_S, what="verified"
    )
    call = next(e for e in site.watcher.journal() if e.kind == "call" and e.vm == vm)
    order = next(seen for seen in site.orders(vm) if seen.time_s >= panic_s)
    steps = Steps(
        alert_s=site.firing(vm, since_s=panic_s)[0].time_s - panic_s,
        order_s=order.time_s - panic_s,
        reset_s=call.time_ms / 1000 - panic_s,
        userland_s=userland_s - panic_s,
        verified_s=site.verified(vm, since_s=panic_s)[0].time_s - panic_s,
    )
    assert steps.alert_s < ALERT_S
    assert steps.order_s < ALERT_S + ORDER_S
    return steps


def tell(steps: Steps) -> None:
    """Write the figures to reports/end_to_end.json and print them."""
    phases = ("alert", "order", "reset", "userland", "verified")
    report(
        "end_to_end",
        claim="Seconds from a real guest's panic, sampled every 2 s; goal: order within 60 s",
        rows=[
            {"from panic to": phase, "seconds": round(seconds, 1)}
            for phase, seconds in zip(phases, steps, strict=True)
        ],
        goals_met=steps.order_s <= 60,
    )


def forged(vm: str, *, instance: int) -> Alert:
    """Return an alert on a healthy guest that meets all conditions of a planner."""
    now_ms = int(time.time() * 1000)
    position = SamplePosition(node=NODE, role="collector", run="forged", sequence=1)
    return Alert(
        id=alert_id(scope="vm", subject=vm, position=position),
        transition=0,
        scope="vm",
        subject=vm,
        site="lab",
        zone="lab",
        cell=CELL,
        kind="panic_spin",
        state="firing",
        severity="critical",
        confidence=1.0,
        onset_ms=now_ms - 30_000,
        opened_ms=now_ms - 30_000,
        decided_ms=now_ms,
        suggested_action="reboot",
        sentence="writer stopped reading, writing and sending, and uses one vCPU at 100 %.",
        position=position,
        configuration="forged",
        node=NODE,
        instance=instance,
        name="writer",
        tenant="acme",
        group="mail",
        actionable=True,
        history_s=90_000.0,
        cpu_shape="all_cores",
        data_ms=now_ms,
        witnesses=("activity", "balloon"),
        evidence=(EvidenceItem(signal="silence", nats=9.0), EvidenceItem(signal="cpu", nats=5.0)),
    )
