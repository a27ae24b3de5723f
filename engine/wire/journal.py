"""The journal: decisions, refusals, calls, outcomes and effects, in one hash chain per writer."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from flatline.engine.wire import limits
from flatline.engine.wire.envelope import decode_json

EntryKind = Literal["start", "decision", "refusal", "call", "outcome", "effect", "control"]


class JournalEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry of a writer's hash chain.

    `previous` is the `link` of the writer's entry before this one, empty for the first. `link` is
    the hash over all other fields (`engine.action.chain`). A `link` or `previous` that does not
    match, or a gap in `sequence`, is evidence of an edit, a deletion or a truncation.
    """

    writer: limits.Text
    sequence: limits.Count
    time_ms: limits.TimeMs
    kind: EntryKind
    sentence: limits.Sentence
    previous: limits.Text
    link: limits.Text
    v: Literal[1] = 1
    incident: limits.Text | None = None
    step: limits.Count | None = None
    vm: limits.Text | None = None
    cell: limits.Text | None = None
    detail: Annotated[dict[limits.Word, limits.Sentence], Meta(max_length=limits.MAX_DETAILS)] = {}


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(JournalEntry)


def encode_entry(entry: JournalEntry) -> bytes:
    """Return the bytes of one entry."""
    return _encoder.encode(entry)


def decode_entry(value: bytes) -> JournalEntry:
    """Return the entry that `value` encodes, or raise `RecordRejected`."""
    return decode_json(value, _decoder)
