import pytest

# Shared by the modules of this folder; its name is not a test module's.
pytest.register_assert_rewrite("tests.unit.connectors.simulator.screening_plan")
