"""The order of requests: by when they would end if all had equal shares of the model.

It is fair queueing (Demers, Keshav & Shenker, "Analysis and Simulation of a Fair Queueing Algorithm", SIGCOMM 1989) of
requests instead of packets: a clock counts the tokens that each waiting request would have had by now with equal
shares, and the request that would end first runs first. So a short one does not wait for a long one, a stream of short
ones does not keep a long one waiting, and equal ones end one after the other. Departing from the paper, shares are of
the requests that really wait: clients that send the next request after an answer would else slow the clock down.
"""


class FairOrder:
    """The clock.

    Example:
        >>> order = FairOrder()
        >>> long, short = order.arrive(1000), order.arrive(10)
        >>> order.work(500, requests=2)
        >>> later = order.arrive(100)
        >>> short < later < long
        True
    """

    def __init__(self) -> None:
        self._now = 0.0

    def arrive(self, tokens: float) -> float:
        """The time at which a request of so many tokens would end: requests run in the order of these times."""
        return self._now + tokens

    def work(self, tokens: float, requests: int) -> None:
        """Let the clock run while so many tokens are worked off and so many requests wait or run."""
        self._now += tokens / requests
