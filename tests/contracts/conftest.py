import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Test each adapter only in the conditions of `PreflightContract` that its guests support."""
    if "condition" in metafunc.fixturenames and metafunc.cls is not None:
        metafunc.parametrize("condition", sorted(metafunc.cls.knows))
