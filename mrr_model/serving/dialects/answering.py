"""What the handlers of all dialects have in common: a body in, an answer or an error in the dialect's form out."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from mrr_model.serving.dialects.body import check_content_type, parse
from mrr_model.serving.dialects.errors import Dialect, error_response
from mrr_model.serving.dialects.knobs import TIMEOUT_HEADER, timeout_of
from mrr_model.serving.dialects.truncation import Truncation
from mrr_model.serving.errors import Fault, ServingError
from mrr_model.serving.records import HUNG_UP
from mrr_model.serving.service import RerankService
from mrr_model.serving.work import Answer, Work

SETTING_HEADER = "X-MRR-Setting"
"""The header that says which setting ran, and why."""

TIMING_HEADER = "Server-Timing"
"""The header that says how long the request waited and how long the model took, which browsers show."""

THREAD_BYTES = 262_144
"""Bodies of more bytes, and requests with more characters, are handled in a thread: others must not wait for them."""

T = TypeVar("T")


class DialectRequest(Protocol):
    """A request of any dialect, validated."""

    timeout: float | None

    @property
    def cut(self) -> Truncation:
        """How long documents are cut."""

    def work(self) -> Work:
        """What is to be done."""


@dataclass(frozen=True)
class ReadRequest:
    """A request whose body was read, and how its answer is written.

    Args:
        request: The request.
        body: Makes the answer's body from the model's answer and the request's name.
    """

    request: DialectRequest
    body: Callable[[Answer, str], Any]


Read = Callable[[Mapping[str, Any], Callable[[Dialect], None]], ReadRequest]
"""Validates JSON data. It says whose form the errors have before it raises one."""


async def answered(request: Request, service: RerankService, dialect: Dialect, read: Read) -> Response:
    """Answer one request.

    Args:
        request: The HTTP request.
        service: Scores.
        dialect: Whose form errors have until the body says more.
        read: Validates the body.
    """
    request.state.dialect = dialect
    arrived = time.monotonic()

    def speak(dialect: Dialect) -> None:
        request.state.dialect = dialect

    try:
        check_content_type(request.headers.get("content-type"))
        body = await request.body()
        asked = await _apart(len(body), lambda: read(parse(body), speak))
        work = asked.request.work()
        timeout = timeout_of(asked.request.timeout, request.headers.get(TIMEOUT_HEADER))
        size = sum(len(query) + sum(map(len, documents)) for query, documents in work.requests)

        async def run() -> Answer:
            ready = await _apart(size, lambda: _cut(work, asked.request.cut, service))
            return await service.run(ready if timeout is None else replace(ready, timeout=_left(timeout, arrived)))

        answer = await while_connected(request, run())
        request.state.answer = answer
        name = request_id(request)
        headers = {SETTING_HEADER: answer.setting.header, TIMING_HEADER: timing_of(answer)}
        return await _apart(size, lambda: _written(asked.body(answer, name), headers))
    except ServingError as error:
        return error_response(error, request.state.dialect)
    except ClientDisconnect:
        return Response(status_code=HUNG_UP)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Wait for work as long as the client does. The request's body must have been read.

    Raises:
        ClientDisconnect: If the client hung up before; the work is cancelled.
    """
    task = asyncio.ensure_future(work)
    hung_up = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        hung_up.cancel()
        await asyncio.gather(task, hung_up, return_exceptions=True)


def timing_of(answer: Answer) -> str:
    """The value of the header `Server-Timing`, in milliseconds.

    Example:
        `queue;dur=0.3, model;dur=41.7`
    """
    return f"queue;dur={1000 * answer.queue_seconds:.1f}, model;dur={1000 * answer.model_seconds:.1f}"


def request_id(request: Request) -> str:
    """The request's name: the one that the server has given it, else a new one."""
    name = getattr(request.state, "request_id", None)
    return str(name) if name else uuid.uuid4().hex


async def _apart(size: int, call: Callable[[], T]) -> T:
    """Call something; in a thread if it takes long."""
    if size <= THREAD_BYTES:
        return call()

    def outcome() -> T | ServingError:
        try:
            return call()
        except ServingError as error:
            return error.with_traceback(None)  # which holds the data: freeing it takes long too

    found = await asyncio.to_thread(outcome)
    if isinstance(found, ServingError):
        raise found
    return found


def _written(body: Any, headers: Mapping[str, str]) -> JSONResponse:
    try:
        return JSONResponse(body, headers=headers)
    except ValueError:  # JSON can write an infinite number, 1e999, that it cannot give back
        raise ServingError(Fault.INVALID, "a document has a number that is too large to be returned.") from None


def _left(timeout: float, arrived: float) -> float:
    """Seconds that are left of a timeout."""
    left = timeout - (time.monotonic() - arrived)
    if left <= 0:
        raise ServingError(
            Fault.TIMED_OUT, f"no answer within {timeout:g} seconds: reading the request took longer. Send less text."
        )
    return round(left, 3) or left


def _cut(work: Work, truncation: Truncation, service: RerankService) -> Work:
    if truncation.is_models:
        return work
    prompt = work.prompt if isinstance(work.prompt, str) else service.reranker.prompt
    return replace(work, requests=truncation.cut(service.reranker, work.requests, prompt))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
