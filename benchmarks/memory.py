"""Peak resident memory while `mini` scores 100 passages of 512 tokens, at full size and with merging.

    python benchmarks/memory.py

Each setting runs in a process of its own; what the imports and the loaded model take is shown apart. The claim: under
1.5 GiB. Prints a table, then one JSON line.
"""

import json
import platform
import resource
import subprocess
import sys

import psutil

PASSAGES, WORDS = 100, 600  # 600 one-token words: every pair is cut to 512 tokens
SETTINGS = {"full size": (None, 1.0), "depth 6, keep ratio 0.5": (6, 0.5), "depth 3, keep ratio 0.5": (3, 0.5)}


def main() -> None:
    rows = {}
    for label in SETTINGS:
        child = subprocess.run([sys.executable, __file__, label], capture_output=True, text=True, check=True)
        rows[label] = json.loads(child.stdout)
    print(f"| setting | loaded | peak | passages of {next(iter(rows.values()))['tokens']} tokens |")
    print("| --- | ---: | ---: | ---: |")
    for label, row in rows.items():
        print(f"| {label} | {row['loaded_mib']} MiB | {row['peak_mib']} MiB | {PASSAGES} |")
    print(json.dumps({"benchmark": "memory", "passages": PASSAGES, "processor": platform.machine(), "rows": rows}))


def measure(label: str) -> None:
    """In the child: load, score, and print what it took."""
    import torch

    from mrr_model import MatryoshkaReranker

    reranker = MatryoshkaReranker()
    loaded = psutil.Process().memory_info().rss
    depth, keep_ratio = SETTINGS[label]
    documents = [" ".join([str(number % 10)] * WORDS) + f" {number}" for number in range(PASSAGES)]
    documents = [f"{number} {document}" for number, document in enumerate(documents)]
    reranker.score("how much memory does this take?", documents, depth=depth, keep_ratio=keep_ratio)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {
        "loaded_mib": loaded >> 20,
        "peak_mib": peak >> 20,
        "tokens": len(reranker._encoder.encode([("how much memory does this take?", documents[0])])[0].input_ids),
        "dtype": str(reranker.dtype),
        "torch": torch.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
