"""A compiled kernel is loaded the next time, and only where it is the same."""

from pathlib import Path
from typing import Any

import pytest

from flatline.models.kernels._jit import kernel
from flatline.models.kernels.kernel_files import fingerprint, kept_in


def doubled(number):
    return 2 * number


@pytest.fixture(autouse=True)
def others_are_left_out(monkeypatch):
    # Kernels of other tests stay unchanged.
    mine: list[Any] = []
    monkeypatch.setattr("flatline.models.kernels.kernel_files.KERNELS", mine)
    monkeypatch.setattr("flatline.models.kernels._jit.KERNELS", mine)


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def loads(compiled: Any) -> int:
    return sum(compiled.stats.cache_hits.values())


def test_a_kernel_that_was_kept_is_loaded_and_gives_the_same(tmp_path):
    first = kernel(doubled)
    with kept_in(tmp_path):
        assert first(4) == 8
    second = kernel(doubled)
    with kept_in(tmp_path):
        assert second(4) == 8
    assert loads(first) == 0
    assert loads(second) == 1


def test_what_is_compiled_after_the_block_is_not_kept(tmp_path):
    compiled = kernel(doubled)
    with kept_in(tmp_path):
        compiled(4)
    kept = files_in(tmp_path)
    assert compiled(0.5) == 1.0
    assert kept
    assert files_in(tmp_path) == kept


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    compiled = kernel(doubled)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file cannot be written"), kept_in(tmp_path / "file"):
        compiled(4)
    assert compiled(4) == 8
    assert files_in(tmp_path) == [tmp_path / "file"]


def test_any_change_of_a_source_or_a_switch_is_another_fingerprint(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    callee = tmp_path / "inner" / "callee.py"
    callee.write_text("x = 1")
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    callee.write_text("x = 2")
    changed = fingerprint(tmp_path)
    (tmp_path / "new.py").write_text("")
    added = fingerprint(tmp_path)
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "1")
    assert len({before, changed, added, fingerprint(tmp_path)}) == 4


def test_the_models_own_sources_are_covered():
    assert fingerprint() == fingerprint(Path(__file__).parents[4] / "models")
