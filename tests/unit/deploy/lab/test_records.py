"""The reader of a guest's records detects records that a migration lost or damaged."""

import hashlib
from pathlib import Path

import pytest

from deploy.lab.records import SLOT_BYTES, SLOTS, Record, missing, read_records


def image_with(path: Path, sequences: list[int]) -> Path:
    ring = bytearray(SLOT_BYTES * SLOTS)
    for sequence in sequences:
        body = f"flatline-record {sequence} 1 cGF5bG9hZA==".encode()
        line = body + b" " + hashlib.sha256(body).hexdigest().encode() + b"\n"
        at = sequence % SLOTS * SLOT_BYTES
        ring[at : at + len(line)] = line
    path.write_bytes(ring)
    return path


def test_records_come_oldest_first_across_the_end_of_the_ring(tmp_path: Path) -> None:
    image = image_with(tmp_path / "disk", [SLOTS, SLOTS - 1, SLOTS + 1])
    assert read_records(image) == [Record(SLOTS + n, 1) for n in (-1, 0, 1)]


def test_a_disk_that_was_never_written_has_no_records(tmp_path: Path) -> None:
    assert read_records(image_with(tmp_path / "disk", [])) == []


def test_a_lost_record_is_named(tmp_path: Path) -> None:
    assert missing(read_records(image_with(tmp_path / "disk", [3, 4, 6]))) == [5]


def test_one_flipped_bit_is_damage(tmp_path: Path) -> None:
    image = image_with(tmp_path / "disk", [7])
    data = bytearray(image.read_bytes())
    data[7 * SLOT_BYTES + 20] ^= 1
    image.write_bytes(data)
    with pytest.raises(ValueError, match="slot 7: the checksum"):
        read_records(image)


def test_a_record_in_anothers_slot_is_damage(tmp_path: Path) -> None:
    image = image_with(tmp_path / "disk", [7])
    data = image.read_bytes()
    image.write_bytes(bytes(SLOT_BYTES) + data[:-SLOT_BYTES])
    with pytest.raises(ValueError, match="slot 8 holds record 7"):
        read_records(image)
