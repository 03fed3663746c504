"""The control plane's log: fields as JSON lines on stderr, or coloured lines for a person at a terminal.

A traceback is text without local variables, for these hold requests, tokens and keys.
"""

import logging
import sys
from typing import Final

import structlog

from meshwarden.sdk.tracing.own_span import add_trace

_SHARED: Final = (
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    add_trace,
)


def configure() -> None:
    """Sets up structlog, and sends the standard library's records the same way."""
    ends: list[structlog.types.Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(sort_keys=True),
    ]
    if sys.stderr.isatty():
        ends = [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    structlog.configure(
        processors=[*_SHARED, *ends],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=list(_SHARED),
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ends],
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
