"""Frame keys on disk: site keys to verify frames, and one key for each node to sign them.

The `keys` folder holds `site-ID.key` on machines that verify frames (engine, forecaster,
historian), `node-NODE.key` or `owner-NAME.key` on machines that write frames, and the list
`revoked`. A key that verifies a MAC can also forge one, so site keys must not be copied to nodes.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flatline.engine.errors import KeyDamaged, SettingsError
from flatline.engine.key_files import (
    NOT_AFTER,
    Damaged,
    KeyFolder,
    WatchedFolder,
    date_of,
    judged,
    labels_of,
    require_unreadable_by_others,
    until_ms_of,
    write_key_file,
)
from flatline.engine.ports import Clock, Headers, SignFrame
from flatline.engine.revoked import read_revoked
from flatline.engine.wire.frame_mac import (
    KEY_BYTES,
    FrameKeys,
    FrameSigner,
    KeyName,
    Kind,
    Revoked,
    SiteKey,
    decode_secret,
    derive_key,
    encode_secret,
    made_ms,
    new_key_id,
    parse_key_name,
)

_BEGIN: Final = "-----BEGIN FLATLINE FRAME KEY-----"
_END: Final = "-----END FLATLINE FRAME KEY-----"
_NONCE_BYTES: Final = 12
# A writer uses a new site key only this long after it was created. Readers check their folder once
# a second, so those that share the folder have loaded the key by then.
_SETTLED_MS: Final = 10_000


def site_key_path(folder: Path, key_id: str) -> Path:
    """Return the path of a site key."""
    return folder / f"site-{key_id}.key"


def name_key_path(folder: Path, kind: Kind, name: str) -> Path:
    """Return the path of the key of a node, engine or owner."""
    return folder / f"{kind}-{name}.key"


def _text(labels: Mapping[str, str], secret: bytes) -> str:
    lines = [f"{name}: {value}" for name, value in labels.items()]
    return "\n".join([*lines, _BEGIN, encode_secret(secret), _END, ""])


def _read(path: Path) -> tuple[dict[str, str], bytes]:
    """Return the labels and the secret of a key file.

    Raises
    ------
    SettingsError
        Others can read it.
    KeyDamaged
        It is not a valid key.
    """
    require_unreadable_by_others(path)
    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise KeyDamaged(f"{path} is not a frame key: {error}.") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    secret = None
    if _BEGIN in lines and lines[-1] == _END:
        secret = decode_secret("".join(lines[lines.index(_BEGIN) + 1 : -1]))
    if secret is None:
        raise KeyDamaged(
            f"{path} is not a frame key. Restore it from a copy, or create another one with "
            "`flatline keys create`."
        )
    return labels_of(text), secret


def make_site_key(folder: Path, *, now_ms: int) -> str:
    """Write a new site key without expiry and return its id.

    Raises
    ------
    StateUnwritable
        The file cannot be written.
    """
    key_id = new_key_id(now_ms=now_ms, chance=os.urandom(2))
    write_site_key(folder, key_id, SiteKey(os.urandom(KEY_BYTES)))
    return key_id


def write_site_key(folder: Path, key_id: str, key: SiteKey) -> None:
    """Write a site key with a known id, for example with another expiry; replace an earlier file.

    Raises
    ------
    StateUnwritable
        The file cannot be written.
    """
    labels = {"Kind": "site", "Key-Id": key_id}
    if key.until_ms is not None:
        labels[NOT_AFTER] = date_of(key.until_ms)
    write_key_file(site_key_path(folder, key_id), _text(labels, key.secret), mode=0o600)


def read_site_keys(folder: Path) -> dict[str, SiteKey]:
    """Return the site keys of a folder by id, oldest first; empty where there is no folder.

    Raises
    ------
    SettingsError, KeyDamaged
        A file can be read by others or is not a valid key.
    """
    return {_site_key_id(path): _site_key(path) for path in sorted(folder.glob("site-*.key"))}


def _site_key_id(path: Path) -> str:
    return path.stem.removeprefix("site-")


def _site_key(path: Path) -> SiteKey:
    labels, secret = _read(path)
    if labels.get("Key-Id") != _site_key_id(path):
        raise KeyDamaged(
            f"{path} holds the site key {labels.get('Key-Id')}. Rename it to "
            f"site-{labels.get('Key-Id')}.key."
        )
    return SiteKey(secret, until_ms_of(labels, source=str(path)))


def newest_site_key(site_keys: Mapping[str, SiteKey], *, now_ms: int) -> str | None:
    """Return the id of the key for writers: the newest valid key that all readers have loaded.

    If no key is old enough for that, it is the oldest valid key; None if there is none.
    """
    live = [
        key_id for key_id, key in site_keys.items() if key.until_ms is None or now_ms < key.until_ms
    ]
    settled = [key_id for key_id in live if made_ms(key_id) + _SETTLED_MS <= now_ms]
    return max(settled) if settled else min(live, default=None)


def make_name(
    kind: Kind, name: str, *, site_key: str, now_ms: int, until_ms: int | None = None
) -> KeyName:
    """Return the name of a new key, with an unused serial.

    Parameters
    ----------
    site_key
        Id of the site key from which the key will be derived.
    until_ms
        Expiry, cut to whole seconds; None: the key does not expire.
    """
    serial = new_key_id(now_ms=now_ms, chance=os.urandom(2))
    until_s = 0 if until_ms is None else until_ms // 1000
    return KeyName(kind, name, site_key, serial, until_s)


def write_name_key(path: Path, name: KeyName, site: SiteKey) -> None:
    """Write the derived key of a name to a file that only this user can read.

    `site` is the site key with the id `name.site_key`. An earlier file is replaced.

    Raises
    ------
    StateUnwritable
        The file cannot be written.
    """
    write_key_file(path, name_key_text(name, site), mode=0o600)


def name_key_text(name: KeyName, site: SiteKey) -> str:
    """Return the content of the file of a derived key.

    `site` is the site key with the id `name.site_key`.
    """
    labels = {"Kind": name.kind, "Name": name.name, "Key": str(name)}
    if name.until_s:
        labels[NOT_AFTER] = date_of(name.until_s * 1000)
    return _text(labels, derive_key(site.secret, name))


def read_name_key(path: Path) -> tuple[KeyName, bytes]:
    """Return the name and the secret of a node's, engine's or owner's key file.

    Raises
    ------
    SettingsError, KeyDamaged
        Others can read it, or it is not a valid key.
    OSError
        There is no such file, or this user cannot read it.
    """
    labels, secret = _read(path)
    name = parse_key_name(labels.get("Key", ""))
    if name is None:
        raise KeyDamaged(f"{path} does not name its owner. Create the key again.")
    return name, secret


class _FrameKeyFolder:
    """The keys with which a reader verifies frames; each file is checked separately.

    Entries of the list `revoked` stay in force until the role ends, even if they disappear: the
    list may be read while it is being copied.
    """

    def __init__(self, folder: Path, *, accepting_unsigned: bool) -> None:
        self._folder = folder
        self._accepting_unsigned = accepting_unsigned
        self._files = KeyFolder(folder, "site-*.key", _site_key)
        self._revoked = Revoked()

    def read(self, damaged: Damaged) -> FrameKeys:
        """Return the keys, and call `damaged` for each fault.

        Raises
        ------
        SettingsError, KeyDamaged
            If `damaged` raises it: there is no site key although frames must have a MAC, other
            users may write the folder, or a file is not a valid key.
        """
        self._revoked = self._revoked.joined(read_revoked(self._folder, damaged))
        files, _ = self._files.read(damaged)
        with judged(damaged):
            if not files and not self._accepting_unsigned:
                raise SettingsError(
                    f"There is no site key in {self._folder}, so frames cannot be verified. Create "
                    "one with `flatline keys create site`, or copy site-ID.key from the machine "
                    "that has it (deploy/RUNBOOK.md, Keys)."
                )
        return FrameKeys(
            {_site_key_id(path): key for path, key in files.items()},
            revoked=self._revoked,
            accepting_unsigned=self._accepting_unsigned,
        )


class _FolderSigner:
    """Signs frames with the writer's key file, else with a key derived from the newest site key.

    The folder is read again when it changes.
    """

    def __init__(self, folder: Path, kind: Kind, name: str, *, clock: Clock) -> None:
        self._folder, self._kind, self._name, self._clock = folder, kind, name, clock
        self._derived: dict[str, FrameSigner] = {}
        self._watched = WatchedFolder(folder, self._read, mono_ns=clock.mono_ns)
        # A damaged key is reported here, not with the first frame.
        self._chosen()

    def __call__(self, record_key: bytes, value: bytes) -> Headers:
        signer = self._chosen()
        return () if signer is None else signer(record_key, value)

    def missing(self) -> bool:
        """Return whether there is no key to sign with."""
        return self._chosen() is None

    def _read(self, _: Damaged) -> tuple[FrameSigner | None, dict[str, SiteKey]]:
        # An error keeps the previous key in use while a file is damaged: the readers of the frames
        # decide whether that key is still valid.
        path = name_key_path(self._folder, self._kind, self._name)
        given = None
        if path.exists():
            name, key = read_name_key(path)
            if (name.kind, name.name) != (self._kind, self._name):
                raise KeyDamaged(
                    f"{path} is the key of {name.kind} {name.name}, so its frames would be "
                    f"rejected here. Replace it with the key of {self._kind} {self._name}."
                )
            given = FrameSigner(name, key, nonce=_nonce)
        return given, read_site_keys(self._folder)

    def _chosen(self) -> FrameSigner | None:
        given, site_keys = self._watched.current()
        if given is not None:
            return given
        now_ms = self._clock.now_ms()
        newest = newest_site_key(site_keys, now_ms=now_ms)
        if newest is None:
            return None
        if newest not in self._derived:
            name = make_name(self._kind, self._name, site_key=newest, now_ms=now_ms)
            key = derive_key(site_keys[newest].secret, name)
            self._derived = {newest: FrameSigner(name, key, nonce=_nonce)}
        return self._derived[newest]


def _nonce() -> bytes:
    return os.urandom(_NONCE_BYTES)


@dataclass(frozen=True)
class FrameKeyring:
    """Frame keys of an installation: signers for writers, keys for readers.

    Parameters
    ----------
    folder
        The `keys` folder; None if a site in one process keeps its site key in memory.
    clock
        The clock by which writers decide whether a key is in force.
    requiring
        Whether frames must have a MAC: the setting `keys.frames`.
    making
        Whether a missing site key is created. This is so on the embedded log, because its site has
        only one machine.
    memory
        The site key if `folder` is None.
    """

    folder: Path | None
    clock: Clock
    requiring: bool = True
    making: bool = False
    memory: SiteKey | None = None

    @classmethod
    def in_memory(cls, clock: Clock, *, secret: bytes | None = None) -> "FrameKeyring":
        """Return a keyring in memory; tests and the demo pass a fixed `secret` of 32 bytes."""
        return cls(None, clock, memory=SiteKey(os.urandom(KEY_BYTES) if secret is None else secret))

    def signer(self, kind: Kind, name: str) -> SignFrame:
        """Return the function that signs the frames of a name.

        While there is no key and frames without a MAC are accepted, it returns no headers.

        Raises
        ------
        SettingsError, KeyDamaged
            There is no key, and frames without a MAC would not be accepted; or a key file can be
            read by others or is not a valid key.
        StateUnwritable
            A missing site key cannot be created.
        """
        if self.memory is not None:
            key_name = KeyName(kind, name, _MEMORY_ID, _MEMORY_ID)
            key = derive_key(self.memory.secret, key_name)
            return FrameSigner(key_name, key, nonce=_nonce)
        assert self.folder is not None, "keys must be in memory or in a folder"
        self._make()
        signer = _FolderSigner(self.folder, kind, name, clock=self.clock)
        if signer.missing() and self.requiring:
            path = name_key_path(self.folder, kind, name)
            raise SettingsError(
                f"There is no key {path}, so frames of {kind} {name} would be rejected. Run "
                f"`flatline keys create {kind} {name}` on the machine that holds the site key and "
                "copy the file here, or set keys.frames to accept while releases without frame "
                "keys still run."
            )
        return signer

    def reader(self) -> Callable[[], FrameKeys]:
        """Return a function that returns the present keys for verifying frames.

        The errors are raised here, not by that function.

        Raises
        ------
        SettingsError, KeyDamaged
            There is no site key, and frames without a MAC are not accepted; or a key file can be
            read by others or is not a valid key, or others may write the folder.
        StateUnwritable
            A missing site key cannot be created.
        """
        if self.memory is not None:
            keys = FrameKeys({_MEMORY_ID: self.memory}, accepting_unsigned=not self.requiring)
            return lambda: keys
        assert self.folder is not None, "keys must be in memory or in a folder"
        self._make()
        keys_of = _FrameKeyFolder(self.folder, accepting_unsigned=not self.requiring)
        return WatchedFolder(self.folder, keys_of.read, mono_ns=self.clock.mono_ns).current

    def _make(self) -> None:
        if self.making and self.folder is not None and not read_site_keys(self.folder):
            make_site_key(self.folder, now_ms=self.clock.now_ms())


_MEMORY_ID: Final = "0" * 16
