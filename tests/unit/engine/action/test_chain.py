from typing import Any

import msgspec
import numpy as np
import pytest

from flatline.engine.action.chain import Head, extend, heads_of, link_of, verify
from flatline.engine.wire.journal import JournalEntry, decode_entry, encode_entry


def chain(count: int, writer: str = "act/n0/run") -> tuple[Head, list[JournalEntry]]:
    head, entries = Head(writer), []
    for number in range(count):
        head, entry = extend(
            head,
            time_ms=number,
            kind="decision",
            sentence=f"Sentence {number}.",
            incident="a",
            step=number,
            detail={"b": "2", "a": "1"},
        )
        entries.append(entry)
    return head, entries


def test_a_chain_as_written_has_no_finding() -> None:
    head, entries = chain(20)
    read = [decode_entry(encode_entry(entry)) for entry in entries]
    assert verify(read, heads=[head]) == []


def test_delivering_an_entry_twice_is_no_finding() -> None:
    head, entries = chain(5)
    assert verify([*entries[:3], entries[1], entries[2], *entries[3:]], heads=[head]) == []


def test_chains_of_several_writers_may_lie_mixed() -> None:
    one, ours = chain(6, "one")
    other, theirs = chain(6, "other")
    mixed = [entry for pair in zip(ours, theirs, strict=True) for entry in pair]
    assert verify(mixed, heads=[one, other]) == []


EDITS: dict[str, dict[str, Any]] = {
    "sentence": {"sentence": "Something else."},
    "time": {"time_ms": 99},
    "detail": {"detail": {"a": "1"}},
    "incident": {"incident": None},
    "kind": {"kind": "outcome"},
    "link": {"link": "0" * 64},
    "previous": {"previous": "0" * 64},
    "writer": {"writer": "act/n1/run"},
}


@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_an_edited_entry_is_found(edit: str) -> None:
    head, entries = chain(9)
    entries[4] = msgspec.structs.replace(entries[4], **EDITS[edit])
    assert verify(entries, heads=[head])


def test_an_entry_that_was_replaced_with_a_valid_one_is_found() -> None:
    head, entries = chain(9)
    before = Head(head.writer, 4, entries[3].link)
    entries[4] = extend(before, time_ms=4, kind="decision", sentence="Forged.")[1]
    assert verify(entries, heads=[head])


def test_a_deleted_entry_is_found_wherever_it_stood() -> None:
    head, entries = chain(9)
    for index in range(9):
        assert verify(entries[:index] + entries[index + 1 :], heads=[head])


def test_a_cut_chain_is_found_by_the_head_that_was_written_down() -> None:
    head, entries = chain(9)
    assert verify(entries[:6]) == []
    assert verify(entries[:6], heads=[head]) == [
        "act/n0/run: the chain does not contain entry 8 as recorded. The chain was truncated or "
        "replaced."
    ]


def test_a_front_that_the_log_has_dropped_by_its_retention_is_no_finding() -> None:
    head, entries = chain(9)
    assert verify(entries[4:], cut_ms=3) == []
    # Checked before: more, exactly this, or the whole chain.
    for checked in (heads_of(entries), heads_of(entries[:6]), heads_of(entries[:4])):
        assert verify(entries[4:], heads=checked, cut_ms=3) == []
    other = chain(3, "gone")[0]
    assert verify(entries[4:], heads=[head, other], cut_ms=3) == []


def test_what_no_retention_explains_is_found_in_a_log_that_has_dropped_its_front() -> None:
    head, entries = chain(9)
    late = Head("late", 5, "0" * 64, time_ms=4)
    altered = msgspec.structs.replace(entries[4], previous="1" * 64)
    altered = msgspec.structs.replace(altered, link=link_of(altered))
    assert verify(entries[4:], heads=heads_of(entries[:3]), cut_ms=3)  # entry 3 was never checked
    assert verify(entries[4:], heads=[late], cut_ms=3)  # it wrote after the deleted entries
    assert verify([altered], heads=heads_of(entries[:4]), cut_ms=3)
    assert verify(entries[4:8], heads=[head], cut_ms=3)
    assert verify([*entries[4:6], *entries[7:]], cut_ms=3)


def test_a_thousand_random_edits_are_all_found(rng: np.random.Generator) -> None:
    head, entries = chain(40)
    missed = 0
    for _ in range(1_000):
        index = int(rng.integers(len(entries)))
        value = bytearray(encode_entry(entries[index]))
        position = int(rng.integers(len(value)))
        value[position] ^= 1 << int(rng.integers(7))
        try:
            altered = decode_entry(bytes(value))
        except Exception:  # noqa: BLE001 -- unreadable counts as detected
            continue
        missed += not verify([*entries[:index], altered, *entries[index + 1 :]], heads=[head])
    assert missed == 0
