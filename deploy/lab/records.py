"""Read and check the records that a lab guest has written to its disk, from the host.

``python -m deploy.lab.records IMAGE`` prints their number and whether any are missing.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

SLOT_BYTES = 4096
SLOTS = 256
MAGIC = b"flatline-record"


@dataclass(frozen=True, order=True)
class Record:
    """One write of a guest: its sequence number and the boot that wrote it."""

    sequence: int
    boot: int


def read_records(image: Path) -> list[Record]:
    """Return the records on a raw image, oldest first; an empty disk has none.

    Raises
    ------
    ValueError
        A record does not match its checksum, or is in another record's slot.
    """
    with image.open("rb") as disk:
        ring = disk.read(SLOTS * SLOT_BYTES)
    slots = (ring[at : at + SLOT_BYTES] for at in range(0, len(ring), SLOT_BYTES))
    return sorted(
        _record(slot, number, image) for number, slot in enumerate(slots) if slot.strip(b"\0")
    )


def _record(slot: bytes, number: int, image: Path) -> Record:
    text = slot.rstrip(b"\0").removesuffix(b"\n")
    body, _, checksum = text.rpartition(b" ")
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        raise ValueError(f"{image}: slot {number}: the checksum does not match the record")
    magic, sequence, boot, _payload = body.split(b" ")
    if magic != MAGIC or int(sequence) % SLOTS != number:
        raise ValueError(f"{image}: slot {number} holds record {sequence.decode()}")
    return Record(int(sequence), int(boot))


def missing(records: list[Record]) -> list[int]:
    """Return the missing sequence numbers between the first and the last."""
    if not records:
        return []
    found = {record.sequence for record in records}
    return [n for n in range(records[0].sequence, records[-1].sequence) if n not in found]


def main() -> int:
    """Check one image; the exit code is 1 when records are damaged or missing."""
    try:
        [image] = sys.argv[1:]
        records = read_records(Path(image))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    gaps = missing(records)
    last = records[-1].sequence if records else 0
    sys.stdout.write(f"{len(records)} records, the last is {last}, {len(gaps)} missing\n")
    return 1 if gaps else 0


if __name__ == "__main__":
    sys.exit(main())
