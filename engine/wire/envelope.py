"""Properties common to all records: size limit, version, and decoding errors."""

import re
from typing import Final, TypeVar

import msgspec

from flatline.engine.errors import RecordRejected

# Below the broker's message.max.bytes (1,048,588), so that a record with its headers and its batch
# always fits. If a batch exceeds the broker's limit, aiokafka's idempotent producer cannot append
# again (MessageSizeTooLarge).
MAX_RECORD_BYTES: Final = 900_000

# Limit of a log for value, key and headers together, still below the broker's limit.
MAX_APPEND_BYTES: Final = MAX_RECORD_BYTES + 64 * 1024

# Beginning of msgspec's error message for a value beyond a limit of `engine.wire.limits`.
_LIMIT: Final = re.compile(r"Expected `\w+` (>=|<=|of length|matching)")

T = TypeVar("T")


class _Version(msgspec.Struct):
    v: int = 1


_msgpack_version = msgspec.msgpack.Decoder(_Version)
_json_version = msgspec.json.Decoder(_Version)


def decode_msgpack(value: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """Return the decoded value, or raise `RecordRejected` with the reason."""
    return _decode(value, decoder, _msgpack_version)


def decode_json(value: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Return the decoded value, or raise `RecordRejected` with the reason."""
    return _decode(value, decoder, _json_version)


def _decode(
    value: bytes,
    decoder: "msgspec.msgpack.Decoder[T] | msgspec.json.Decoder[T]",
    version_decoder: "msgspec.msgpack.Decoder[_Version] | msgspec.json.Decoder[_Version]",
) -> T:
    if len(value) > MAX_RECORD_BYTES:
        raise RecordRejected(
            "oversized", f"{len(value)} bytes, at most {MAX_RECORD_BYTES} are allowed"
        )
    try:
        return decoder.decode(value)
    except msgspec.ValidationError as error:
        raise _rejected(value, version_decoder, str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = "truncated" if "truncated" in str(error) else "malformed"
        raise RecordRejected(reason, str(error)) from error
    except (RecursionError, OverflowError, ValueError) as error:
        # Deep nesting and huge numbers raise these errors. The writer is wrong, so the record is
        # rejected and the reader continues.
        raise RecordRejected("malformed", f"{type(error).__name__}: {error}") from error


def _rejected(
    value: bytes,
    version_decoder: "msgspec.msgpack.Decoder[_Version] | msgspec.json.Decoder[_Version]",
    detail: str,
) -> RecordRejected:
    """Return the error for an invalid record; that of a later release is `unknown_version`."""
    try:
        version = version_decoder.decode(value).v
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        return RecordRejected("malformed", detail)
    if version != 1:
        return RecordRejected(
            "unknown_version", f"version {version}, but this release reads version 1"
        )
    return RecordRejected("bad_value" if _LIMIT.match(detail) else "malformed", detail)
