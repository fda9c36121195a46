"""Structured logs: every line, ours and the libraries', is one JSON object on stderr. API keys are cut out of all."""

from __future__ import annotations

import logging
import logging.config
import re
from typing import Any

import orjson
import structlog

from app.text import readable
from app.tracing import add_ids

API_KEY = re.compile(r"espk_\w+")


def configure_logging(level: str) -> None:
    """Call once, first thing in a process. `level` is the least severe that is written."""
    severity = logging.getLevelNamesMapping()[level.upper()]
    before: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        add_ids,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(severity),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "json": {
                    "()": structlog.stdlib.ProcessorFormatter,
                    "foreign_pre_chain": [*before, structlog.stdlib.add_logger_name],
                    "processors": [
                        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                        structlog.processors.format_exc_info,
                        structlog.processors.JSONRenderer(serializer=_json),
                    ],
                }
            },
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
            "root": {"handlers": ["stderr"], "level": severity},
            "loggers": {
                # uvicorn would bring handlers of its own; requests are logged by app/http/middleware.py.
                "uvicorn": {"handlers": [], "propagate": True},
                "uvicorn.access": {"handlers": [], "propagate": False},
                "httpx2": {"level": "WARNING"},
                "alembic": {"level": "WARNING"},
            },
        }
    )


def _json(event: Any, default: Any, **kw: Any) -> str:
    """The line, in which whatever looks like an API key is replaced, wherever it stands."""
    return API_KEY.sub("espk_[redacted]", orjson.dumps(readable(event), default=repr).decode())
