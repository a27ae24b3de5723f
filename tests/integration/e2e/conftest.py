"""Real processes, a real broker and real guests, set up once for all tests of a class."""

from collections.abc import Generator, Iterator

import pytest

from deploy.lab.kafka_broker import Cluster
from deploy.lab.libvirt_lab import Guests, Lab
from tests.integration.e2e.fleet import Fleet
from tests.integration.e2e.site import Site

TAIL_LINES = 40


@pytest.fixture(scope="module")
def fleet(hypervisors: Lab) -> Iterator[Fleet]:
    """Four guests on hypervisor a whose userlands are up."""
    guests = Guests(hypervisors)
    try:
        fleet = Fleet(guests)
        fleet.boot()
        yield fleet
    finally:
        guests.destroy()


@pytest.fixture(scope="class")
def site(
    fleet: Fleet, hypervisors: Lab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A site on a separate broker, so that orders of other classes do not count in its limits."""
    folder = tmp_path_factory.mktemp("site")
    with (
        Cluster(folder / "kafka") as broker,
        Site(folder / "roles", broker=broker, lab=hypervisors) as site,
    ):
        yield site


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the last output of every process when a test failed."""
    report = yield
    site = getattr(item, "funcargs", {}).get("site")
    if report.failed and isinstance(site, Site):
        for name, process in site.processes.items():
            tail = "\n".join(process.log.splitlines()[-TAIL_LINES:])
            report.sections.append((f"last words of {name}", tail))
    return report
