"""Re-rank Python's own documentation at full size and at two compressed settings, side by side.

    python examples/quickstart.py
    python examples/quickstart.py "how do I delete a whole directory tree?"

The passages are the docstrings of the standard library's functions and classes. Needs no network.
"""

import statistics
import sys
import time

from rich.console import Console
from rich.table import Table
from stdlib_docs import passages

from mrr_model import MatryoshkaReranker

MODULES = ["collections", "contextlib", "datetime", "fnmatch", "functools", "glob", "heapq", "itertools", "json"]
MODULES += ["random", "shlex", "shutil", "statistics", "tempfile", "textwrap"]
QUESTION = "how do I shuffle a list in place?"
SETTINGS = ((None, 1.0), (4, 0.5), (3, 0.5))
REPETITIONS = 3


def main() -> None:
    """Rank, time and print."""
    question = " ".join(sys.argv[1:]) or QUESTION
    texts = passages(MODULES)
    names, documents = list(texts), list(texts.values())
    reranker = MatryoshkaReranker()
    full_flops = reranker.flops(depth=None, keep_ratio=1.0)

    table = Table(title=f"{question}\n{len(documents)} docstrings of Python's standard library, {reranker.dtype}")
    table.add_column("setting", min_width=13)
    table.add_column("best three", max_width=30, overflow="ellipsis", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("FLOPs", justify="right", no_wrap=True)
    full_time = 0.0
    for depth, keep_ratio in SETTINGS:
        reranker.rank(question, documents, depth=depth, keep_ratio=keep_ratio)  # once to warm up
        seconds = []
        for _ in range(REPETITIONS):
            start = time.perf_counter()
            ranking = reranker.rank(question, documents, depth=depth, keep_ratio=keep_ratio, top_n=3)
            seconds.append(time.perf_counter() - start)
        median = statistics.median(seconds)
        full_time = full_time or median
        table.add_row(
            "full size" if depth is None else f"depth {depth}, keep ratio {keep_ratio}",
            "\n".join(f"{document.score:.3f} {names[document.index]}" for document in ranking),
            f"{median * 1000:.0f} ms, {median / full_time:.0%}",
            f"{reranker.flops(depth=depth, keep_ratio=keep_ratio) / full_flops:.0%}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
