"""Verification of frames by the roles that read them: a wrong MAC is counted and logged."""

from collections.abc import Callable
from typing import Final

import structlog

from flatline.engine import instruments
from flatline.engine.errors import RecordRejected
from flatline.engine.ports import Clock, Headers, Record
from flatline.engine.wire.frame import Frame
from flatline.engine.wire.frame_mac import FrameKeys, open_frame
from flatline.engine.wire.table import Widen

# A wrong MAC is logged at most once in this time, so that a flood does not fill the log file. The
# engine writes each such record to the topic `rejected` with the reason.
_REPORT_EVERY_NS: Final = 60_000_000_000

_log = structlog.get_logger()


def unsigned(_record_key: bytes, _value: bytes) -> Headers:
    """Return no headers, for a writer without a key."""
    return ()


class FrameOpener:
    """Verifies the writer of a record and returns its frame; `engine.ports.OpenFrame`.

    Parameters
    ----------
    keys
        Provides the current keys.
    reader
        The role that reads, for the metric.
    widen
        See `engine.wire.frame.decode_frame`.
    """

    def __init__(
        self,
        keys: Callable[[], FrameKeys],
        *,
        reader: str,
        clock: Clock,
        widen: Widen | None = None,
    ) -> None:
        self._keys = keys
        self._refused = instruments.FRAMES_NOT_BELIEVED.labels(reader)
        self._clock = clock
        self._widen = widen
        self._reported_ns: int | None = None

    def __call__(self, record: Record) -> Frame:
        """Return the frame, or raise `RecordRejected`."""
        try:
            return open_frame(
                record.value,
                record_key=record.key,
                headers=record.headers,
                time_ms=record.time_ms,
                keys=self._keys(),
                widen=self._widen,
            )
        except RecordRejected as error:
            if error.reason == "bad_mac":
                self._refused.inc()
                self._report(error.detail)
            raise

    def _report(self, why: str) -> None:
        now_ns = self._clock.mono_ns()
        if self._reported_ns is None or now_ns - self._reported_ns >= _REPORT_EVERY_NS:
            self._reported_ns = now_ns
            _log.warning(why)
