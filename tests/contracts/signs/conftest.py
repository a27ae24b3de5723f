import pytest

# The suite is no test module by name; without this its failures would show no values.
pytest.register_assert_rewrite("tests.contracts.signs.suite")
