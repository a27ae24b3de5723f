"""A disk is moved or it stays; the VM's state decides which of both is reported."""

from pathlib import Path
from typing import Any, cast

import pytest

from flatline.connectors.libvirt import disks
from flatline.connectors.libvirt.binding import Connection, Domain, Library
from flatline.connectors.libvirt.disks import DiskMove, disk_of, end_left_copy
from flatline.engine.errors import ActionRefused, HypervisorUnreachable
from tests.unit.connectors.libvirt.scripted import ScriptedError, ScriptedLibrary

GIB = 2**30
LIBRARY = cast(Library, ScriptedLibrary())


class CopiedDomain:
    """A VM with one disk; its copy becomes ready after `polls` queries, if it does not fail."""

    def __init__(self, folder: Path, *, polls: int = 2, fails: bool = False, lies: bool = False):
        self.path = str(folder / "ssd/vm.raw")
        self.goal: str | None = None
        self.polls, self.fails, self.lies = polls, fails, lies
        self.size = 1
        self.done: list[tuple[str, int]] = []
        self.extra = ""

    def XMLDesc(self, flags: int = 0) -> str:  # noqa: N802 -- libvirt's
        mirror = ""
        if self.goal is not None:
            self.polls -= 1
            if self.polls < 0 and self.fails:
                self.goal = None
            else:
                ready = " ready='yes'" if self.polls < 0 else ""
                mirror = f"<mirror type='file' file='{self.goal}'{ready}/>"
        return f"""<domain><devices><disk type='file' device='disk'>
            <driver name='qemu' type='raw'/><source file='{self.path}'/><target dev='vda'/>
            {mirror}{self.extra}</disk></devices></domain>"""

    def blockInfo(self, path: str, flags: int = 0) -> list[int]:  # noqa: N802
        return [self.size, 0, 0]

    def blockCopy(self, disk: str, xml: str, params: dict[str, int], flags: int) -> int:  # noqa: N802
        self.done.append(("copy", flags))
        self.goal = xml.split('source file="')[1].split('"')[0]
        return 0

    def blockJobInfo(self, disk: str, flags: int = 0) -> dict[str, int]:  # noqa: N802
        return {"cur": 5 * 2**20, "end": 9 * 2**20}

    def blockJobAbort(self, disk: str, flags: int) -> int:  # noqa: N802
        self.done.append(("abort", flags))
        if flags == 2 and self.goal is not None and not self.lies:
            self.path = self.goal
        self.goal = None
        return 0


class Pools:
    """A connection with the pools ssd and hdd, and an iSCSI one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("ssd", "hdd"):
            (folder / name).mkdir()

    def storagePoolLookupByName(self, name: str) -> Any:  # noqa: N802
        kind = {"ssd": "dir", "hdd": "dir", "san": "iscsi"}.get(name)
        if kind is None:
            raise ScriptedError(49, "no storage pool with matching name")
        target = self.folder / name

        class Pool:
            def XMLDesc(self, flags: int = 0) -> str:  # noqa: N802
                return (
                    f"<pool type='{kind}'><name>{name}</name>"
                    f"<target><path>{target}</path></target></pool>"
                )

        return Pool()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disks, "_POLL_S", 0.0)


def move(domain: CopiedDomain, pools: Pools, *, pool: str = "hdd", within_s: float = 9.0) -> None:
    DiskMove(LIBRARY, device="vda", pool=pool, within_s=within_s)(
        cast(Connection, pools), cast(Domain, domain), lambda: True
    )


def test_a_disk_goes_on_on_its_copy_once_the_copy_is_whole(tmp_path: Path) -> None:
    domain = CopiedDomain(tmp_path)
    move(domain, Pools(tmp_path))
    assert domain.path == str(tmp_path / "hdd/vm.raw")
    assert domain.done == [("copy", 4), ("abort", 2)]


def test_a_copy_that_fails_leaves_the_vm_on_its_old_disk(tmp_path: Path) -> None:
    domain = CopiedDomain(tmp_path, fails=True)
    with pytest.raises(ActionRefused, match=r"failed\. The VM still uses its old disk"):
        move(domain, Pools(tmp_path))
    assert domain.done == [("copy", 4)]


def test_a_copy_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    domain = CopiedDomain(tmp_path, polls=10_000)
    with pytest.raises(
        ActionRefused, match=r"not complete after 0 s \(5 of 9 MiB\) and was aborted"
    ):
        move(domain, Pools(tmp_path), within_s=0.0)
    assert domain.done == [("copy", 4), ("abort", 0)]


def test_no_pivot_follows_a_silence_of_libvirtd_beyond_the_deadline(tmp_path: Path) -> None:
    domain = CopiedDomain(tmp_path, polls=0)
    with pytest.raises(ActionRefused, match=r"was aborted\. The VM still uses its old disk"):
        move(domain, Pools(tmp_path), within_s=-1.0)
    assert domain.done == [("copy", 4), ("abort", 0)]


def test_an_error_after_the_copy_was_begun_is_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a lock timeout libvirt reports that nothing was done: this holds only for that query."""
    domain = CopiedDomain(tmp_path)

    def locked(_disk: str, _flags: int) -> int:
        raise ScriptedError(68, "cannot acquire state change lock")

    monkeypatch.setattr(domain, "blockJobAbort", locked)
    with pytest.raises(HypervisorUnreachable, match="was started, but its result is unknown"):
        move(domain, Pools(tmp_path))
    assert domain.done == [("copy", 4)]


def test_a_pivot_that_is_not_seen_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(HypervisorUnreachable, match="is not reported at"):
        move(CopiedDomain(tmp_path, lies=True), Pools(tmp_path))


@pytest.mark.parametrize(
    ("pool", "words"),
    [("nowhere", "is unknown here"), ("san", "of kind iscsi"), ("ssd", "already")],
)
def test_a_pool_that_cannot_take_a_file_is_refused(tmp_path: Path, pool: str, words: str) -> None:
    domain = CopiedDomain(tmp_path)
    with pytest.raises(ActionRefused, match=words):
        move(domain, Pools(tmp_path), pool=pool)
    assert domain.done == []


def test_a_pool_without_room_or_with_a_file_of_that_name_is_refused(tmp_path: Path) -> None:
    pools, domain = Pools(tmp_path), CopiedDomain(tmp_path)
    domain.size = 2**60
    with pytest.raises(ActionRefused, match=r"GiB free\. The disk may grow to"):
        move(domain, pools)
    (tmp_path / "hdd/vm.raw").touch()
    with pytest.raises(ActionRefused, match="already exists"):
        move(domain, pools)
    assert domain.done == []


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("<readonly/>", "does not write to"),
        ("<shareable/>", "shared with other VMs"),
        ("", "no disk vdz"),
    ],
)
def test_a_disk_that_is_not_the_vms_own_to_write_is_refused(
    tmp_path: Path, extra: str, words: str
) -> None:
    domain = CopiedDomain(tmp_path)
    domain.extra = extra
    with pytest.raises(ActionRefused, match=words):
        disk_of(domain.XMLDesc(), "vda" if extra else "vdz")


def left(domain: CopiedDomain, pools: Pools, *, pool: str = "hdd") -> None:
    end_left_copy(
        cast(Connection, pools), cast(Domain, domain), device="vda", pool=pool, library=LIBRARY
    )


def test_a_copy_left_behind_is_given_up(tmp_path: Path) -> None:
    domain, pools = CopiedDomain(tmp_path), Pools(tmp_path)
    domain.goal = str(tmp_path / "hdd/vm.raw")
    with pytest.raises(ActionRefused, match="was aborted"):
        left(domain, pools)
    assert domain.done == [("abort", 0)]


def test_a_copy_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    domain, pools = CopiedDomain(tmp_path), Pools(tmp_path)
    domain.goal = "/backup/vm.raw"
    with pytest.raises(ActionRefused, match="was not moved"):
        left(domain, pools)
    assert domain.done == []


def test_a_copy_to_a_pool_that_disappeared_is_of_unknown_outcome(tmp_path: Path) -> None:
    domain, pools = CopiedDomain(tmp_path), Pools(tmp_path)
    domain.goal = str(tmp_path / "gone/vm.raw")
    with pytest.raises(HypervisorUnreachable, match="is still running: pool gone is unknown"):
        left(domain, pools, pool="gone")
    assert domain.done == []


def test_a_pivot_that_happened_before_the_agent_died_is_a_move_that_is_done(tmp_path: Path) -> None:
    domain, pools = CopiedDomain(tmp_path), Pools(tmp_path)
    domain.path = str(tmp_path / "hdd/vm.raw")
    left(domain, pools)
    assert domain.done == []
