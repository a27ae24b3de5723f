"""Cost of a frame's MAC for its writer and its readers, compared with alternatives."""

import hashlib
import hmac
import importlib.util
import os
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.poly1305 import Poly1305

from benchmarks.report import Figure, report
from benchmarks.timing import alternate
from benchmarks.workloads import fleet_frame
from flatline.engine.wire.frame import decode_frame, encode_frame
from flatline.engine.wire.frame_mac import (
    FrameKeys,
    FrameSigner,
    KeyName,
    SiteKey,
    derive_key,
    new_key_id,
    open_frame,
)
from flatline.models.codecs.columns import widen

VMS = 200
GOAL_US = 10.0
OURS = "AES-256-GMAC, as shipped"
KEY = bytes(range(32))


def contestants(value: bytes, record_key: bytes, node: str) -> dict[str, Callable[[], object]]:
    """Return functions that create or check one frame's authentication, by name."""
    site = new_key_id(now_ms=1_790_000_000_000, chance=b"ab")
    name = KeyName("node", node, site, site)
    sign = FrameSigner(name, derive_key(KEY, name), nonce=lambda: os.urandom(12))
    keys = FrameKeys({site: SiteKey(KEY)})
    headers = sign(record_key, value)
    private = Ed25519PrivateKey.from_private_bytes(KEY)
    public, signature = private.public_key(), private.sign(value)
    chacha, nonce = ChaCha20Poly1305(KEY), os.urandom(12)
    found: dict[str, Callable[[], object]] = {
        f"{OURS}, make": lambda: sign(record_key, value),
        f"{OURS}, check": lambda: keys.writer(
            value, record_key=record_key, headers=headers, time_ms=0
        ),
        "ChaCha20-Poly1305, one nonce": lambda: chacha.encrypt(nonce, b"", value),
        "Poly1305, one key": lambda: Poly1305.generate_tag(KEY, value),
        "keyed BLAKE2b (hashlib)": lambda: hashlib.blake2b(value, key=KEY, digest_size=16).digest(),
        "HMAC-SHA256 (hashlib)": lambda: hmac.digest(KEY, value, "sha256"),
        "Ed25519, make": lambda: private.sign(value),
        "Ed25519, check": lambda: public.verify(signature, value),
        "decode alone": lambda: decode_frame(value, widen),
        "check and decode": lambda: open_frame(
            value, record_key=record_key, headers=headers, time_ms=0, keys=keys, widen=widen
        ),
    }
    if importlib.util.find_spec("blake3") is not None:
        # Measured if installed; a node would need one more library for it.
        blake3 = importlib.import_module("blake3").blake3
        found["keyed BLAKE3"] = lambda: blake3(value, key=KEY).digest()
    return found


def main() -> None:
    """Measure and report."""
    frame = fleet_frame(VMS)
    value, header = encode_frame(frame), frame.header
    took_s = alternate(contestants(value, header.cell.encode(), header.node))
    decode_s = took_s["decode alone"]
    rows: list[dict[str, Figure]] = [
        {
            "way": way,
            "us_per_frame": round(1e6 * seconds, 2),
            "gb_per_s": round(len(value) / seconds / 1e9, 2),
            "share_of_decoding": round(seconds / decode_s, 2),
        }
        for way, seconds in took_s.items()
    ]
    ours_us = max(1e6 * took_s[f"{OURS}, {what}"] for what in ("make", "check"))
    report(
        "mac",
        claim=f"CPU to authenticate a frame of {VMS} VMs, {len(value)} bytes; goal {GOAL_US:g} µs"
        " for the shipped one, to make and to check.",
        rows=rows,
        goals_met=ours_us <= GOAL_US,
    )


if __name__ == "__main__":
    main()
