"""The keys of this installation: made at the first start, private ones for this user alone.

`keys/planner.key` signs orders, `keys/agent.key` marks, `keys/engine.key` alerts and
`keys/operator.key` what lifts a restriction. The `.pub` beside each is what others put into their
`trusted` folder, as `planner-NAME.pub`, `engine-NAME.pub`, `operator-NAME.pub` and
`agent-NODE.pub`: an agent's word counts for the orders of that node.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from engine.action.keys import (
    TrustedKeys,
    parse_private_key,
    parse_public_key,
    private_key_pem,
    public_key_pem,
)
from engine.errors import SettingsError, StateUnwritable
from engine.key_files import (
    Damaged,
    KeyFolder,
    Watched,
    judged,
    labels_of,
    refuse,
    require_unreadable_by_others,
    require_unwritable_by_others,
    until_ms_of,
    write_key_file,
)
from engine.ports import Clock
from engine.revoked import read_revoked
from engine.wire.frame_mac import Revoked
from engine.wire.order import key_id

Signer = Literal["planner", "agent", "engine", "operator"]
SIGNERS: Final[tuple[Signer, ...]] = get_args(Signer)


def own_key(folder: Path, signer: Signer) -> Ed25519PrivateKey:
    """Return the private key of a role, making it and its public half where there is none.

    Raises
    ------
    StateUnwritable
        The folder cannot be written.
    SettingsError
        Other users can read the file.
    KeyDamaged
        The file is no key.
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
            f"the key {path} cannot be made or read: {error.strerror}. Let this user write"
            f" {folder}, or set keys.folder or state.folder to another place."
        ) from error
    return key


def read_key(folder: Path, signer: Signer) -> Ed25519PrivateKey | None:
    """Return the private key of a role, None where there is none: nothing is made.

    Raises
    ------
    StateUnwritable
        The file cannot be read.
    SettingsError
        Other users can read the file.
    KeyDamaged
        The file is no key.
    """
    path = folder / f"{signer}.key"
    try:
        if not path.exists():
            return None
        require_unreadable_by_others(path)
        return parse_private_key(path.read_bytes(), source=str(path))
    except OSError as error:
        raise StateUnwritable(
            f"the key {path} cannot be read: {error.strerror}. Let this user read {folder}, or set"
            " keys.folder or state.folder to another place."
        ) from error


def replace_key(folder: Path, signer: Signer) -> Ed25519PrivateKey:
    """Make another private key of a role in the place of one that has ended, and return it.

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
    """Write a new key under its name in one step, unless another process was faster."""
    fresh = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(private_key_pem(Ed25519PrivateKey.generate()))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(fresh, path)
    except FileExistsError:
        pass  # both processes now read the same one
    finally:
        fresh.unlink()


@dataclass(frozen=True, slots=True)
class PublicFile:
    """A file of a folder of trusted keys.

    `name` is what its file calls the key, of an agent the node; `until_ms` is None without an end.
    """

    signer: Signer
    name: str
    key: Ed25519PublicKey
    until_ms: int | None


def trusted_keys(folder: Path, *, own: Path | None, revoked: Revoked | None = None) -> TrustedKeys:
    """Return whose orders, marks, alerts and words of control count. No key is made.

    Parameters
    ----------
    folder
        Holds public keys as `planner-NAME.pub`, `engine-NAME.pub`, `operator-NAME.pub` and
        `agent-NODE.pub`; may be absent. The node is the agent's `site.node`. A line
        `Not-After: 2027-01-31T00:00:00Z` above a key says when it ends.
    own
        Folder of this installation's own keys, where all roles share it; else None.
    revoked
        What counts no more, though a file of it is copied to the folder again.

    Raises
    ------
    SettingsError
        A file is no public key, or its name says no role; or others may write it or the folder.
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
    """Return the keys that count: of files, and own ones by role."""
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
        # One key may stand in several files; the first end counts.
        until_ms={
            name: min(known)
            for name, stated in ends.items()
            if (known := [until_ms for until_ms in stated if until_ms is not None])
        },
    )


class WatchedKeys:
    """A folder of trusted keys as it is now: `engine.action.keys.Trust`.

    Parameters
    ----------
    folder, own
        See `trusted_keys`, whose errors end the start. Later each file is judged by itself: a key
        of which any file is damaged does not count, all others do. Own keys are made where there
        are none.
    keys
        The `keys` folder, whose list `revoked` holds for trusted keys too; None has no list. What
        stood in it once counts until the role ends: a list may be read while it is copied.
    """

    def __init__(
        self, folder: Path, *, own: Path | None, clock: Clock, keys: Path | None = None
    ) -> None:
        if own is not None:
            for signer in SIGNERS:
                own_key(own, signer)
        self._files = _trusted_files(folder)
        self._own, self._keys, self._revoked = own, keys, Revoked()
        self._watched = Watched(folder, self._read, mono_ns=clock.mono_ns, also=keys)

    def current(self) -> TrustedKeys:
        """Return the keys as they are now."""
        return self._watched.current()

    def _read(self, damaged: Damaged) -> TrustedKeys:
        if self._keys is not None:
            self._revoked = self._revoked.joined(read_revoked(self._keys, damaged))
        files, lost = self._files.read(damaged)
        doubtful = {key_id(file.key) for file in lost}
        sound = [file for file in files.values() if key_id(file.key) not in doubtful]
        return _trusted(sound, _own_keys(self._own, damaged), self._revoked)


def public_files(folder: Path) -> Iterator[tuple[Signer, str, Path]]:
    """Yield role, name and path of each key in a folder of trusted ones.

    Raises
    ------
    SettingsError
        A file's name says no role, or others may write it or the folder.
    """
    if not folder.is_dir():
        return
    require_unwritable_by_others(folder)
    for path in sorted(folder.glob("*.pub")):
        signer, name = _role_of(path)
        require_unwritable_by_others(path)
        yield signer, name, path


def _role_of(path: Path) -> tuple[Signer, str]:
    """Return the role and the name that a trusted file's name says."""
    for signer in SIGNERS:
        name = path.stem.removeprefix(f"{signer}-")
        if name and name != path.stem:
            return signer, name
    raise SettingsError(
        f"{path}: name it planner-NAME.pub, engine-NAME.pub, operator-NAME.pub or"
        " agent-NODE.pub, where NODE is the agent's site.node."
    )


def keep_secret(path: Path, secret: str) -> bool:
    """Write a secret to a file of this user alone; returns whether that changed anything.

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
