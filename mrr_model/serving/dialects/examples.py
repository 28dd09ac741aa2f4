"""Requests that /docs shows."""

QUERY = "who wrote Faust?"
DOCUMENTS = ["Goethe wrote the tragedy Faust.", "Bees make honey from nectar."]

COHERE = {
    "cohere": {"model": "mini", "query": QUERY, "documents": DOCUMENTS, "top_n": 1},
    "jina": {"query": QUERY, "documents": [{"text": text} for text in DOCUMENTS], "return_documents": True},
    "voyage": {"query": QUERY, "documents": DOCUMENTS, "top_k": 2, "truncation": True},
    "three times faster": {"query": QUERY, "documents": DOCUMENTS, "target": {"speedup": 3}},
    "a setting": {"query": QUERY, "documents": DOCUMENTS, "depth": 4, "keep_ratio": 0.5},
}
TEI = {"tei": {"query": QUERY, "texts": DOCUMENTS, "raw_scores": False, "return_text": True, "truncate": True}}
VLLM = {
    "one query": {"model": "mini", "text_1": QUERY, "text_2": DOCUMENTS},
    "pairs": {"queries": [QUERY, "what do bees make?"], "documents": DOCUMENTS},
}
