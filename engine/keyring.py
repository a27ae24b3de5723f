"""The signing keys of this installation, and the keys that it trusts.

Private keys are created at the first start and readable only by this user. `keys/planner.key` signs
orders, `keys/agent.key` claims and results, `keys/engine.key` alerts, scores and snapshots, and
`keys/operator.key` records that end a restriction. The `.pub` file of each is copied to the
`trusted` folder of other machines, as `planner-NAME.pub`, `engine-NAME.pub`, `operator-NAME.pub` or
`agent-NODE.pub`. An agent's key is valid only for claims and results of the node NODE.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from flatline.engine.action.keys import (
    TrustedKeys,
    parse_private_key,
    parse_public_key,
    private_key_pem,
    public_key_pem,
)
from flatline.engine.errors import SettingsError, StateUnwritable
from flatline.engine.key_files import (
    Damaged,
    KeyFolder,
    WatchedFolder,
    judged,
    labels_of,
    refuse,
    require_unreadable_by_others,
    require_unwritable_by_others,
    until_ms_of,
    write_key_file,
)
from flatline.engine.ports import Clock
from flatline.engine.revoked import read_revoked
from flatline.engine.wire.frame_mac import Revoked
from flatline.engine.wire.order import key_id

Signer = Literal["planner", "agent", "engine", "operator"]
SIGNERS: Final[tuple[Signer, ...]] = get_args(Signer)


def own_key(folder: Path, signer: Signer) -> Ed25519PrivateKey:
    """Return the private key of a role; create it and its public half where there is none.

    Raises
    ------
    StateUnwritable
        The folder cannot be written.
    SettingsError
        Other users can read the file.
    KeyDamaged
        The file is not a valid key.
    """
    path = folder / f"{signer}.key"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _make(path)
        key = read_key(folder, signer)
        assert key is not None
        public = path.with_suffix(".pub")
        if not public.exists():
            public.write_bytes(public_key_pem(key.public_key()))
    except OSError as error:
        raise StateUnwritable(
            f"the key {path} cannot be created or read: {error.strerror}. Allow this user to write "
            f"{folder}, or set keys.folder or state.folder to another folder."
        ) from error
    return key


def read_key(folder: Path, signer: Signer) -> Ed25519PrivateKey | None:
    """Return the private key of a role, None where there is none. No key is created.

    Raises
    ------
    StateUnwritable
        The file cannot be read.
    SettingsError
        Other users can read the file.
    KeyDamaged
        The file is not a valid key.
    """
    path = folder / f"{signer}.key"
    try:
        if not path.exists():
            return None
        require_unreadable_by_others(path)
        return parse_private_key(path.read_bytes(), source=str(path))
    except OSError as error:
        raise StateUnwritable(
            f"the key {path} cannot be read: {error.strerror}. Allow this user to read {folder}, "
            "or set keys.folder or state.folder to another folder."
        ) from error


def replace_key(folder: Path, signer: Signer) -> Ed25519PrivateKey:
    """Replace the expired or revoked private key of a role by a new key, and return the new key.

    Raises
    ------
    StateUnwritable
        The folder cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    path = folder / f"{signer}.key"
    write_key_file(path, private_key_pem(key).decode(), mode=0o600)
    public = public_key_pem(key.public_key()).decode()
    write_key_file(path.with_suffix(".pub"), public, mode=0o644)
    return key


def _make(path: Path) -> None:
    """Write a new key atomically, unless another process was faster."""
    fresh = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(private_key_pem(Ed25519PrivateKey.generate()))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(fresh, path)
    except FileExistsError:
        pass  # the other process has created the key, and both now read that one
    finally:
        fresh.unlink()


@dataclass(frozen=True, slots=True)
class PublicFile:
    """A file of a folder of trusted keys.

    `name` is the NAME in the file name, for an agent its node. `until_ms` is the expiry of the key,
    None if it has none.
    """

    signer: Signer
    name: str
    key: Ed25519PublicKey
    until_ms: int | None


def trusted_keys(folder: Path, *, own: Path | None, revoked: Revoked | None = None) -> TrustedKeys:
    """Return the keys that are valid for orders, results, alerts and control records.

    No key is created.

    Parameters
    ----------
    folder
        Holds public keys as `planner-NAME.pub`, `engine-NAME.pub`, `operator-NAME.pub` and
        `agent-NODE.pub`; may be absent. The node is the agent's `site.node`. A line `Not-After:
        2027-01-31T00:00:00Z` above a key states its expiry.
    own
        Folder of this installation's own keys, where all roles share it; else None.
    revoked
        Keys that are invalid even if their files are copied to the folder again.

    Raises
    ------
    SettingsError
        A file is not a public key, or its name has no role; or others may write it or the folder.
    SettingsError, KeyDamaged, StateUnwritable
        An own key can be read by others, is not a valid key or cannot be read.
    """
    files, _ = _trusted_files(folder).read()
    return _trusted(files.values(), _own_keys(own), Revoked() if revoked is None else revoked)


def _trusted_files(folder: Path) -> KeyFolder[PublicFile]:
    return KeyFolder(folder, "*.pub", _public_file)


def _public_file(path: Path) -> PublicFile:
    signer, name = _role_of(path)
    require_unwritable_by_others(path)
    pem, source = path.read_bytes(), str(path)
    labels = labels_of(pem.decode("utf-8", "replace"))
    key = parse_public_key(pem, source=source)
    return PublicFile(signer, name, key, until_ms_of(labels, source=source))


def _own_keys(
    folder: Path | None, damaged: Damaged = refuse
) -> dict[Signer, list[Ed25519PublicKey]]:
    """Return the public halves of this installation's own keys by role."""
    keys: dict[Signer, list[Ed25519PublicKey]] = {signer: [] for signer in SIGNERS}
    for signer in SIGNERS if folder is not None else ():
        with judged(damaged):
            assert folder is not None
            key = read_key(folder, signer)
            keys[signer] += [] if key is None else [key.public_key()]
    return keys


def _trusted(
    files: Iterable[PublicFile], keys: dict[Signer, list[Ed25519PublicKey]], revoked: Revoked
) -> TrustedKeys:
    """Return all valid keys: those of trusted files, and this installation's own `keys`."""
    ends: dict[str, list[int | None]] = {
        key_id(key): [revoked.ended_ms(key_id(key))] for own in keys.values() for key in own
    }
    node_agents: list[tuple[str, Ed25519PublicKey]] = []
    names: dict[str, str] = {}
    for file in files:
        one = key_id(file.key)
        names[one] = file.name
        ends.setdefault(one, []).extend((file.until_ms, revoked.ended_ms(one)))
        if file.signer == "agent":
            node_agents.append((file.name, file.key))
        else:
            keys[file.signer].append(file.key)
    return TrustedKeys.of(
        planners=keys["planner"],
        agents=keys["agent"],
        operators=keys["operator"],
        engines=keys["engine"],
        node_agents=node_agents,
        names=names,
        # One key may be in several files; the first expiry applies.
        until_ms={
            name: min(known)
            for name, stated in ends.items()
            if (known := [until_ms for until_ms in stated if until_ms is not None])
        },
    )


class WatchedKeys:
    """The present content of a folder of trusted keys: `engine.action.keys.Trust`.

    Parameters
    ----------
    folder, own
        See `trusted_keys`. Its errors are raised at the start. Later each file is checked
        separately: a key with a damaged file is not valid, other keys are. Missing own keys are
        created.
    keys
        The `keys` folder, whose list `revoked` also applies to trusted keys; None: no list. Entries
        of the list stay in force until the role ends, because it may be read while it is copied.
    """

    def __init__(
        self, folder: Path, *, own: Path | None, clock: Clock, keys: Path | None = None
    ) -> None:
        if own is not None:
            for signer in SIGNERS:
                own_key(own, signer)
        self._files = _trusted_files(folder)
        self._own, self._keys, self._revoked = own, keys, Revoked()
        self._watched = WatchedFolder(folder, self._read, mono_ns=clock.mono_ns, also=keys)

    def current(self) -> TrustedKeys:
        """Return the keys in force."""
        return self._watched.current()

    def _read(self, damaged: Damaged) -> TrustedKeys:
        if self._keys is not None:
            self._revoked = self._revoked.joined(read_revoked(self._keys, damaged))
        files, lost = self._files.read(damaged)
        doubtful = {key_id(file.key) for file in lost}
        sound = [file for file in files.values() if key_id(file.key) not in doubtful]
        return _trusted(sound, _own_keys(self._own, damaged), self._revoked)


def public_files(folder: Path) -> Iterator[tuple[Signer, str, Path]]:
    """Yield role, name and path of each key in a folder of trusted ones, none if it is absent.

    Raises
    ------
    SettingsError
        A file's name has no role, or others may write it or the folder.
    """
    if not folder.is_dir():
        return
    require_unwritable_by_others(folder)
    for path in sorted(folder.glob("*.pub")):
        signer, name = _role_of(path)
        require_unwritable_by_others(path)
        yield signer, name, path


def _role_of(path: Path) -> tuple[Signer, str]:
    """Return the role and the name in a trusted file's name."""
    for signer in SIGNERS:
        name = path.stem.removeprefix(f"{signer}-")
        if name and name != path.stem:
            return signer, name
    raise SettingsError(
        f"{path} has an invalid name. Rename it to planner-NAME.pub, engine-NAME.pub, "
        "operator-NAME.pub or agent-NODE.pub, where NODE is the site.node of the agent."
    )


def keep_secret(path: Path, secret: str) -> bool:
    """Write a secret to a file of this user only; return whether that changed the file.

    Raises
    ------
    StateUnwritable
        The file cannot be written.
    """
    try:
        if path.exists() and path.read_text().strip() == secret:
            return False
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{secret}\n")
        fresh.rename(path)
    except OSError as error:
        raise StateUnwritable(f"{path} cannot be written: {error.strerror}.") from error
    return True
