"""Re-rank with sentence-transformers' own CrossEncoder methods, at two sizes of one model.

pip install "matryoshka-reranker[sentence-transformers,eval]"
python examples/sentence_transformers_rerank.py
"""

import time
from typing import Any

from first_stage import Bm25
from stdlib_docs import passages

from mrr_integrations.sentence_transformers import MatryoshkaCrossEncoder

QUESTION = "how do I remove a folder together with everything inside it?"
SETTINGS: dict[str, dict[str, Any]] = {"precise": {}, "fast": {"depth": 3, "keep_ratio": 0.5}}


def main() -> None:
    """BM25 finds 50 passages; one model ranks them twice."""
    docs = passages()
    names, texts = list(docs), list(docs.values())
    found = [index for index, _ in Bm25(texts).search(QUESTION, 50)]
    candidates = [texts[index] for index in found]
    model = MatryoshkaCrossEncoder("mini", model_kwargs={"dtype": "auto"})
    print(f"{len(texts)} passages; {QUESTION}\n")
    for name, setting in SETTINGS.items():
        model.rank(QUESTION, candidates, **setting)  # the first call also compiles kernels
        begin = time.perf_counter()
        rows = model.rank(QUESTION, candidates, top_k=3, return_documents=True, **setting)
        print(f"{name} {setting or 'full size'}: {1000 * (time.perf_counter() - begin):.0f} ms")
        for row in rows:
            print(f"  {row['score']:.3f}  {names[found[row['corpus_id']]]:<24} {row['text'][:60]}")
        print()


if __name__ == "__main__":
    main()
