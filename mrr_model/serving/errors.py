"""Errors that end a request. Each dialect writes them in its own form."""

from dataclasses import dataclass
from enum import Enum


class Fault(Enum):
    """What is wrong, and the HTTP status that says so."""

    MALFORMED = 400  # no JSON, or not of the form that HTTP requires
    UNAUTHORIZED = 401
    NOT_ALLOWED = 403  # a setting that this server does not grant
    NOT_FOUND = 404
    WRONG_METHOD = 405
    TOO_SLOW = 408  # the request did not arrive in time
    TOO_LARGE = 413
    INVALID = 422  # JSON with a wrong type or value
    OVERLOADED = 429
    FAILED = 500  # the model failed on this request
    UNAVAILABLE = 503  # not loaded yet, or about to stop
    TIMED_OUT = 504


@dataclass(eq=False)  # as other exceptions are
class ServingError(Exception):
    """Ends a request.

    Args:
        fault: What is wrong.
        message: Why, and what to do, in one line that shows neither the request's texts nor a stack trace.
        retry_after: Seconds after which it may work; None if trying again does not help.
    """

    fault: Fault
    message: str
    retry_after: float | None = None

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.fault.value

    def __str__(self) -> str:
        return self.message
