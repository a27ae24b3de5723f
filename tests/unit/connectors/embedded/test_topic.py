from pathlib import Path

import pytest

from flatline.connectors.embedded.topic import TopicStore
from flatline.engine.errors import LogUnreachable, SettingsError, StateUnwritable
from flatline.engine.ports import Bounds
from flatline.engine.wire.topics import Topic

HOUR_MS = 3_600_000
PLAIN = Topic("unit.v1", 1, None, 1 << 20)


def append(store: TopicStore, value: bytes, *, key: bytes = b"k", time_ms: int = 0) -> int:
    return store.append(0, key=key, value=value, headers=(), time_ms=time_ms)


def kept(store: TopicStore) -> list[int]:
    return [record.offset for record in store.read(0, offset=0, stop=1 << 39, max_records=10_000)]


def test_the_oldest_records_go_when_the_bytes_are_used_up() -> None:
    store = TopicStore(None, Topic("unit.v1", 1, None, 1000), partitions=1)
    for _ in range(10):
        append(store, bytes(299))
    assert kept(store) == [7, 8, 9]
    assert store.bounds(0) == Bounds(earliest=7, end=10)


def test_a_record_larger_than_the_limit_stays_alone() -> None:
    store = TopicStore(None, Topic("unit.v1", 1, None, 1000), partitions=1)
    append(store, bytes(10))
    append(store, bytes(5000))
    assert kept(store) == [1]
    append(store, bytes(10))
    assert kept(store) == [2]
    assert store.bounds(0) == Bounds(earliest=2, end=3)


def test_old_records_go_when_log_time_passes() -> None:
    store = TopicStore(None, Topic("unit.v1", 1, 3600, 1 << 20), partitions=1)
    for minute in range(180):
        append(store, b"", time_ms=minute * 60_000)
    # The newest is minute 179: records before minute 119 may be deleted.
    assert store.bounds(0).earliest in range(118, 120)
    assert kept(store) == list(range(store.bounds(0).earliest, 180))


def test_age_counts_from_the_newest_record_so_that_old_logs_can_be_copied() -> None:
    store = TopicStore(None, Topic("unit.v1", 1, 3600, 1 << 20), partitions=1)
    for minute in range(30):
        append(store, b"", time_ms=1_000_000_000_000 + minute * 60_000)
    assert kept(store) == list(range(30))


def test_a_partition_is_bounded_alone() -> None:
    store = TopicStore(None, Topic("unit.v1", None, None, 1000), partitions=2)
    store.append(0, key=b"", value=b"first", headers=(), time_ms=0)
    for _ in range(10):
        store.append(1, key=b"", value=bytes(500), headers=(), time_ms=0)
    assert store.bounds(0) == Bounds(earliest=0, end=1)
    assert store.bounds(1) == Bounds(earliest=8, end=10)


def test_a_compacted_topic_keeps_one_record_a_key_and_its_offsets() -> None:
    store = TopicStore(None, PLAIN._replace(compacted=True), partitions=1)
    for number in range(9):
        append(store, b"%d" % number, key=b"%d" % (number % 3))
    assert kept(store) == [6, 7, 8]
    assert store.bounds(0) == Bounds(earliest=0, end=9)


def test_compaction_does_not_drop_a_key_for_its_size() -> None:
    store = TopicStore(None, Topic("unit.v1", 1, 1, 100, compacted=True), partitions=1)
    append(store, b"pause", key=b"site")
    for number in range(50):
        append(store, bytes(90), key=b"%d" % number, time_ms=number * HOUR_MS)
    assert kept(store)[0] == 0


def test_moments_are_found_across_the_gaps_of_compaction() -> None:
    store = TopicStore(None, PLAIN._replace(compacted=True), partitions=1)
    for number in range(40):
        append(store, b"", key=b"%d" % (number % 7 if number < 30 else number), time_ms=number * 10)
    records = store.read(0, offset=0, stop=40, max_records=100)
    for moment_ms in range(0, 400, 5):
        expected = next((r.offset for r in records if r.time_ms >= moment_ms), 40)
        assert store.offset_at(0, time_ms=moment_ms) == expected


def test_a_clock_that_goes_back_does_not_turn_the_append_time_back() -> None:
    store = TopicStore(None, PLAIN, partitions=1)
    for time_ms in (100, 50, 101, 20):
        append(store, b"", time_ms=time_ms)
    records = store.read(0, offset=0, stop=4, max_records=10)
    assert [record.time_ms for record in records] == [100, 100, 101, 101]


def test_a_batch_ends_when_it_is_large_enough() -> None:
    store = TopicStore(None, Topic("unit.v1", 1, None, 1 << 30), partitions=1)
    for _ in range(10):
        append(store, bytes(900_000))
    assert len(store.read(0, offset=0, stop=10, max_records=100)) == 5


def test_a_full_disk_writes_nothing_and_says_so(tmp_path: Path) -> None:
    store = TopicStore(tmp_path / "t.sqlite", PLAIN, partitions=1)
    append(store, b"first")
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count={pages + 2}")
    with pytest.raises(LogUnreachable, match="Free some space"):
        append(store, bytes(500_000))
    assert kept(store) == [0]
    assert store.bounds(0).end == 1
    store._connection.execute("PRAGMA max_page_count=100000")
    assert append(store, b"second") == 1
    store.close()


def test_a_file_held_by_another_process_is_unreachable_and_not_damaged(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    holder = TopicStore(path, PLAIN, partitions=1)
    store = TopicStore(path, PLAIN, partitions=1)
    store._connection.execute("PRAGMA busy_timeout=1")
    holder._connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(LogUnreachable, match="another process held it"):
        append(store, b"")
    holder._connection.execute("ROLLBACK")
    assert append(store, b"") == 0
    holder.close()
    store.close()


def test_a_file_that_may_only_be_read_is_unwritable(tmp_path: Path) -> None:
    store = TopicStore(tmp_path / "t.sqlite", PLAIN, partitions=1)
    store._connection.execute("PRAGMA query_only=1")
    with pytest.raises(StateUnwritable, match="is not writable"):
        append(store, b"")
    store.close()


def test_a_file_of_another_partition_count_is_refused(tmp_path: Path) -> None:
    keyed = PLAIN._replace(partitions=None)
    TopicStore(tmp_path / "t.sqlite", keyed, partitions=4).close()
    with pytest.raises(SettingsError, match=r"Set log\.partitions to 4"):
        TopicStore(tmp_path / "t.sqlite", keyed, partitions=5)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.sqlite").write_bytes(b"not a database at all" * 300)
    with pytest.raises(StateUnwritable, match=r"t\.sqlite cannot be opened.*move it away"):
        TopicStore(tmp_path / "t.sqlite", PLAIN, partitions=1)


def test_what_an_action_depends_on_waits_for_the_disk(tmp_path: Path) -> None:
    full, normal = 2, 1
    for durable, expected in ((True, full), (False, normal)):
        path = tmp_path / f"{durable}.sqlite"
        store = TopicStore(path, PLAIN._replace(durable=durable), partitions=1)
        assert store._connection.execute("PRAGMA synchronous").fetchone() == (expected,)
        store.close()
