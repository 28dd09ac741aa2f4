"""A server process with mini, and Chromium. Without Chromium the tests are skipped: `make browser` installs it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
URL = re.compile(r"(http://\S+) is ready")
TIMEOUT_MS = 20_000
DESKTOP = {"width": 1280, "height": 860}

OpenPage = Callable[..., Any]


@pytest.fixture(scope="module")  # while Playwright runs, other tests cannot have an event loop
def browser() -> "Iterator[Browser]":
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip("there is no Chromium on this machine; `make browser` installs it through apt")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; `make browser` installs it")
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with api.sync_playwright() as playwright:
        api.expect.set_options(timeout=TIMEOUT_MS)
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"] if root else [])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(browser: "Browser", tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server; it is not started if there is no browser."""
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "mrr_model", "serve", "--port", "0", "--dtype", "float32"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env=environment)
    try:
        yield address(process, log)
    finally:
        process.terminate()
        process.wait(timeout=30)


def address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """What the server says when it is ready."""
    while process.poll() is None:
        if found := URL.search(log.read_text()):
            return found[1]
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    pytest.fail(f"the server ended: {log.read_text()[-2000:]}")


@pytest.fixture
def open_page(browser: "Browser", server: str) -> OpenPage:
    """Opens the page in a context of its own; fails if it says an error or asks another server.

    Args of what it returns: `errors` allows errors in the console; `before` gets the page before it loads; all else is
    the context's.
    """

    @contextmanager
    def opened(
        *, errors: bool = False, before: "Callable[[Page], None] | None" = None, **options: Any
    ) -> "Iterator[Page]":
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        if before is not None:
            before(page)
        try:
            page.goto(server)
            yield page
        finally:
            context.close()
        assert errors or not said
        assert [url for url in asked if not url.startswith((f"{server}/", "data:"))] == []

    return opened


@pytest.fixture
def ranked(server: str) -> Callable[..., dict[str, Any]]:
    """Asks the server without the page."""

    def ask(query: str, documents: list[str], **knobs: Any) -> dict[str, Any]:
        body = {"query": query, "documents": documents, **knobs}
        answer: dict[str, Any] = httpx.post(f"{server}/v2/rerank", json=body, timeout=60).raise_for_status().json()
        return answer

    return ask
