"""The order of requests: by when they would end if all shared the model equally.

Friedman & Henderson, "Fairness and Efficiency in Web Server Protocols" (SIGMETRICS 2003): an imaginary server works on
all requests at once, with equal shares, and the real one on the request that would end first there. No request ends
later than with equal shares, by more than a slice; a short one does not wait for a long one; and requests of equal
length end one after the other, not all at the end.
"""

import heapq


class FairOrder:
    """The imaginary server's clock. Its unit is a token of every request that it works on.

    Example:
        >>> order = FairOrder()
        >>> long, short = order.arrive(1000), order.arrive(10)
        >>> order.work(500)  # 10 of them end the short request and give the long one as much
        >>> later = order.arrive(100)
        >>> short < later < long
        True
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._ends: list[float] = []  # of the requests that it still works on, a heap

    def arrive(self, tokens: float) -> float:
        """Take in a request of so many tokens; gives the time at which it would end, by which requests are ordered."""
        end = self._now + tokens
        heapq.heappush(self._ends, end)
        return end

    def work(self, tokens: float) -> None:
        """Let the clock run while so many tokens are worked off."""
        while self._ends and tokens > 0:
            until_end = (self._ends[0] - self._now) * len(self._ends)
            if until_end > tokens:
                self._now += tokens / len(self._ends)
                return
            tokens -= until_end
            self._now = heapq.heappop(self._ends)

    def leave(self, end: float) -> None:
        """Forget a request that was given up, by what `arrive` gave."""
        if end in self._ends:
            self._ends.remove(end)
            heapq.heapify(self._ends)
