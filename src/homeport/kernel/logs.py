"""How processes of Homeport log: server and node in the same way."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from structlog.typing import Processor

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "console", "json"]


def configure_logging(level: Level, form: Format) -> None:
    """Log to stderr, one event a line, also what libraries log (from warnings on).

    ``auto`` is for people on a terminal and JSON otherwise. Tracebacks are plain: with the local
    variables that richer ones show, secrets would get into logs.
    """
    import structlog  # takes its time, which commands that read settings only need not wait for

    terminal = sys.stderr.isatty()
    ending: list[Processor]
    if form == "console" or (form == "auto" and terminal):
        ending = [
            structlog.dev.ConsoleRenderer(
                colors=terminal, exception_formatter=structlog.dev.plain_traceback
            )
        ]
    else:
        ending = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*common, *ending],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *common],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))
