"""A real planner and a real agent on real guests: the last steps after a detection."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from deploy.lab.libvirt_lab import Guests, Lab, wait_until
from deploy.lab.records import missing, read_records
from flatline.engine.wire.alert import Resolution
from flatline.engine.wire.order import OrderResult, encode_order
from flatline.engine.wire.score import Scores
from flatline.engine.wire.topics import ORDERS
from tests.integration.e2e.trial import alert_about
from tests.integration.libvirt.acting import CELL, NODE, OTHER, ActingNode
from tests.integration.libvirt.nodes import vm_of

pytestmark = [pytest.mark.libvirt, pytest.mark.slow]

OWNED = ("--tenant", "acme", "--actionable", "yes")
DISKS_MOVE = {
    'migrate = "auto" }': 'migrate = "auto", move_disk = "auto" }',
    "node_contention = [": (
        'degrading_storage = [{ action = "move_disk", deadline_s = 300, stable_s = 20 }]\n'
        "node_contention = ["
    ),
    "[modes]": '[pools]\nssd = ["hdd"]\n\n[modes]',
}


def test_a_disk_that_an_alert_names_is_moved_while_its_guest_writes(
    guests: Guests, hypervisors: Lab, tmp_path: Path
) -> None:
    guest = guests.boot("leaver", "--group", "leaver", *OWNED)
    vm, old = vm_of(hypervisors, guest.name, NODE), Path(guest.disk)
    new = hypervisors.home / "pools/hdd" / old.name
    with ActingNode(tmp_path, hypervisors, policy=DISKS_MOVE) as node:
        node.start_planner()
        wait_until(lambda: len(guest.records()) >= 3, within_s=30, what="records")
        alert = alert_about(
            guest, vm, id=uuid4().hex, instance=node.sample(vm).instance, kind="degrading_storage",
            suggested_action="move_disk", cpu_shape="unknown", disk="vda", pools=("ssd",),
            evidence=(),
        )  # fmt: skip
        node.say(alert)
        wait_until(lambda: bool(node.orders()), within_s=60, what="an order")
        [order] = node.orders()
        assert (order.action, order.disk, order.target) == ("move_disk", "vda", "hdd")
        mark = node.end_of(order)
        assert mark.outcome == "returned", mark.sentence
    moved = read_records(new)[-1]
    wait_until(
        lambda: read_records(new)[-1].sequence >= moved.sequence + 2,
        within_s=30,
        what="records on the new disk",
    )
    assert read_records(old)[-1].sequence <= moved.sequence
    assert missing(read_records(new)) == []
    assert guest.boots == 1


def test_a_guest_that_dies_again_after_three_repairs_is_quarantined_with_its_evidence_kept(
    guests: Guests, hypervisors: Lab, tmp_path: Path
) -> None:
    guest = guests.define("looper", "--dies", "--pvpanic", "--group", "looper", *OWNED)
    guest.start()
    guest.wait()
    vm = vm_of(hypervisors, guest.name, NODE)
    node = ActingNode(tmp_path, hypervisors)
    wait_until(lambda: node.sample(vm).state == "crashed", within_s=60, what="a crash")
    # Two repairs on the same day; they must be half an hour apart to be reported.
    for ago_s in (7_200, 3_600):
        order = node.order(vm, "reset", ago_s=ago_s, attested=True)
        done = OrderResult(
            incident=order.incident, step=0, vm=order.vm, node=NODE, agent=f"{NODE}/before",
            outcome="returned", dry_run=False, time_ms=order.issued_ms + 10_000,
            sentence="It was reset.",
        )  # fmt: skip
        value, headers = encode_order(done, node.agent_key)
        node.append(ORDERS.name, value, headers=headers, time_ms=done.time_ms)
    with node:
        node.start_planner()
        third = alert_about(guest, vm, id=uuid4().hex, instance=node.sample(vm).instance)
        node.say(third)
        wait_until(lambda: len(node.orders()) == 3, within_s=60, what="an order")
        assert node.end_of(node.orders()[-1]).outcome == "returned"
        guest.wait(boots=2)
        wait_until(lambda: node.sample(vm).state == "crashed", within_s=60, what="the next crash")
        helped = Resolution(reason="it booted", verified=True, stable_s=20.0)
        node.say(
            alert_about(
                guest, vm, id=third.id, instance=third.instance, state="resolved", transition=2,
                suggested_action="none", resolution=helped,
            )
        )  # fmt: skip
        node.say(alert_about(guest, vm, id=uuid4().hex, instance=third.instance))
        wait_until(lambda: bool(node.words()), within_s=60, what="a word of the planner")
        [command] = node.words()
        assert (command.kind, command.scope, command.subject) == ("quarantine", "vm", third.subject)
        assert command.reason == "it failed again after 3 repairs within 24 h"
        [bundle] = node.evidence()
        assert b"Kernel panic" in bundle["console.txt"]
        assert len(node.orders()) == 3
    assert guest.boots == 2


@contextmanager
def receiver(reported: list[dict[str, Any]]) -> Iterator[str]:
    """Run a webhook that stores its notices, and yield its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            reported.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/hook"
        finally:
            server.shutdown()
            thread.join()


def test_a_person_is_notified_of_a_guest_whose_requests_are_stuck_and_it_is_not_migrated(
    guests: Guests, hypervisors: Lab, tmp_path: Path
) -> None:
    guest = guests.boot("stuck", "--nbd", "--group", "stuck", *OWNED)
    vm = vm_of(hypervisors, guest.name, NODE)
    reported: list[dict[str, Any]] = []
    with receiver(reported) as url, ActingNode(tmp_path, hypervisors, webhook=url) as node:
        node.start_planner()
        instance = node.sample(vm).instance
        load = Scores(
            site="lab", cell=CELL, minute_ms=int(time.time() * 1000), uuids=b"", values=b"",
            classes=(), node_load={NODE: 0.9, OTHER: 0.1}, configuration="c",
        )  # fmt: skip
        node.report_load(load)
        with hypervisors.frozen(guest.nbd_pid):
            alert = alert_about(
                guest, vm, id=uuid4().hex, instance=instance, kind="node_contention",
                suggested_action="migrate", cpu_shape="unknown",
            )  # fmt: skip
            node.say(alert)

            def pages() -> list[str]:
                notices = [alert for body in reported for alert in body["alerts"]]
                return [n["annotations"]["summary"] for n in notices if n["labels"].get("incident")]

            wait_until(lambda: bool(pages()), within_s=90, what="a page")
            [order] = node.orders()
            assert (order.action, node.end_of(order).outcome) == ("migrate", "refused")
            assert "no disk request of the VM completed" in pages()[0]
            assert len(node.evidence()) == 1
            assert node.acted() == []
        alive = [body for body in reported if body["groupLabels"]["alertname"] == "FlatlineAlive"]
        assert alive
    assert guest.boots == 1
