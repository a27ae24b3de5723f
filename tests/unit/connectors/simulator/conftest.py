import pytest

# Shared by the modules of this folder and no test module by name.
pytest.register_assert_rewrite("tests.unit.connectors.simulator.watching")
