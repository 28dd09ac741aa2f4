"""Seconds from the start of a fresh process to the first ranking of 20 passages by `mini`, and where they go.

    python benchmarks/coldstart.py

Medians of five processes; the parts are the interpreter, importing torch, importing the rest, loading the model,
ranking. Prints a table, then one JSON line.
"""

import itertools
import json
import platform
import statistics
import subprocess
import sys
import time

RUNS = 5
CHILD = """
import json, time
marks = [time.time()]
import torch
marks.append(time.time())
from mrr_model.reranker import MatryoshkaReranker
marks.append(time.time())
reranker = MatryoshkaReranker()
marks.append(time.time())
passages = [f"Passage {n}: " + "photosynthesis turns light into sugar. " * 12 for n in range(20)]
reranker.rank("how do plants make food?", passages)
marks.append(time.time())
print(json.dumps({"marks": marks, "torch": torch.__version__}))
"""
PARTS = ("interpreter", "import torch", "import the rest", "load mini", "rank 20 passages")


def main() -> None:
    runs = []
    for _ in range(RUNS):
        start = time.time()
        child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
        result = json.loads(child.stdout)
        marks = [start, *result["marks"]]
        runs.append([after - before for before, after in itertools.pairwise(marks)])
    parts = {name: statistics.median(run[index] for run in runs) for index, name in enumerate(PARTS)}
    total = statistics.median(sum(run) for run in runs)
    print("| part | seconds |\n| --- | ---: |")
    for name, seconds in parts.items():
        print(f"| {name} | {seconds:.2f} |")
    print(f"| all | {total:.2f} |")
    rounded = {name: round(seconds, 3) for name, seconds in parts.items()}
    line = {"benchmark": "coldstart", "runs": RUNS, "seconds": round(total, 3), "parts": rounded}
    print(json.dumps({**line, "processor": platform.machine(), "torch": result["torch"]}))


if __name__ == "__main__":
    main()
