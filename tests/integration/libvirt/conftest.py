"""Real hypervisors as the adapter sees them, and the guests that several tests share."""

from collections.abc import Iterator

import pytest

from deploy.lab.libvirt_lab import Guest, Guests, Lab

# The suite is no test module by name; without this its failures would show no values.
pytest.register_assert_rewrite("tests.contracts.hypervisor.suite")


@pytest.fixture(scope="module")
def pair(hypervisors: Lab) -> Iterator[tuple[Guest, Guest]]:
    """Two guests that are up; a boot costs 5 s, so that a module shares them."""
    made = Guests(hypervisors)
    try:
        first, second = made.define("first", "--nic"), made.define("second", "--pool", "hdd")
        for guest in (first, second):
            guest.start()
        for guest in (first, second):
            guest.wait()
        yield first, second
    finally:
        made.destroy()
