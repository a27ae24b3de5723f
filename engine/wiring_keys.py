"""Wires permissions and trust: the policy, and every kind of key.

Split from `engine.wiring`, which would be too long with it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flatline.connectors.clock import SystemClock
from flatline.engine.action.catalogue import Policy, parse_policy, read_shipped
from flatline.engine.action.keys import Trust, TrustedKeys
from flatline.engine.errors import SettingsError
from flatline.engine.frame_keyring import FrameKeyring
from flatline.engine.keyring import Signer, WatchedKeys, own_key, trusted_keys
from flatline.engine.log_factory import Process
from flatline.engine.ports import Clock, OpenFrame
from flatline.engine.revoked import read_revoked
from flatline.engine.roles.opening import FrameOpener
from flatline.engine.roles.state_keys import StateKeys
from flatline.engine.settings import Settings


def policy_of(settings: Settings, *, shipped: str = "default") -> Policy:
    """Return the policy in force: the file of the settings, else a shipped one.

    `shipped` is one of `engine.action.catalogue.SHIPPED`.

    Raises
    ------
    SettingsError
        The file cannot be read or breaks a rule.
    """
    file = settings.policy.file
    if file is None:
        return parse_policy(read_shipped(shipped), source=f"the shipped policy {shipped!r}")
    return read_policy(file)


def read_policy(file: Path) -> Policy:
    """Return the validated policy of a file.

    Raises
    ------
    SettingsError
        The file cannot be read or breaks a rule.
    """
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The policy {file} cannot be read: {error}.") from error
    return parse_policy(text, source=str(file))


@dataclass(frozen=True, slots=True)
class Authority:
    """The policy, the keys of this installation, and the keys that it trusts.

    `key` returns the private key of a role and creates it if missing, so a machine has only keys of
    roles that run on it. `frames` is in memory by default, which is for a site in one process.
    """

    policy: Policy
    key: Callable[[Signer], Ed25519PrivateKey]
    trusted: Trust
    frames: FrameKeyring = field(default_factory=lambda: FrameKeyring.in_memory(SystemClock()))


def authority(settings: Settings, *, shipped: str = "default") -> Authority:
    """Return the policy and the keys of this installation.

    Planner and agent of one embedded log share their keys' folder and trust each other; on Kafka
    only the folder of trusted keys counts. `shipped` is the policy if the settings name none.

    Raises
    ------
    SettingsError, KeyDamaged, StateUnwritable
        The policy or a key cannot be used: see `policy_of`, `own_key` and `trusted_keys`.
    """
    clock = SystemClock()
    return Authority(
        policy=policy_of(settings, shipped=shipped),
        key=partial(own_key, settings.key_folder),
        trusted=_watched(settings, clock),
        frames=frame_keyring(settings, clock),
    )


def _watched(settings: Settings, clock: Clock) -> WatchedKeys:
    folder = settings.key_folder
    own = folder if settings.log.kind == "embedded" else None
    return WatchedKeys(settings.trusted_folder, own=own, clock=clock, keys=folder)


def state_keys(settings: Settings, clock: Clock) -> StateKeys:
    """Return the key that signs a role's snapshots, and the keys that it accepts.

    The signing key is this machine's engine key, which is created if it is missing.

    Raises
    ------
    StateUnwritable, SettingsError, KeyDamaged
        See `own_key` and `trusted_keys`.
    """
    return StateKeys(
        own_key(settings.key_folder, "engine"),
        _watched(settings, clock),
        takes_unsigned=settings.keys.frames == "accept",
    )


def trusted_now(settings: Settings) -> TrustedKeys:
    """Return the keys that this machine trusts; on an embedded log they include its own keys.

    No key is created: reading changes nothing.

    Raises
    ------
    SettingsError, KeyDamaged, StateUnwritable
        See `trusted_keys` and `read_revoked`.
    """
    own = settings.key_folder if settings.log.kind == "embedded" else None
    revoked = read_revoked(settings.key_folder)
    return trusted_keys(settings.trusted_folder, own=own, revoked=revoked)


def frame_keyring(settings: Settings, clock: Clock) -> FrameKeyring:
    """Return this installation's frame keys; on an embedded log missing ones are created."""
    return FrameKeyring(
        settings.key_folder,
        clock,
        requiring=settings.keys.frames == "require",
        making=settings.log.kind == "embedded",
    )


def frame_opener(
    process: Process, frames: FrameKeyring, *, reader: str, compiled: bool = True
) -> OpenFrame:
    """Return the function that verifies the writer of a record and decodes the frame in it.

    `reader` is the name of the role in metrics. `compiled` is whether a compiled kernel unpacks the
    columns. A role that uses it compiles the kernel before it joins its group.

    Raises
    ------
    SettingsError, KeyDamaged, StateUnwritable
        There is no usable site key with which frames can be verified: see `FrameKeyring.reader`.
    """
    if not compiled:
        return FrameOpener(frames.reader(), reader=reader, clock=process.clock)
    from flatline.models.codecs.columns import widen

    return FrameOpener(frames.reader(), reader=reader, clock=process.clock, widen=widen)
