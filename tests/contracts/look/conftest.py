import pytest

# The suite's name is not a test module's; without this its failures would show no values.
pytest.register_assert_rewrite("tests.contracts.look.suite")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Test each adapter only in the conditions that its guests support."""
    if "condition" in metafunc.fixturenames and metafunc.cls is not None:
        metafunc.parametrize("condition", sorted(metafunc.cls.knows))
