"""What metrics, logs and traces are made of: a record per batch and per request.

The answer in a request's record leads to the request's texts, which nobody shows unless asked.
"""

from dataclasses import dataclass
from typing import Protocol

from mrr_model.serving.work import Answer

UNKNOWN_ROUTE = "unknown"
"""The route of a request that matches none."""
HUNG_UP = 499
"""The status of a request whose client closed the connection before it had the answer."""


@dataclass(frozen=True)
class BatchRecord:
    """One call of the model.

    Args:
        setting: The setting's label, such as `4@0.5`.
        requests: Requests that had part in it.
        pairs: Pairs.
        tokens: Tokens of its inputs, padding excluded.
        padding_tokens: Padding beside them.
        seconds: How long it took.
    """

    setting: str
    requests: int
    pairs: int
    tokens: int
    padding_tokens: int
    seconds: float


@dataclass(frozen=True)
class RequestRecord:
    """One HTTP request, after its answer was sent.

    Args:
        request_id: The answer's `X-Request-ID`.
        method: HTTP method.
        route: The route's template, such as `/v2/rerank`, or `unknown`: never the raw path.
        dialect: cohere, tei or vllm; empty for other routes.
        status: HTTP status; 499 if the client hung up before.
        seconds: From the request's header to the end of its answer.
        answer: What the model gave; None if it was not reached.
    """

    request_id: str
    method: str
    route: str
    dialect: str
    status: int
    seconds: float
    answer: Answer | None = None


class Observer(Protocol):
    """Receives a record of each batch and each request. It must not block and must not fail."""

    def batch(self, record: BatchRecord) -> None:
        """Called in the scheduler's thread."""

    def request(self, record: RequestRecord) -> None:
        """Called on the event loop."""
