"""The clients' snippets in docs/serving.md, against a server: each finds the document that answers the query."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
QUERY, DOCUMENTS = "what do bees make?", ["Rain is wet.", "Bees make honey."]


def best(names):
    """What the objects of a snippet put first."""
    if "answer" in names:
        first = names["answer"].results[0]
        yield DOCUMENTS[first["index"] if isinstance(first, dict) else first.index]
    if "compressor" in names:
        from langchain_core.documents import Document

        found = names["compressor"].compress_documents([Document(text) for text in DOCUMENTS], QUERY)
        yield found[0].page_content
    if "ranker" in names:
        from haystack import Document

        yield names["ranker"].run(QUERY, [Document(content=text) for text in DOCUMENTS])["documents"][0].content
    for name in names.keys() & {"cohere_postprocessor", "tei_postprocessor"}:
        from llama_index.core.schema import NodeWithScore, TextNode

        nodes = [NodeWithScore(node=TextNode(text=text)) for text in DOCUMENTS]
        yield names[name].postprocess_nodes(nodes, query_str=QUERY)[0].text


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: re.split(r"[\s.]", snippet)[1])
def test_a_snippet_ranks(snippet, server):
    for module in re.findall(r"^(?:from|import) ([\w.]+)", snippet, re.MULTILINE):
        pytest.importorskip(module, reason="`make clients` installs the clients")
    names = {}
    exec(snippet.replace("http://127.0.0.1:8080", server.url).replace("KEY", server.key), names)
    found = list(best(names))
    assert found
    assert set(found) == {DOCUMENTS[1]}
