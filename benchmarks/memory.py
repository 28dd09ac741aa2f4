"""Peak resident memory while `mini` scores 100 passages of 512 tokens: full size against sizes that merge.

    python benchmarks/memory.py

Each size runs in processes of its own, in float32 and, where `dtype="auto"` chooses it, in bfloat16; means are
reported. "Loaded" is what the imports and the model take before the first call. Prints a table and writes
benchmarks/results/memory.json.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from typing import Any

from result_files import add_output_argument, write_result
from result_tables import memory as table

WORDS = 600
"""Words of a passage, a token each: every pair is cut to the model's 512 tokens."""
SETTINGS = ((6, 1.0), (6, 0.5), (3, 0.5))
QUERY = "how much memory does this take?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=2, help="processes for each size and dtype")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    add_output_argument(parser, "memory")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(**json.loads(arguments.child))))
        return
    rows: list[dict[str, Any]] = []
    tokens = 0
    for dtype in dict.fromkeys([default_dtype(), "float32"]):
        for depth, keep_ratio in SETTINGS:
            call = {"passages": arguments.passages, "depth": depth, "keep_ratio": keep_ratio, "dtype": dtype}
            found = [in_a_process(call) for _ in range(arguments.repeats)]
            means = {key: round(statistics.mean(each[key] for each in found)) for key in ("loaded_mib", "peak_mib")}
            rows.append({"depth": depth, "keep_ratio": keep_ratio, "dtype": dtype, **means})
            tokens = found[0]["tokens"]
    results = {"passages": arguments.passages, "tokens": tokens, "runs": arguments.repeats, "settings": rows}
    what = "Peak resident memory of a process in which mini scores long passages: full size against sizes that merge."
    print(table(write_result(arguments.output, "memory", what, results)))


def default_dtype() -> str:
    """What `dtype="auto"` is on this processor."""
    code = "from mrr_model import MatryoshkaReranker; print(MatryoshkaReranker().dtype)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return child.stdout.strip().removeprefix("torch.")


def in_a_process(call: dict[str, Any]) -> dict[str, int]:
    command = [sys.executable, __file__, "--child", json.dumps(call)]
    found: dict[str, int] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return found


def measure(passages: int, depth: int, keep_ratio: float, dtype: str) -> dict[str, int]:
    """Load mini, score, and return the memory before and at the peak."""
    import psutil

    from mrr_model import MatryoshkaReranker

    reranker = MatryoshkaReranker("mini", dtype=dtype)
    loaded = psutil.Process().memory_info().rss
    documents = [f"{number} " + " ".join([str(number % 10)] * WORDS) for number in range(passages)]
    reranker.score(QUERY, documents, depth=depth, keep_ratio=keep_ratio)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"loaded_mib": loaded >> 20, "peak_mib": peak >> 20, "tokens": reranker.max_length}


if __name__ == "__main__":
    main()
