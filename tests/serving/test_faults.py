"""Faults of clients, of the model and of the machine: each ends properly, and the next request is served."""

from collections.abc import Callable, Iterator

import pytest
import serving_faults
from serving_faults import Server, Sizes, served

pytestmark = pytest.mark.slow

SIZES = Sizes(
    body_bytes=5_000_000, slow_connections=10, idle_connections=60, killed_clients=3, clients=12, documents=100
)
FLAGS = ("--max-connections", "40", "--max-queue", "400", "--max-body-mb", "1", "--keep-alive", "20")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served(*FLAGS, read_timeout=1.0, sizes=SIZES) as server:
        yield server


@pytest.mark.parametrize("fault", serving_faults.FAULTS, ids=lambda fault: fault.__name__)
def test_the_next_request_is_served(server: Server, fault: Callable[[Server], str]) -> None:
    fault(server)
    assert server.rerank().status == 200
    assert " ERROR " not in server.log()


def test_a_signal_finishes_what_was_accepted(server: Server) -> None:
    serving_faults.terminated(server)
    assert " ERROR " not in server.log()
