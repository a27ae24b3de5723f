"""`flatline keys`: creates, lists, rotates and revokes keys. No private key is ever printed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from rich.table import Table

from flatline.engine.action.keys import parse_public_key, public_key_pem
from flatline.engine.cli.options import File, Sets, console, settings_of
from flatline.engine.errors import SettingsError
from flatline.engine.frame_keyring import (
    make_name,
    make_site_key,
    name_key_path,
    name_key_text,
    newest_site_key,
    read_name_key,
    read_site_keys,
    site_key_path,
    write_name_key,
    write_site_key,
)
from flatline.engine.key_files import (
    date_of,
    labels_of,
    until_ms_of,
    with_end,
    write_key_file,
    write_new_key_file,
)
from flatline.engine.keyring import SIGNERS, Signer, own_key, public_files, read_key, replace_key
from flatline.engine.revoked import REVOKED, read_revoked, revoke
from flatline.engine.settings import NAME_PATTERN, Settings
from flatline.engine.wire.frame_mac import KINDS, SIGNING, Kind, SiteKey, made_ms
from flatline.engine.wire.order import key_id

keys = typer.Typer(
    help="Create, show, rotate and revoke keys. Private keys are written to files only.",
    no_args_is_help=True,
)

_DAY_MS: Final = 86_400_000
_ID_LENGTH: Final = 16
_WHAT: Final = f"site, {', '.join((*KINDS, *(s for s in SIGNERS if s not in KINDS)))}"

What = Annotated[str, typer.Argument(metavar="KIND", help=f"{_WHAT}.")]
Name = Annotated[
    str | None,
    typer.Argument(help="Owner of the key: the site.node of a node, the name of a person, ..."),
]
Days = Annotated[float | None, typer.Option("--days", min=0.01, help="Days until the key expires.")]


def _now_ms() -> int:
    from flatline.connectors.clock import SystemClock

    return SystemClock().now_ms()


def _checked(name: str | None, kind: str, settings: Settings) -> str:
    import re

    if name is None and kind in {"node", "agent"}:
        return settings.site.node
    if name is None or not re.fullmatch(NAME_PATTERN, name):
        raise SettingsError(
            f"A key of kind {kind} requires a name of letters, digits, dots, dashes and "
            "underscores. For nodes and agents use site.node."
        )
    return name


@keys.command("create")
def create(
    kind: What,
    name: Name = None,
    out: Annotated[
        Path | None, typer.Option(help="New file for the key of a node or owner, mode 0600.")
    ] = None,
    days: Days = None,
    file: File = None,
    sets: Sets = None,
) -> None:
    """Create a key. Start with `site`, then one for each node. The other kinds sign records."""
    settings = settings_of(file, sets)
    until_ms = None if days is None else _now_ms() + round(days * _DAY_MS)
    if out is not None and kind not in {"node", "owner"}:
        raise SettingsError(
            "--out is only for keys of nodes and owners, which are copied to other machines. A key "
            f"of kind {kind} stays in {settings.key_folder}."
        )
    if kind == "site":
        sentences = _create_site(settings, until_ms)
    elif kind in {"node", "owner"}:
        sentences = _create_frame_key(
            settings, "node" if kind == "node" else "owner", name, out=out, until_ms=until_ms
        )
    elif kind in SIGNERS:
        sentences = _create_signer(settings, kind, name, until_ms)
    else:
        raise SettingsError(f"{kind!r} is not a kind of key. Kinds: {_WHAT}.")
    for sentence in sentences:
        console().print(sentence)


def _create_site(settings: Settings, until_ms: int | None) -> Iterator[str]:
    folder = settings.key_folder
    known = read_site_keys(folder)
    if known:
        raise SettingsError(
            f"{folder} already has a site key ({', '.join(known)}). `flatline keys rotate` creates "
            "another one."
        )
    key = make_site_key(folder, now_ms=_now_ms())
    if until_ms is not None:
        secret = read_site_keys(folder)[key].secret
        write_site_key(folder, key, SiteKey(secret, until_ms))
    yield f"The site key {key} is in {site_key_path(folder, key)}."
    yield (
        "Copy the file to the keys folder of every engine, forecaster and historian, but to no "
        "node. Create a key for each node: flatline keys create node NAME."
    )


def _create_frame_key(
    settings: Settings, kind: Kind, name: str | None, *, out: Path | None, until_ms: int | None
) -> Iterator[str]:
    name = _checked(name, kind, settings)
    site_keys = read_site_keys(settings.key_folder)
    now_ms = _now_ms()
    newest = newest_site_key(site_keys, now_ms=now_ms)
    if newest is None:
        raise SettingsError(
            f"{settings.key_folder} has no site key, from which other keys are derived. Run this "
            "command on the machine that has it, or create one with `flatline keys create site`."
        )
    made = make_name(kind, name, site_key=newest, now_ms=now_ms, until_ms=until_ms)
    path = name_key_path(settings.key_folder, kind, name) if out is None else out
    if out is None:
        write_name_key(path, made, site_keys[newest])
    else:
        write_new_key_file(out, name_key_text(made, site_keys[newest]))
    yield (
        f"The key {made.serial} of {kind} {name} is in {path}. It is derived from site key "
        f"{newest}."
    )
    yield (
        f"Copy it to the keys folder of {name} as {kind}-{name}.key, readable only by the user of "
        "its roles (chmod 600). A running role loads it within a second."
    )


def _create_signer(
    settings: Settings, kind: str, name: str | None, until_ms: int | None
) -> Iterator[str]:
    name = _checked(name, kind, settings)
    signer = next(signer for signer in SIGNERS if signer == kind)
    folder = settings.key_folder
    former = read_key(folder, signer)
    if former is None:
        key = own_key(folder, signer).public_key()
    else:
        key, known = former.public_key(), list(_files_of(settings, signer, former.public_key()))
        if _has_ended(settings, key_id(key), [path for _, path in known]):
            yield f"The former key {key_id(key)} has expired, so another one is created."
            for _, path in known:
                if path.parent == folder:
                    path.unlink()
            key = replace_key(folder, signer).public_key()
        else:
            _require_own_name(kind, name, key_id(key), known)
    text = public_key_pem(key).decode()
    public = folder / f"{signer}-{name}.pub"
    write_key_file(public, text if until_ms is None else with_end(text, until_ms), mode=0o644)
    yield f"The key {key_id(key)} of {kind} {name} is in {settings.key_folder / f'{kind}.key'}."
    readers = {
        "planner": "every planner and agent",
        "agent": "every planner and agent",
        "engine": "every planner",
        "operator": "every planner and agent",
    }[kind]
    yield f"Copy {public} to the trusted folder of {readers}."


def _files_of(
    settings: Settings, signer: Signer, key: Ed25519PublicKey
) -> Iterator[tuple[str, Path]]:
    """Yield name and path of each file on this machine that holds this public key."""
    for folder in (settings.key_folder, settings.trusted_folder):
        for path in sorted(folder.glob(f"{signer}-*.pub")):
            if _id_of(path) == key_id(key):
                yield path.stem.removeprefix(f"{signer}-"), path


def _has_ended(settings: Settings, name: str, files: list[Path]) -> bool:
    ends = [read_revoked(settings.key_folder).ended_ms(name), *(_end_of(path) for path in files)]
    return any(until_ms is not None and until_ms <= _now_ms() for until_ms in ends)


def _require_own_name(kind: str, name: str, key: str, known: list[tuple[str, Path]]) -> None:
    """Refuse a second name for one key: its signatures would be attributed to either name."""
    for other, path in known:
        if other != name:
            raise SettingsError(
                f"The {kind} key {key} of this machine belongs to {other} ({path}), and a key has "
                f"one name. Run this command on the machine of {name}, or with another folder "
                f"(--set keys.folder=FOLDER). To replace the key of {other}, first run `flatline "
                f"keys revoke {key}`, then repeat this command."
            )


def _end_of(path: Path) -> int | None:
    return until_ms_of(labels_of(path.read_text()), source=str(path))


@dataclass(frozen=True, slots=True)
class _Row:
    kind: str
    name: str
    id: str
    until_ms: int | None
    state: str
    place: Path


@keys.command("show")
def show(file: File = None, sets: Sets = None) -> None:
    """List the keys of this machine and the keys that it trusts; no private key is shown."""
    settings = settings_of(file, sets)
    table = Table("kind", "name", "id", "made", "ends", "state", "file")
    for row in (*_frame_rows(settings), *_own_rows(settings), *_trusted_rows(settings)):
        made = day_of(made_ms(row.id)) if row.kind in {"site", "node", "owner"} else ""
        ends = "never" if row.until_ms is None else day_of(row.until_ms)
        cells = (row.kind, row.name, row.id, made, ends, row.state, row.place.name)
        table.add_row(*cells)
    console().print(table)
    console().print(
        f"Private keys are in {settings.key_folder}, trusted public keys in "
        f"{settings.trusted_folder}."
    )


def day_of(time_ms: int) -> str:
    """Return the day of a time in ms since the epoch, in UTC."""
    return date_of(time_ms)[:10]


def _state(until_ms: int | None, *, revoked: bool, fine: str) -> str:
    if revoked:
        return "revoked"
    return "expired" if until_ms is not None and until_ms <= _now_ms() else fine


def _frame_rows(settings: Settings) -> Iterator[_Row]:
    folder = settings.key_folder
    if not folder.is_dir():
        return
    revoked, site_keys = read_revoked(folder), read_site_keys(folder)
    newest = newest_site_key(site_keys, now_ms=_now_ms())
    for name, key in site_keys.items():
        fine = "in use" if name == newest else "accepted"
        state = _state(key.until_ms, revoked=name in revoked.ids, fine=fine)
        yield _Row("site", "", name, key.until_ms, state, site_key_path(folder, name))
    for kind, path in _name_files(folder):
        known, _ = read_name_key(path)
        until_ms = known.until_s * 1000 or None
        fine = f"under {known.site_key}"
        state = _state(until_ms, revoked=revoked.covers(known), fine=fine)
        yield _Row(kind, known.name, known.serial, until_ms, state, path)


def _name_files(folder: Path) -> Iterator[tuple[Kind, Path]]:
    for kind in KINDS:
        for path in sorted(folder.glob(f"{kind}-*.key")):
            yield kind, path


def _own_rows(settings: Settings) -> Iterator[_Row]:
    for signer in SIGNERS:
        key = read_key(settings.key_folder, signer)
        if key is not None:
            public = key.public_key()
            files = [path for _, path in _files_of(settings, signer, public)]
            ended = _has_ended(settings, key_id(public), files)
            path = settings.key_folder / f"{signer}.key"
            yield _Row(signer, "", key_id(public), None, "ended" if ended else "signs", path)


def _trusted_rows(settings: Settings) -> Iterator[_Row]:
    revoked = read_revoked(settings.key_folder)
    for signer, name, path in public_files(settings.trusted_folder):
        key, until_ms = _id_of(path), _end_of(path)
        state = _state(until_ms, revoked=revoked.ended_ms(key) is not None, fine="believed")
        yield _Row(signer, name, key, until_ms, state, path)


@keys.command("rotate")
def rotate(
    overlap_days: Annotated[
        float,
        typer.Option(
            min=0.0, help="Number of days for which frames under older keys are accepted."
        ),
    ] = 30.0,
    file: File = None,
    sets: Sets = None,
) -> None:
    """Create a new site key. Readers accept older ones for a while, writers use the newest."""
    settings = settings_of(file, sets)
    folder, now_ms = settings.key_folder, _now_ms()
    older = read_site_keys(folder)
    if not older:
        raise SettingsError(
            f"{folder} has no site key to rotate. Create one with `flatline keys create site`."
        )
    made = make_site_key(folder, now_ms=now_ms)
    ends_ms = now_ms + round(overlap_days * _DAY_MS)
    for name, key in older.items():
        until_ms = ends_ms if key.until_ms is None else min(key.until_ms, ends_ms)
        write_site_key(folder, name, SiteKey(key.secret, until_ms))
    say = console().print
    say(f"The site key {made} is in {site_key_path(folder, made)}.")
    if ends_ms > now_ms:
        say(f"Frames under {', '.join(older)} are accepted until {date_of(ends_ms)}.")
    else:
        say(
            f"Frames under {', '.join(older)} are rejected from now on. No node is visible until "
            "it has its new key. To avoid this, use --overlap-days 30."
        )
    say(
        "First copy the site-*.key files to the keys folder of every other engine, forecaster and"
        " historian."
    )
    say("Then give each node its new key: flatline keys create node NAME.")
    say("Each owner also needs a new key: flatline keys create owner NAME.")
    known = [f"{kind} {read_name_key(path)[0].name}" for kind, path in _name_files(folder)]
    if known:
        say(f"Create these keys in {folder} again: {', '.join(known)}.")


@keys.command("revoke")
def revoke_key(
    what: Annotated[
        str, typer.Argument(help="Id of a key; or node, owner, planner, operator, ...")
    ],
    name: Name = None,
    file: File = None,
    sets: Sets = None,
) -> None:
    """Revoke a key by its id, or every key that was made for a name until now."""
    settings = settings_of(file, sets)
    now_ms, folder, listed = _now_ms(), settings.key_folder, settings.key_folder / REVOKED
    trusted = [
        path
        for signer, known, path in public_files(settings.trusted_folder)
        if (signer, known) == (what, name) or (name is None and _id_of(path) == what)
    ]
    is_id = name is None and len(what) == _ID_LENGTH and set(what) <= set("0123456789abcdef")
    of_name = what in KINDS and name is not None
    if not (trusted or is_id or of_name):
        raise SettingsError(
            f"There is no trusted key of {what} {name or ''}".rstrip()
            + (
                f" in {settings.trusted_folder}, and it is neither the id of a key nor node NAME, "
                "engine NAME or owner NAME. Run `flatline keys show` on the machine of the key: "
                "its id can be revoked here."
            )
        )
    say = console().print
    for path in trusted:
        # Revoking a key that has already ended must not extend its life until now.
        ends_ms = min(now_ms, _end_of(path) or now_ms)
        write_key_file(path, with_end(path.read_text(), ends_ms), mode=0o644)
        say(f"{path} expires now: records that the log accepts from now on are rejected.")
    # The list `revoked` also names signing keys, so that a key stays revoked if an old copy of its
    # file is put into the trusted folder again.
    for key in sorted({_id_of(path) for path in trusted} | ({what} if is_id else set())):
        revoke(folder, what=f"{SIGNING}/{key}", now_ms=now_ms)
    if is_id and not trusted:
        revoke(folder, what=what, now_ms=now_ms)
        say(
            f"{listed} names it: within a second, frames under this key and records signed by it "
            "are rejected."
        )
    if of_name:
        revoke(folder, what=f"{what}/{name}", now_ms=now_ms)
        say(f"{listed} names it: frames under its keys are rejected within a second.")
    places = f"{settings.trusted_folder} and {listed}" if trusted else str(listed)
    say(f"Copy {places} to the other machines that read the log.")


def _id_of(path: Path) -> str:
    return key_id(parse_public_key(path.read_bytes(), source=str(path)))


@keys.command("export")
def export(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="site, node or owner.")],
    name: Annotated[str, typer.Argument(help="Name of a node or owner, or id of a site key.")],
    to: Annotated[
        Path, typer.Argument(metavar="FILE", help="Output file, created with mode 0600.")
    ],
    file: File = None,
    sets: Sets = None,
) -> None:
    """Write a private frame key of this machine to a file, to be copied to another machine."""
    settings = settings_of(file, sets)
    folder = settings.key_folder
    if kind not in {"site", "node", "owner"}:
        raise SettingsError(f"{kind!r} cannot be exported. Kinds: site, node or owner.")
    source = folder / f"{kind}-{name}.key"
    if not source.is_file() or source.parent != folder:
        raise SettingsError(
            f"{source} does not exist. `flatline keys show` lists the keys of this machine, and "
            f"`flatline keys create {kind}` creates one."
        )
    write_new_key_file(to, source.read_text())
    console().print(f"{to} holds the private key of {kind} {name}. Delete it after copying.")
