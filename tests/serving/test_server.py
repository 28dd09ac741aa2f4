"""The server's start and end, in this process."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from serving_faults import Connection, request

from mrr_model import MatryoshkaReranker
from mrr_model.serving import server as serving
from mrr_model.serving.app import create_app
from mrr_model.serving.config import ServeConfig
from mrr_model.serving.server import Server, allowed_connections, listen, url_of
from mrr_model.serving.service import RerankService


def server_of(load: Callable[[], MatryoshkaReranker], **config: Any) -> Server:
    checked = ServeConfig(port=0, **config)
    service = RerankService(load, checked)
    return Server(service, checked, create_app(service, checked))


def test_the_listener_opens_before_the_model_is_loaded(
    mini: MatryoshkaReranker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mrr_model.serving")
    may_load = threading.Event()

    def load() -> MatryoshkaReranker:
        assert may_load.wait(30)
        return mini

    server, listeners = server_of(load), listen("127.0.0.1", 0)
    url = url_of(listeners)
    thread = threading.Thread(target=server.run, args=(listeners,))
    thread.start()
    try:
        with httpx.Client(base_url=url, timeout=30) as client:
            assert client.get("/health").status_code == 200
            assert client.get("/ready").json()["status"] == "loading"
            may_load.set()
            while (ready := client.get("/ready")).status_code == 503:
                time.sleep(0.02)
            assert ready.json() == {"status": "ready", "model": "mini"}
    finally:
        may_load.set()
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()
    [line] = [record.getMessage() for record in caplog.records if "is ready" in record.getMessage()]
    assert line == f"{url} is ready: mini on cpu, depth 6, keep ratio 1"


def test_a_model_that_cannot_be_loaded_ends_the_server() -> None:
    def load() -> MatryoshkaReranker:
        raise FileNotFoundError("there is no such model")

    with pytest.raises(FileNotFoundError, match="no such model"):
        server_of(load).run(listen("127.0.0.1", 0))


def test_a_model_that_cannot_score_ends_the_server(mini: MatryoshkaReranker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: MatryoshkaReranker, requests: Any, **options: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(MatryoshkaReranker, "score_documents", fails)
    with pytest.raises(RuntimeError, match="mini: the model failed"):
        server_of(lambda: mini).run(listen("127.0.0.1", 0))


def test_a_request_that_outlasts_the_shutdown(
    mini: MatryoshkaReranker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    may_score, logits, codes = threading.Event(), mini.engine.logits, list[int]()

    def waits(*arguments: Any, **options: Any) -> Any:
        running.set()
        assert may_score.wait(60)
        return logits(*arguments, **options)

    monkeypatch.setattr(serving, "leave", codes.append)
    server, listeners = server_of(lambda: mini, max_connections=1, shutdown_timeout=0.2), listen("127.0.0.1", 0)
    address, running = listeners[0].getsockname(), threading.Event()
    thread = threading.Thread(target=server.run, args=(listeners,))
    thread.start()
    try:
        while not server.service.ready:
            time.sleep(0.02)
        monkeypatch.setattr(mini.engine, "logits", waits)
        with Connection(address) as idle, Connection(address) as accepted:
            accepted.send(request())
            assert running.wait(30)
            assert idle.is_closed()  # it made way for the other
            with Connection(address) as another:  # no connection is idle
                assert another.answer().status == 503
            server.should_exit = True
            answer = accepted.answer()
            assert (answer.status, answer.headers["connection"]) == (503, "close")
            assert b"stopped" in answer.body
    finally:
        may_score.set()
        server.should_exit = True
        thread.join(30)
    assert codes == [0]
    assert "1 requests were not finished" in caplog.text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_in_use_cannot_be_listened_on(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(OSError, match="in use"):
        listen(host, other.getsockname()[1])


def test_a_host_with_two_addresses_has_one_port() -> None:
    listeners = listen("localhost", 0)
    assert len({listener.getsockname()[1] for listener in listeners}) == 1
    for listener in listeners:
        listener.close()


def test_a_second_interrupt_ends_the_process_at_once(mini: MatryoshkaReranker, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(serving, "leave", codes.append)
    server = server_of(lambda: mini)
    server.handle_exit(signal.SIGTERM, None)
    server.handle_exit(signal.SIGTERM, None)
    assert (server.should_exit, codes) == (True, [])
    server.handle_exit(signal.SIGINT, None)
    assert codes == [130]


@pytest.mark.parametrize(("host", "keys", "warns"), [("0.0.0.0", (), 1), ("0.0.0.0", ("key",), 0), ("::1", (), 0)])
async def test_a_server_for_others_without_a_key_is_warned_of(
    host: str, keys: tuple[str, ...], warns: int, mini: MatryoshkaReranker, caplog: pytest.LogCaptureFixture
) -> None:
    server = server_of(lambda: mini, host=host, api_key=keys)
    server.warn()
    assert len([record for record in caplog.records if "MRR_API_KEY" in record.getMessage()]) == warns


@pytest.mark.skipif(os.name != "posix", reason="there is no such limit")
def test_the_limit_of_open_files_bounds_connections(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import resource

    limits: list[tuple[int, int]] = [(256, 1024)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    assert allowed_connections(100) == 100
    assert allowed_connections(500) == 500
    assert limits[-1] == (628, 1024)
    assert not caplog.records
    assert allowed_connections(5000) == 1024 - 128
    assert "--max-connections 5000" in caplog.text
