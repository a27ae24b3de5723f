from collections.abc import Callable, Mapping

import pytest

from flatline.connectors.simulator.virtual_time import VirtualLoop

# The suite's name is not a test module's; without this its failures would show no values.
pytest.register_assert_rewrite("tests.contracts.hypervisor.suite")


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], VirtualLoop]]:
    return {"virtual": VirtualLoop}
