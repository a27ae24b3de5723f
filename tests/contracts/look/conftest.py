import pytest

# The suite is no test module by name; without this its failures would show no values.
pytest.register_assert_rewrite("tests.contracts.look.suite")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Try each adapter in the conditions that its guests can be in, and no others."""
    if "condition" in metafunc.fixturenames and metafunc.cls is not None:
        metafunc.parametrize("condition", sorted(metafunc.cls.knows))
