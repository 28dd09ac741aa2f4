"""Seconds from the start of a new process to `mini`'s first ranking of 20 passages: this package against its imports.

    python benchmarks/cold_start.py

Medians over processes of: starting Python, importing torch, importing the rest, loading the model, ranking. Prints a
table and writes benchmarks/results/cold-start.json.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time

from result_files import add_output_argument, write_result
from result_tables import cold_start as table

CHILD = """
import json, time
marks = [time.time()]
import torch
marks.append(time.time())
from mrr_model import MatryoshkaReranker
marks.append(time.time())
reranker = MatryoshkaReranker()
marks.append(time.time())
passages = [f"Passage {n}: " + "photosynthesis turns light into sugar. " * 12 for n in range(20)]
reranker.rank("how do plants make food?", passages)
marks.append(time.time())
print(json.dumps(marks))
"""
PARTS = ("start Python", "import torch", "import the rest", "load `mini`", "rank 20 passages")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="processes; medians are reported")
    add_output_argument(parser, "cold-start")
    arguments = parser.parse_args()
    runs = [start_and_rank() for _ in range(arguments.repeats)]
    parts = [
        {"name": name, "seconds": round(statistics.median(run[index] for run in runs), 3)}
        for index, name in enumerate(PARTS)
    ]
    results = {"runs": len(runs), "seconds": round(statistics.median(map(sum, runs)), 3), "parts": parts}
    what = "Seconds from the start of a new process to mini's first ranking of 20 passages, and where they go."
    print(table(write_result(arguments.output, "cold-start", what, results)))


def start_and_rank() -> list[float]:
    """The seconds of each of PARTS in one new process."""
    start = time.time()
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    return [after - before for before, after in itertools.pairwise([start, *json.loads(child.stdout)])]


if __name__ == "__main__":
    main()
