"""The access log: one line per request, as text or JSON. It shows no text of a request unless asked.

Lines go to the logger `mrr_model.serving.access`. Nothing is written before `set_up_logging`, or whatever else sets up
Python's logging, adds a handler.
"""

import json
import logging
import re
from datetime import datetime, timezone
from typing import Any, TextIO

from mrr_model.serving.config import ServeConfig
from mrr_model.serving.records import RequestRecord

logger = logging.getLogger("mrr_model.serving.access")

LOGGERS = ("mrr_model", "uvicorn")
"""The loggers that a server writes to."""
PLAIN = re.compile(r"[!#-<>-\[\]-~]+")
"""A value that needs no quotes: visible ASCII without quotes, equals signs and backslashes."""
FIELDS = "access_fields"
"""The attribute of a log record that holds the fields of an access line."""


class AccessLog:
    """Writes a line per request.

    Args:
        config: Whether texts are written.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._texts = config.log_texts

    def request(self, record: RequestRecord) -> None:
        """Write a request's line."""
        if logger.isEnabledFor(logging.INFO):
            fields = request_fields(record, texts=self._texts)
            logger.info("%s", text_line(fields), extra={FIELDS: fields})


def request_fields(record: RequestRecord, *, texts: bool) -> dict[str, Any]:
    """What the log says about a request; what the model did is missing if it was not reached."""
    fields: dict[str, Any] = {
        "request_id": record.request_id,
        "method": record.method,
        "route": record.route,
        "status": record.status,
        "ms": _milliseconds(record.seconds),
    }
    if record.dialect:
        fields["dialect"] = record.dialect
    answer = record.answer
    if answer is not None:
        fields |= {
            "pairs": answer.work.pairs,
            "tokens": answer.tokens,
            "setting": answer.setting.label,
            "chosen_by": answer.setting.chosen_by,
            "queue_ms": _milliseconds(answer.queue_seconds),
            "model_ms": _milliseconds(answer.model_seconds),
        }
        if texts:
            fields["texts"] = [
                {"query": query, "documents": list(documents)} for query, documents in answer.work.requests
            ]
    return fields


def text_line(fields: dict[str, Any]) -> str:
    r"""Fields as `name=value`, in one line of ASCII; what could be mistaken for another field is quoted as in JSON.

    Example:
        >>> print(text_line({"route": "/rerank", "status": 200, "request_id": "a b=1\nstatus=500"}))
        route=/rerank status=200 request_id="a b=1\nstatus=500"
    """
    return " ".join(f"{name}={_value(value)}" for name, value in fields.items())


class TextFormatter(logging.Formatter):
    """Lines for people: time, level and message; access lines without a level. A traceback's lines are indented."""

    def format(self, record: logging.LogRecord) -> str:
        at = _time(record)
        if hasattr(record, FIELDS):
            return f"{at} {record.getMessage()}"
        lines = [f"{at} {record.levelname} {record.name}: {_printable(record.getMessage())}"]
        if record.exc_info:
            traceback = self.formatException(record.exc_info)
            lines += [f"    {_printable(line)}" for line in traceback.splitlines()]
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """Lines for machines: a JSON object each, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        if hasattr(record, FIELDS):
            line |= getattr(record, FIELDS)
        else:
            line["message"] = record.getMessage()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_logging(config: ServeConfig, stream: TextIO | None = None) -> logging.Handler:
    """Write the access log and the server's messages. For the command line: a program of its own sets up its own.

    Args:
        config: Its `log_format`.
        stream: Where to; None for stderr.

    Returns:
        The handler, which takes the place of the one of an earlier call.
    """
    handler = logging.StreamHandler(stream)
    handler.name = "mrr-serve"
    handler.setFormatter(JsonFormatter() if config.log_format == "json" else TextFormatter())
    for name in LOGGERS:
        own = logging.getLogger(name)
        for earlier in [each for each in own.handlers if each.name == handler.name]:
            own.removeHandler(earlier)
        own.addHandler(handler)
        own.setLevel(logging.INFO)
    return handler


def _value(value: Any) -> str:
    if isinstance(value, str) and PLAIN.fullmatch(value):
        return value
    return json.dumps(value)


def _printable(text: str) -> str:
    """The text in one line, with escapes for what a terminal or another line could be made of."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, tz=timezone.utc)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 3)
