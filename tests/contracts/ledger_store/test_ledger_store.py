"""The promises of `engine.ports.LedgerStore`, on disk and in memory."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flatline.connectors.embedded.ledger import EmbeddedLedger
from flatline.engine.errors import AlreadyRunning, StateUnwritable
from flatline.engine.ports import LedgerStore

# Crashes without any clean-up after one entry was promised to be durable.
WRITE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from flatline.connectors.embedded.ledger import EmbeddedLedger
EmbeddedLedger(Path(sys.argv[1])).append(b"accepted")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(params=["memory", "disk"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LedgerStore]:
    path = tmp_path / "state" / "ledger.sqlite" if request.param == "disk" else None
    with EmbeddedLedger(path) as store:
        yield store


def test_entries_come_back_whole_and_oldest_first(ledger: LedgerStore) -> None:
    written = [bytes(range(256)), b"", b"accepted", b"accepted"]
    assert ledger.entries() == ()
    for entry in written:
        ledger.append(entry)
    assert list(ledger.entries()) == written


def test_an_entry_outlives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", WRITE_AND_DIE, str(path)],
        env={"PYTHONPATH": str(Path.cwd())},
        check=False,
    )
    assert done.returncode == -9
    with EmbeddedLedger(path) as ledger:
        assert list(ledger.entries()) == [b"accepted"]


def test_a_second_agent_on_the_node_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with (
        EmbeddedLedger(path),
        pytest.raises(AlreadyRunning, match=r"process \d+ has locked .*Stop"),
    ):
        EmbeddedLedger(path)
    EmbeddedLedger(path).close()


def test_each_entry_waits_for_the_disk(tmp_path: Path) -> None:
    with EmbeddedLedger(tmp_path / "ledger.sqlite") as ledger:
        assert ledger._connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_an_entry_that_did_not_reach_the_disk_forbids_what_it_announces(tmp_path: Path) -> None:
    with EmbeddedLedger(tmp_path / "ledger.sqlite") as ledger:
        ledger.append(b"accepted")
        ledger._connection.execute("PRAGMA max_page_count=3")
        with pytest.raises(StateUnwritable, match="no action is allowed"):
            ledger.append(bytes(100_000))
        assert list(ledger.entries()) == [b"accepted"]


def test_an_unwritable_folder_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateUnwritable, match="Create it for the user of the agent"):
        EmbeddedLedger(tmp_path / "file" / "ledger.sqlite")


def test_a_damaged_ledger_is_named_and_its_lock_given_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database at all" * 300)
    for _ in range(2):
        with pytest.raises(StateUnwritable, match="cannot be opened"):
            EmbeddedLedger(path)
