"""The keys of this installation: made at the first start, private ones for this user alone.

`keys/planner.key`, `keys/agent.key` and, for approvals, `keys/operator.key` sign; the `.pub`
beside each is what others put into their `trusted` folder, as `planner-NAME.pub`,
`operator-NAME.pub` and `agent-NODE.pub`: an agent's word counts for the orders of that node.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from engine.action.keys import (
    TrustedKeys,
    parse_private_key,
    parse_public_key,
    private_key_pem,
    public_key_pem,
)
from engine.errors import SettingsError, StateUnwritable

Signer = Literal["planner", "agent", "operator"]
SIGNERS: Final[tuple[Signer, ...]] = ("planner", "agent", "operator")
# Whoever else can read a private key can give orders.
_OTHERS: Final = 0o077


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
        if path.stat().st_mode & _OTHERS:
            raise SettingsError(f"{path} can be read by others: chmod 600 {path}")
        key = parse_private_key(path.read_bytes(), source=str(path))
        public = path.with_suffix(".pub")
        if not public.exists():
            public.write_bytes(public_key_pem(key.public_key()))
    except OSError as error:
        raise StateUnwritable(
            f"the key {path} cannot be made or read: {error.strerror}. Let this user write"
            f" {folder}, or set keys.folder or state.folder to another place."
        ) from error
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


def trusted_keys(folder: Path, *, own: Path | None) -> TrustedKeys:
    """Return whose orders and marks count.

    Parameters
    ----------
    folder
        Holds public keys as `planner-NAME.pub`, `agent-NODE.pub` and `operator-NAME.pub`; may be
        absent. The node is the agent's `site.node`.
    own
        Folder of this installation's own keys, where planner and agent share it; else None.

    Raises
    ------
    SettingsError
        A file is no public key, or its name says no role.
    """
    keys: dict[Signer, list[Ed25519PublicKey]] = {signer: [] for signer in SIGNERS}
    if own is not None:
        for signer in SIGNERS:
            keys[signer].append(own_key(own, signer).public_key())
    node_agents: list[tuple[str, Ed25519PublicKey]] = []
    for signer, name, path in _public_files(folder):
        key = parse_public_key(path.read_bytes(), source=str(path))
        if signer == "agent":
            node_agents.append((name, key))
        else:
            keys[signer].append(key)
    return TrustedKeys.of(
        planners=keys["planner"],
        agents=keys["agent"],
        operators=keys["operator"],
        node_agents=node_agents,
    )


def _public_files(folder: Path) -> Iterator[tuple[Signer, str, Path]]:
    for path in sorted(folder.glob("*.pub")) if folder.is_dir() else ():
        for signer in SIGNERS:
            name = path.stem.removeprefix(f"{signer}-")
            if name and name != path.stem:
                yield signer, name, path
                break
        else:
            raise SettingsError(
                f"{path}: name it planner-NAME.pub, operator-NAME.pub or agent-NODE.pub, where"
                " NODE is the agent's site.node."
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
