"""Requests and answers that /docs shows."""

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

SETTING = {
    "depth": 6,
    "keep_ratio": 1.0,
    "cascade": None,
    "chosen_by": "server",
    "reason": "the server's default",
    "flops_share": 1.0,
    "quality_kept": 1.0,
}
RANKING = {
    "id": "2af1fb00831f4c9abb811dc16e3b7f07",
    "model": "mini",
    "results": [{"index": 0, "relevance_score": 0.7042930581262757}],
    "usage": {"prompt_tokens": 26, "total_tokens": 26},
    "meta": {"api_version": {"version": "1"}, "billed_units": {"search_units": 1}},
    "setting": SETTING,
}
SCORES = {
    "id": "4f2ace8249a94a4e8713f173c13c96b0",
    "object": "list",
    "created": 1795761005,
    "model": "mini",
    "data": [
        {"index": 0, "object": "score", "score": 0.7042930581262757},
        {"index": 1, "object": "score", "score": 2.581287291300061e-05},
    ],
    "usage": {"prompt_tokens": 26, "total_tokens": 26, "completion_tokens": 0},
    "setting": SETTING,
}
