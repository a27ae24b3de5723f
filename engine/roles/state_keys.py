"""The key with which a role signs its snapshots, and the keys that it accepts on restore."""

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flatline.engine.action.keys import Trust, check_life
from flatline.engine.ports import Headers, Record
from flatline.engine.wire.order import SIGNATURE_HEADER, check_signature, key_id, signed


@dataclass(frozen=True, slots=True)
class StateKeys:
    """The key with which a role signs its state, and the keys whose states it accepts.

    Attributes
    ----------
    key
        The engine's key of this machine; states signed by it are accepted.
    trusted
        The keys of other machines' engines, whose states are also accepted, and their expiry.
    takes_unsigned
        Whether an unsigned state of an earlier release is also accepted. This is meant for the days
        of an upgrade, when frames without a MAC are accepted as well.
    """

    key: Ed25519PrivateKey
    trusted: Trust
    takes_unsigned: bool = False

    def sign(self, value: bytes) -> Headers:
        """Return the headers with the signature of these bytes."""
        return signed(value, self.key)

    def check(self, value: bytes, record: Record) -> None:
        """Raise `RecordRejected` unless an accepted key, not yet expired, signed the bytes."""
        if self.takes_unsigned and SIGNATURE_HEADER not in dict(record.headers):
            return
        trusted, own = self.trusted.current(), self.key.public_key()
        engines = {**trusted.engines, key_id(own): own}
        name = check_signature(value, record.headers, trusted=engines)
        check_life(name, trusted=trusted, time_ms=record.time_ms)
