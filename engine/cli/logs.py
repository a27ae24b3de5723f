"""Format of log lines: JSON for machines, key and value for a person at a terminal."""

import io
import logging
import sys
from collections.abc import Sequence
from typing import TextIO

import structlog
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

from flatline.engine.plain_text import lines, one_line

# Libraries log below this level each reconnection, which Flatline's own log lines report already.
_FOREIGN_LEVEL = logging.WARNING
# While a broker is unavailable, aiokafka logs two errors a second for each client. Flatline's own
# log lines report the outage.
_SILENT = ("aiokafka",)


def harmless(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Escape event texts, so that none can move the cursor or forge a line.

    This is a processor of structlog, which passes the first two arguments.
    """
    return {name: one_line(v) if isinstance(v, str) else v for name, v in event.items()}


def _traceback(stream: TextIO, error: ExcInfo) -> None:
    """Write a traceback with escaped characters, because its messages may quote text of guests."""
    text = io.StringIO()
    structlog.dev.plain_traceback(text, error)
    stream.write(lines(text.getvalue()))


def set_up_logs(*, level: int = logging.INFO) -> None:
    """Configure all log lines, of Flatline and of libraries, to go to stderr in one format.

    `level` is the lowest level of Flatline's lines, as in `logging`. Those of libraries begin with
    warnings.
    """
    shared: Sequence[Processor] = (
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    )
    renderer: tuple[Processor, ...]
    # Texts are escaped for a terminal, which executes the control characters that it receives. In
    # JSON they are escaped anyway.
    if sys.stderr.isatty():
        renderer = (
            harmless,
            structlog.dev.ConsoleRenderer(pad_event_to=0, exception_formatter=_traceback),
        )
    else:
        renderer = (
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        )
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_FOREIGN_LEVEL)
    for name in _SILENT:
        logging.getLogger(name).setLevel(logging.CRITICAL)
