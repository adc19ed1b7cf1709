"""Log lines: `2026-11-22T17:34:00.123Z info  n1 leader 7@3 leads`, or the same as JSON.

The code logs through the standard library; structlog renders, because it is the
maintained library that does both forms from one chain. Every line of a group
says who speaks, in which role, and where its log ends (`index@term`).
"""

import logging
import sys

import structlog
from structlog.types import EventDict, Processor, WrappedLogger

_OPENING = ("node", "role", "position")


def configure(*, level: str, json: bool) -> None:
    """Send all log lines of this process to stderr."""
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if json
        else [structlog.processors.format_exc_info, _render_text]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def _render_text(logger: WrappedLogger, name: str, event: EventDict) -> str:
    del logger, name
    exception = event.pop("exception", None)
    words = [str(event.pop("timestamp")), f"{event.pop('level'):<7}"]
    words += [str(event.pop(key)) for key in _OPENING if key in event]
    event.pop("term", None)  # the position and the role's line say it
    words.append(str(event.pop("event")))
    words += [f"{key}={value}" for key, value in event.items()]
    line = " ".join(words)
    return line if exception is None else f"{line}\n{exception}"
