"""Settings of the InfluxDB adapter and the names of its buckets."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flatline.engine.errors import HistoryRefused
from flatline.engine.wire.measurement import RETENTION_S, Bucket

# Most lines in one request. InfluxDB advises 5,000; the server's memory grows with the body.
BATCH_LINES: Final = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class InfluxConfig:
    """Connection to one InfluxDB 2.x or 3.x.

    Attributes
    ----------
    database
        Name under which InfluxQL finds the buckets DATABASE_raw, DATABASE_minute and DATABASE_long.
    token, token_file
        Exactly one is set. The file is read again when the server rejects the token.
    timeout_s
        Limit for one request; a server that was compacting was measured to need 5 s.
    retention_s
        How long each bucket keeps its rows, for `flatline history setup`.
    """

    url: str
    org: str
    database: str = "flatline"
    token: str | None = None
    token_file: Path | None = None
    ca_file: Path | None = None
    timeout_s: float = 30.0
    retention_s: dict[Bucket, int] = field(default_factory=lambda: dict(RETENTION_S))

    def bucket(self, bucket: Bucket) -> str:
        """Return the name of a bucket on the server."""
        return f"{self.database}_{bucket}"

    def read_token(self) -> str:
        """Return the token.

        Raises
        ------
        HistoryRefused
            The token file cannot be read or is empty.
        """
        if self.token_file is None:
            return self.token or ""
        try:
            token = self.token_file.read_text().strip()
        except OSError as error:
            raise HistoryRefused(
                f"history.influxdb.token_file {self.token_file} cannot be read: {error.strerror}. "
                "`flatline history setup` creates it."
            ) from error
        if not token:
            raise HistoryRefused(f"history.influxdb.token_file {self.token_file} is empty")
        return token
