import pytest

# The suite's name is not a test module's; without this its failures would show no values.
pytest.register_assert_rewrite("tests.contracts.preflight.suite")
