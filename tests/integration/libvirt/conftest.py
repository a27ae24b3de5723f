"""Real hypervisors through the adapter, and the guests that several tests share."""

from collections.abc import Iterator

import pytest

from deploy.lab.libvirt_lab import Guest, Guests, Lab

# The suite's name is not a test module's; without this its failures would show no values.
pytest.register_assert_rewrite("tests.contracts.hypervisor.suite")


@pytest.fixture(scope="module")
def pair(hypervisors: Lab) -> Iterator[tuple[Guest, Guest]]:
    """Two running guests; a boot takes 5 s, so a module shares them."""
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
