"""Every setting of Flatline: its unit, its default and the reason for it.

The environment (`FLATLINE_LOG__KIND`) overrides a TOML file, and flags (`--set log.kind=kafka`)
override both. An unknown name is refused; the error states its place and the nearest known name.
"""

import os
import re
import socket
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as SettingsSourceError

from flatline.engine.errors import SettingsError
from flatline.engine.secret_file import Url, read_secret

PREFIX: Final = "FLATLINE_"
# Variables with the prefix that are not settings: the path of the file, and those of lab scripts.
CONFIG_VARIABLE: Final = "FLATLINE_CONFIG"
_NOT_SETTINGS: Final = (CONFIG_VARIABLE, "FLATLINE_CACHE", "FLATLINE_LAB_")
_FREE: Final = ("act.targets.",)
DEFAULT_FILE: Final = Path("/etc/flatline/flatline.toml")

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=128)]


def _state_folder() -> Path:
    """Return systemd's folder for the unit, else the user's default folder for state."""
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "flatline"


class Section(BaseModel):
    """A group of settings that one part of the program reads."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Place(Section):
    """The position of this process in the fleet."""

    name: Name = "site"
    """Name of the site: one installation, one log."""
    zone: Name = "zone"
    """Name of the zone inside the site."""
    cell: Name = "cell"
    """Name of the cell, the failure domain of up to about 64 nodes: the key of every frame."""
    node: Name = Field(default_factory=lambda: socket.gethostname() or "node")
    """Name of this node, unique in the site; by default the host's name."""


class Kafka(Section):
    """The connection to Kafka, where `log.kind` is `kafka`."""

    bootstrap: str = "localhost:9092"
    """`host:port` of one or more brokers, separated by commas."""
    security: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = "plaintext"
    """How the connection is protected. Plaintext is for one machine only."""
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    """SASL mechanism of the authentication by password, with `sasl_*`."""
    username: str | None = None
    """Name of the principal, with `sasl_*`."""
    password: SecretStr | None = None
    """Password of the principal. `password_file` is safer: process lists do not show it."""
    password_file: Path | None = None
    """File that holds the password, for example a systemd credential."""
    ca_file: Path | None = None
    """Certificates of the authorities that sign the brokers' certificates; None: the system's."""
    cert_file: Path | None = None
    """Certificate of this client, if the brokers require one."""
    key_file: Path | None = None
    """Private key of the client's certificate."""
    consumer: Literal["plain", "faust"] = "faust"
    """Client with which the engine reads frames. Both give the same alerts; `plain` (aiokafka)
    replaces a release of Faust that has a fault."""
    topic_prefix: str = Field(default="", pattern=r"^[A-Za-z0-9._-]*$", max_length=64)
    """Prefix of every topic's name, so that installations can share a cluster."""
    replication: int = Field(default=1, ge=1, le=7)
    """Replication factor of topics made by `flatline doctor --create-topics`; 3 in production."""

    @model_validator(mode="after")
    def _complete(self) -> "Kafka":
        secrets = (self.password is not None) + (self.password_file is not None)
        if secrets == 2:
            raise ValueError("password and password_file are both set: keep one")
        if self.security.startswith("sasl") and not (self.username and secrets):
            raise ValueError(f"{self.security} requires username and password_file")
        return self

    def secret(self) -> str | None:
        """Return the password, None if there is none; see `read_secret` for errors of its file."""
        if self.password is not None:
            return self.password.get_secret_value()
        if self.password_file is None:
            return None
        return read_secret(self.password_file, name="log.kafka.password_file")


class LogPart(Section):
    """The one log of the site."""

    kind: Literal["embedded", "kafka"] = "embedded"
    """`embedded` keeps the log in SQLite files on this machine; `kafka` serves many machines."""
    folder: Path | None = None
    """Folder of the embedded log; None is `log` in the state folder."""
    max_bytes: int = Field(default=8 << 30, ge=64 << 20)
    """Bytes of newest records that the embedded log keeps; 8 GiB: 2 days of 1,000 VMs at 10 s."""
    partitions: int = Field(default=8, ge=1, le=1024)
    """Partitions of every topic that is keyed by cell. It cannot be changed once the topics
    exist, since a cell's records would lose their order; 8 serve up to 8 engines."""
    kafka: Kafka = Kafka()


class Collect(Section):
    """The collector on a node."""

    interval_s: float = Field(default=10.0, ge=1.0, le=300.0)
    """Seconds between two samples. 10 s finds a dead guest in under a minute at little cost;
    detection works from 1 s to 5 min."""
    libvirt_uri: str = "qemu:///system"
    """libvirt connection of the collector, which opens it read-only."""
    buffer_s: float = Field(default=900.0, ge=10.0, le=86_400.0)
    """Seconds of frames that are kept while the log is unavailable. A broker restarts in less than
    15 min; older frames do not help to detect present faults."""
    buffer_bytes: int = Field(default=256 << 20, ge=1 << 20)
    """Limit of the same buffer in bytes: 200 VMs sampled every second fill 25 MB in 15 min."""
    inventory_every_s: float = Field(default=600.0, ge=10.0, le=86_400.0)
    """Seconds after which the whole inventory is sent again although nothing changed."""


class HypervisorPart(Section):
    """The hypervisor of this node."""

    kind: Literal["libvirt"] = "libvirt"
    """Connector with which collector and agent access the VMs. The settings of `libvirt` are
    `collect.libvirt_uri`, `act.libvirt_uri` and `act.targets`."""


class Engine(Section):
    """The engine that detects faults."""

    group: Name = "flatline-engine"
    """Consumer group: engines of one group share the partitions."""
    snapshot_every_s: float = Field(default=180.0, ge=5.0, le=3600.0)
    """Seconds between two snapshots: a restarted engine reads the records since the last one."""


class ForecastPart(Section):
    """The forecaster."""

    group: Name = "flatline-forecast"
    """Consumer group: forecasters of one group share the partitions."""
    snapshot_every_s: float = Field(default=3 * 3600.0, ge=60.0, le=86400.0)
    """Seconds between two snapshots: a restarted forecaster reads the records since the last one.
    Snapshots are rare because they are large (some 80 KB per VM); frames are kept for 2 days."""


class MigrationTarget(Section):
    """The connection of this node to another one for a live migration."""

    uri: str
    """URI at which this node's libvirtd connects to the other one: `qemu+tls://node7/system`."""
    data_uri: str | None = None
    """Address to which the memory is copied, such as `tcp://10.0.7.1`; None: libvirt chooses."""
    unsafe: bool = False
    """Whether to migrate even if libvirt cannot verify that both nodes share the disks."""
    bandwidth_mib_s: int | None = Field(default=None, ge=1)
    """Largest bandwidth of a migration in MiB/s; None: no limit."""


class Act(Section):
    """The agent on a node."""

    libvirt_uri: str = "qemu:///system"
    """libvirt connection of the actuator, which needs write access."""
    targets: dict[Name, MigrationTarget] = {}
    """Nodes to which a VM may be migrated, by name. A node that is not listed is never a target."""
    enable_balloon_stats: bool = False
    """Whether to enable the balloon's periodic report (a witness) on VMs that allow actions."""


class Policy(Section):
    """The permitted actions and their scopes."""

    file: Path | None = None
    """Policy file. None: the shipped policy `default`, which allows no action."""


class Notify(Section):
    """Notification of people; planners send it."""

    url: Url | None = Field(default=None, pattern=r"^https?://")
    """Webhook for notifications of people, in the format of Alertmanager's webhook, and for
    `FlatlineAlive` once a minute. None: notifications are only written to the journal."""
    token_file: Path | None = None
    """File that holds the bearer token for the webhook."""


class Http(Section):
    """Probes and metrics."""

    host: str = "127.0.0.1"
    """Address to listen on; by default only this machine, because metrics name nodes and cells."""
    port: int | None = Field(default=None, ge=0, le=65_535)
    """Port of `/livez`, `/readyz` and `/metrics`; None: they are not served, 0: any free port."""


class Influx(Section):
    """The connection to InfluxDB, where `history.kind` is `influxdb`."""

    url: Url = "http://localhost:8086"
    """Address of the server. Use https unless the server is on this machine."""
    org: str = "flatline"
    """Organisation to which the buckets belong."""
    database: Name = "flatline"
    """Database NAME in InfluxQL; its buckets are NAME_raw, NAME_minute and NAME_long."""
    token_file: Path | None = None
    """File that holds the token; it is read again when the server refuses the token. None:
    `influxdb/historian.token` in the state folder, which `flatline history setup` writes."""
    ca_file: Path | None = None
    """Certificates of the authorities that sign the server's certificate; None: the system's."""
    timeout_s: float = Field(default=30.0, ge=1.0, le=300.0)
    """Time limit of one request in s. A server that was compacting was measured to need 5 s."""


class HistoryPart(Section):
    """The history of every VM, for planners."""

    kind: Literal["embedded", "influxdb"] = "embedded"
    """`embedded` keeps it as Parquet files of this machine; `influxdb` in InfluxDB 2.x or 3.x."""
    folder: Path | None = None
    """Folder of the embedded history; None is `history` in the state folder."""
    group: Name = "flatline-history"
    """Consumer group: historians of one group share the partitions."""
    raw_days: int = Field(default=7, ge=1, le=3650)
    """Days for which every sample is kept."""
    minute_days: int = Field(default=30, ge=1, le=3650)
    """Days for which minutes are kept."""
    long_days: int = Field(default=400, ge=1, le=3650)
    """Days for which hours, alerts, actions and capacity are kept: a year and a month."""
    influxdb: Influx = Influx()


class State(Section):
    """The data that this process keeps on its own disk."""

    folder: Path = Field(default_factory=_state_folder)
    """Folder of the embedded log, the agent's ledger and the keys. Its disk must not lose flushed
    data, because the ledger prevents a second reset."""


class Keys(Section):
    """The keys of this installation, and whether frames must be authenticated."""

    folder: Path | None = None
    """Folder of private keys, one for each role; None: `keys` in the state folder."""
    trusted: Path | None = None
    """Folder of trusted public keys, watched for changes; None: `trusted` in the state folder."""
    frames: Literal["require", "accept"] = "require"
    """Whether frames must have their node's MAC. `accept` permits frames without it, and unsigned
    snapshots. Use it only during an upgrade: any writer can then send frames for any node."""


class Settings(BaseSettings):
    """All settings of one process, validated."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        use_attribute_docstrings=True,
    )

    site: Place = Field(default_factory=Place)
    log: LogPart = LogPart()
    hypervisor: HypervisorPart = HypervisorPart()
    collect: Collect = Collect()
    engine: Engine = Engine()
    forecast: ForecastPart = ForecastPart()
    act: Act = Act()
    history: HistoryPart = HistoryPart()
    policy: Policy = Policy()
    notify: Notify = Notify()
    http: Http = Http()
    state: State = Field(default_factory=State)
    keys: Keys = Keys()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources of values: flags before the environment before the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def log_folder(self) -> Path:
        """Folder of the embedded log."""
        return self.log.folder or self.state.folder / "log"

    @property
    def history_folder(self) -> Path:
        """Folder of the embedded history."""
        return self.history.folder or self.state.folder / "history"

    @property
    def key_folder(self) -> Path:
        """Folder of this installation's own private keys."""
        return self.keys.folder or self.state.folder / "keys"

    @property
    def trusted_folder(self) -> Path:
        """Folder of the public keys that verify orders and results."""
        return self.keys.trusted or self.state.folder / "trusted"


def load_settings(
    file: Path | None = None, *, flags: Mapping[str, str] | None = None
) -> tuple[Settings, Path | None]:
    """Return the settings in force, and the file that was read (None: there was none).

    Parameters
    ----------
    file
        TOML file; None takes `$FLATLINE_CONFIG`, else `/etc/flatline/flatline.toml` if it exists.
    flags
        Values by dotted name (`log.kind`), as text in TOML's notation; a bare word is a string.

    Raises
    ------
    SettingsError
        The file cannot be read, a name does not exist, or a value is not valid.
    """
    chosen = _chosen(file)
    text = _read(chosen) if chosen else ""
    given = dict(flags or {})
    origins = _Origins(file=chosen, text=text, flags=given)
    for name, where in origins.given():
        _check_name(name, where)

    class Here(Settings):
        model_config = SettingsConfigDict(toml_file=chosen)

    values: dict[str, Any] = {}
    for name, value in given.items():
        _put(values, name.split("."), _flag_value(value))
    try:
        return Here(**values), chosen
    except ValidationError as error:
        problems = (
            _reported(problem["loc"], problem["msg"], origins) for problem in error.errors()
        )
        raise SettingsError("\n".join(problems)) from error
    except SettingsSourceError as error:
        raise SettingsError(f"The environment cannot be read: {error}.") from error


def setting_names(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every section and, after it, of its settings, after `prefix`."""
    for name, field in model.model_fields.items():
        yield prefix + name
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from setting_names(kind, f"{prefix}{name}.")


class _Origins:
    """The place where each value was written, for messages."""

    def __init__(self, *, file: Path | None, text: str, flags: Mapping[str, str]) -> None:
        self._in_file = {
            name: f"{file}, line {line}" for name, line in _lines(tomllib.loads(text), text)
        }
        self._in_environment = {
            variable.removeprefix(PREFIX).lower().replace("__", "."): variable
            for variable in os.environ
            if variable.startswith(PREFIX) and not variable.startswith(_NOT_SETTINGS)
        }
        self._in_flags = {name: f"--set {name}" for name in flags}

    def given(self) -> Iterator[tuple[str, str]]:
        """Yield every name that was written, and its place."""
        for names in (self._in_file, self._in_environment, self._in_flags):
            yield from names.items()

    def of(self, name: str) -> str | None:
        """Return where the value in force for `name` was written, None for a default."""
        for names in (self._in_flags, self._in_environment, self._in_file):
            if name in names:
                return names[name]
        return None


def _chosen(file: Path | None) -> Path | None:
    if file is None and os.environ.get(CONFIG_VARIABLE):
        file = Path(os.environ[CONFIG_VARIABLE])
    if file is None and DEFAULT_FILE.exists():
        file = DEFAULT_FILE
    return file


def _read(file: Path) -> str:
    try:
        text = file.read_text()
        tomllib.loads(text)
    except OSError as error:
        raise SettingsError(f"Settings file {file} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"Settings file {file} is not TOML: {error}.") from error
    return text


def _check_name(name: str, where: str) -> None:
    known = list(setting_names())
    sections = {whole.rpartition(".")[0] for whole in known} - {""}
    if name in sections and where.startswith((PREFIX, "--set")):
        inside = next(whole for whole in known if whole.startswith(f"{name}."))
        write = inside
        if where.startswith(PREFIX):
            write = f"{PREFIX}{inside.upper().replace('.', '__')}"
        raise SettingsError(f"{where}: {name} is a section. Use one of its settings: {write}.")
    # Names below a mapping are chosen by the user, and pydantic validates them.
    if name in known or name.startswith(_FREE):
        return
    near = get_close_matches(name, known, n=1) or get_close_matches(
        name.replace("_", "."), known, n=1, cutoff=0.5
    )
    hint = f" Did you mean {near[0]}?" if near else " `flatline config schema` lists all settings."
    if near and where.startswith(PREFIX):
        hint = f" Did you mean {PREFIX}{near[0].upper().replace('.', '__')}?"
    raise SettingsError(f"{where}: unknown setting {name!r}.{hint}")


def _reported(location: tuple[int | str, ...], message: str, origins: _Origins) -> str:
    """Return one sentence with the place of a wrong value and its fault."""
    parts = [str(part) for part in location]
    # For a value of several types pydantic appends each type to the location; these are removed.
    while parts and ".".join(parts) not in set(setting_names()):
        parts.pop()
    name = ".".join(parts)
    where = origins.of(name) or "default"
    if message.startswith("Input should be a valid dictionary"):
        message = f"it is a section: use [{name}] with its settings below it"
    return f"{where}: {name}: {message.removeprefix('Value error, ')}."


def _flag_value(text: str) -> object:
    """Return the TOML value of a flag's text; a text that is not valid TOML is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(values: dict[str, Any], path: list[str], value: object) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
    values[path[-1]] = value


def _lines(table: Mapping[str, Any], text: str, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield each name of a TOML document with its line, 1 where it cannot be found."""
    for key, value in table.items():
        name = prefix + key
        if isinstance(value, Mapping):
            yield from _lines(value, text, f"{name}.")
        if not (isinstance(value, Mapping) and value and name in set(setting_names())):
            yield name, _line(name, text)


def _line(name: str, text: str) -> int:
    section = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            section = header[1] + "."
            if header[1] == name:
                return number
        elif (key := re.match(r"\s*([\w.-]+)\s*=", line)) and section + key[1] == name:
            return number
    return 1
