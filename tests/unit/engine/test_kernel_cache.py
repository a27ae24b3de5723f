"""Cached kernels only save time: on any error in the folder, all are compiled."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from flatline.connectors.embedded.lock import FileLock
from flatline.engine.kernel_cache import compile_kept, users_folder
from flatline.models.kernels._jit import Kernel, kernel


def tripled(number: int) -> int:
    return 3 * number


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Kernel[[int], int]:
    mine: list[object] = []
    monkeypatch.setattr("flatline.models.kernels.kernel_files.KERNELS", mine)
    monkeypatch.setattr("flatline.models.kernels._jit.KERNELS", mine)
    return kernel(tripled)


@pytest.fixture
def compile_it(compiled: Kernel[[int], int]) -> Callable[[], None]:
    def compile_it() -> None:
        assert compiled(5) == 15

    return compile_it


def kept(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.nbc"))


def test_kernels_are_kept_in_a_folder_of_the_process_alone(
    tmp_path: Path, compile_it: Callable[[], None]
) -> None:
    compile_kept(compile_it, tmp_path / "kernels")
    assert len(kept(tmp_path / "kernels")) == 1
    assert (tmp_path / "kernels").stat().st_mode & 0o777 == 0o700


def test_what_others_could_have_written_is_not_loaded(
    tmp_path: Path, compile_it: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "kernels"
    folder.mkdir()
    folder.chmod(0o770)
    compile_kept(compile_it, folder)
    assert kept(folder) == []
    assert "users other than that of this process may write there" in capsys.readouterr().out


def test_two_processes_do_not_keep_kernels_at_once(
    tmp_path: Path, compile_it: Callable[[], None]
) -> None:
    (tmp_path / "kernels").mkdir(mode=0o700)
    other = FileLock.take(tmp_path / "kernels" / "lock")
    assert other is not None
    compile_kept(compile_it, tmp_path / "kernels")
    assert kept(tmp_path) == []
    other.release()


def test_a_folder_that_cannot_be_made_costs_time_alone(
    tmp_path: Path, compiled: Kernel[[int], int], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    done = []
    compile_kept(lambda: done.append(compiled(5)), tmp_path / "file" / "kernels")
    assert done == [15]
    assert "Compiled kernels cannot be cached in" in capsys.readouterr().out


def test_a_disk_that_is_full_meanwhile_costs_time_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tries = []

    def compile_it() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise OSError(28, "No space left on device")

    compile_kept(compile_it, tmp_path / "kernels")
    assert len(tries) == 2
    assert "No space left on device" in capsys.readouterr().out


def test_what_is_kept_goes_with_its_boot(
    tmp_path: Path, compile_it: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = tmp_path / "boot_id"
    monkeypatch.setattr("flatline.engine.kernel_cache._BOOT_ID", boot)
    boot.write_text("first\n")
    compile_kept(compile_it, tmp_path / "kernels")
    [before] = kept(tmp_path)
    boot.write_text("second\n")
    compile_kept(compile_it, tmp_path / "kernels")
    assert not before.exists()


def test_sources_side_by_side_leave_each_other_s_kernels_until_others_were_used_since(
    tmp_path: Path, compile_it: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kernels"
    for used_ns, name in enumerate("abcdae"):
        monkeypatch.setattr(
            "flatline.models.kernels.kernel_files.fingerprint", lambda name=name: name
        )
        compile_kept(compile_it, folder)
        if used_ns < 4:  # long ago, one after the other
            [own] = folder.glob(f"{name}-*")
            os.utime(own, ns=(used_ns, used_ns))
    assert {path.name[0] for path in folder.glob("*-*")} == {"a", "c", "d", "e"}


@pytest.mark.parametrize("relative", ["", "caches"])
def test_without_an_absolute_cache_of_xdg_a_user_has_the_one_in_the_home(
    monkeypatch: pytest.MonkeyPatch, relative: str
) -> None:
    monkeypatch.setenv("HOME", "/srv/u")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/u")
    assert users_folder() == Path("/var/cache/u/flatline/kernels")
    monkeypatch.setenv("XDG_CACHE_HOME", relative)
    assert users_folder() == Path("/srv/u/.cache/flatline/kernels")


def test_who_has_no_home_compiles_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("flatline.engine.kernel_cache.Path.home", homeless)
    assert not users_folder().parents[1].exists()
