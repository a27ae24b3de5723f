# ruff: noqa: N802 -- the names are libvirt's
"""Evidence is limited, private and short-lived, and lists its missing parts."""

import asyncio
import json
import os
import time
from pathlib import Path
from typing import cast

import pytest

from flatline.connectors.libvirt.binding import Connection, Domain, Library
from flatline.connectors.libvirt.evidence import CONSOLE_TAIL_BYTES, Gathering, console_tail
from flatline.connectors.libvirt.evidence_folder import BUNDLE_MAX_BYTES, KEEP_S, EvidenceFolder
from flatline.connectors.libvirt.inventory import NAMESPACE
from flatline.engine.errors import StateUnwritable
from tests.unit.connectors.libvirt.scripted import ScriptedLibrary


def serial(inner: str, *, kind: str = "file") -> str:
    return f"<domain><devices><serial type='{kind}'>{inner}</serial></devices></domain>"


def kept(folder: Path, parts: dict[str, bytes], *, name: str = "vm", within_s: float = 9.0) -> Path:
    path, _names = asyncio.run(
        EvidenceFolder(folder).write(name, parts, {"missing": {}}, within_s=within_s)
    )
    return path


def test_the_end_of_a_console_is_kept_and_not_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"x" * CONSOLE_TAIL_BYTES + b"Kernel panic")
    tail = console_tail(serial(f"<source path='{path}'/>"))
    assert len(tail) == CONSOLE_TAIL_BYTES
    assert tail.endswith(b"Kernel panic")


def test_a_port_that_somebody_reads_is_taken_from_its_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("boot")
    assert console_tail(serial(f"<log file='{path}'/>", kind="pty")) == b"boot"


@pytest.mark.parametrize("inner", ["", "<source path='/dev/pts/3'/>"])
def test_a_console_that_goes_nowhere_is_named_as_missing(inner: str) -> None:
    with pytest.raises(ValueError, match="has no log file"):
        console_tail(serial(inner, kind="pty"))


def test_a_console_that_is_a_pipe_or_a_link_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        console_tail(serial(f"<source path='{tmp_path}/pipe'/>"))
    (tmp_path / "target").write_text("secret")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        console_tail(serial(f"<source path='{tmp_path}/link'/>"))


def test_a_bundle_can_be_read_by_its_owner_alone(tmp_path: Path) -> None:
    bundle = kept(tmp_path / "evidence", {"console.txt": b"panic"})
    assert bundle.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "evidence").stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in bundle.iterdir()} == {0o600}


def test_a_bundle_that_is_too_large_is_cut_and_says_so(tmp_path: Path) -> None:
    bundle = kept(tmp_path, {"console.txt": b"panic", "screen.png": bytes(BUNDLE_MAX_BYTES)})
    assert (bundle / "console.txt").read_bytes() == b"panic"
    assert sum(f.stat().st_size for f in bundle.iterdir()) < BUNDLE_MAX_BYTES + 4096
    assert json.loads((bundle / "about.json").read_text())["cut"] == ["screen.png"]


def test_what_is_older_than_a_week_is_deleted(tmp_path: Path) -> None:
    old, young = kept(tmp_path, {"a": b"1"}, name="old"), kept(tmp_path, {"a": b"1"}, name="young")
    long_ago_s = time.time() - KEEP_S - 60
    os.utime(old, (long_ago_s, long_ago_s))
    asyncio.run(EvidenceFolder(tmp_path).tidy())
    assert [path.name for path in tmp_path.iterdir()] == [young.name]


def test_the_oldest_bundles_make_room_for_new_ones(tmp_path: Path) -> None:
    for name in ("20200101T000000Z-a", "20200102T000000Z-b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "console.txt").write_bytes(bytes(600))
    asyncio.run(EvidenceFolder(tmp_path, max_bytes=1000).tidy())
    assert [path.name for path in tmp_path.iterdir()] == ["20200102T000000Z-b"]


def test_a_folder_that_cannot_be_written_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StateUnwritable, match="taken"):
        kept(tmp_path / "taken", {"console.txt": b"panic"})


class Screen:
    """A VM with a screen; screenshots are counted."""

    def __init__(self) -> None:
        self.taken = 0

    def screenshot(self, stream: "Screen", screen: int, flags: int = 0) -> str:
        self.taken += 1
        return "image/png"

    def newStream(self, flags: int = 0) -> "Screen":
        return self

    def recv(self, nbytes: int) -> bytes:
        return b"" if self.taken > 1 else self._first()

    def _first(self) -> bytes:
        self.taken += 1
        return b"picture"

    def finish(self) -> int:
        return 0

    def XMLDesc(self, flags: int = 0) -> str:
        return self.xml

    def domainListGetStats(self, *_asked: object) -> list[object]:
        return []

    xml = ""


@pytest.mark.parametrize(
    ("marks", "taken"),
    [
        ("screenshots='yes'", True),
        ("screenshots='no'", False),
        ("screenshots='YES'", False),
        ("", False),
    ],
)
def test_a_screen_is_pictured_only_with_its_owner_s_consent(
    marks: str, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flatline.connectors.libvirt.evidence._SAMPLE_GAP_S", 0.0)
    screen = Screen()
    screen.xml = (
        f"<domain><metadata><f:vm xmlns:f='{NAMESPACE}' {marks}/></metadata><devices/></domain>"
    )
    gathering = Gathering()
    gathering.gather(
        cast(Connection, screen), cast(Domain, screen), cast(Library, ScriptedLibrary())
    )
    parts, missing = gathering.taken()
    assert ("screen.png" in parts, screen.taken > 0) == (taken, taken)
    assert taken or "has not allowed" in missing["screen"]
