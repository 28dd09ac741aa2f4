"""Long documents cut, split into windows, and split with a cascade: quality and time.

    python benchmarks/long_documents.py --data ../shared/data

Each document joins about --paragraphs neighbouring paragraphs of one Wikipedia article of SQuAD, under its title. A
question's relevant document is the one with the paragraph it was asked about; its candidates are the documents of the
paragraphs that BM25 found, in the order of the best paragraph, up to --candidates. `mini` ranks them at full size with
each way of handling long documents; for every question the ways take turns. A second part compares windows and strides
on the first --sample questions. Prints both tables and writes benchmarks/results/long-documents.json.
"""

import argparse
import re
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from development import METRIC, Run, ndcg
from result_files import add_output_argument, write_result
from result_tables import long_documents as table

from mrr_model import Cascade, MatryoshkaReranker
from mrr_model.data.jsonl import read_json_lines, require_file
from mrr_model.evaluation.collection import Collection, open_collection
from mrr_model.inference.windows import DocumentSplitter, Windows

COLLECTION = "squad#dev500"
PARAGRAPH_ID = re.compile(r"(?P<article>.+)-(?P<number>\d+)")
SHORT = 128
"""Tokens of a window that is about as long as a paragraph, as the passages that `mini` was trained on."""
WINDOWS, STRIDES = (None, 256, SHORT), (0.5, 0.75, 1.0)
"""Tokens of a window (None: as many as fit) and strides as shares of a window, for the second part."""


@dataclass(frozen=True)
class Way:
    """One way of ranking long documents: the arguments of `rank`, and what the table calls it."""

    name: str
    arguments: Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the collections")
    parser.add_argument("--paragraphs", type=int, default=8, help="paragraphs of a document, about")
    parser.add_argument("--queries", type=int, default=100, help="questions (seed 0)")
    parser.add_argument("--candidates", type=int, default=20, help="documents to re-rank per question")
    parser.add_argument("--sample", type=int, default=30, help="questions for the windows and strides")
    parser.add_argument("--cascade", default="auto", help="auto, or margins such as 2:3,3:2,4:1")
    add_output_argument(parser, "long-documents")
    arguments = parser.parse_args()
    reranker = MatryoshkaReranker(arguments.model)
    collection = joined(arguments.data, arguments.paragraphs, arguments.queries, arguments.candidates)
    cascade = "auto" if arguments.cascade == "auto" else Cascade(arguments.cascade)
    ways = [
        Way('`"truncate"`', {"long_documents": "truncate"}),
        Way('`"max"`', {"long_documents": "max"}),
        Way('`"max"`, with a cascade', {"long_documents": "max", "cascade": cascade}),
        Way(f'`"max"`, `window={SHORT}`', {"long_documents": "max", "window": SHORT}),
        Way(
            f'`"max"`, `window={SHORT}`, with a cascade',
            {"long_documents": "max", "window": SHORT, "cascade": cascade},
        ),
    ]
    rows = compared(reranker, collection, ways)
    results = {
        "metric": METRIC,
        "model": arguments.model,
        "dtype": str(reranker.model.model.dtype).removeprefix("torch."),
        "max_length": reranker.max_length,
        "collection": described(reranker, collection),
        "cascade": arguments.cascade,
        "ways": rows,
        "sample": arguments.sample,
        "windows": windows_compared(reranker, first_queries(collection, arguments.sample)),
    }
    what = "Ranking of long documents that are cut, split into windows, and split with a cascade."
    print(table(write_result(arguments.output, "long-documents", what, results, seeds=(0,))))


def joined(data: Path, paragraphs: int, queries: int, candidates: int) -> Collection:
    """SQuAD with documents of several paragraphs, judged by the paragraph that a question was asked about."""
    name, _, _ = COLLECTION.partition("#")
    source = open_collection(f"{data}/{COLLECTION}", limit=queries, candidates=10**9)
    texts, document_of = join_paragraphs(read_articles(data / name), paragraphs)
    ranked = {
        query: list(dict.fromkeys(document_of[each] for each in source.candidates[query]))[:candidates]
        for query in source.queries
    }
    qrels = {
        query: {document_of[each]: relevance for each, relevance in source.qrels[query].items() if relevance > 0}
        for query in source.queries
    }
    used = dict.fromkeys(document for documents in ranked.values() for document in documents)
    return Collection(f"{name}-long", {each: texts[each] for each in used}, source.queries, qrels, ranked)


def read_articles(folder: Path) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """(article, its title) -> its paragraphs' (id, text), in the article's order."""
    articles: dict[tuple[str, str], list[tuple[int, str, str]]] = {}
    for location, row in read_json_lines(require_file(folder / "corpus.jsonl")):
        found = PARAGRAPH_ID.fullmatch(row["_id"])
        if found is None:
            raise ValueError(f"{location}: the id {row['_id']!r} does not end with a paragraph's number.")
        article = articles.setdefault((found["article"], row["title"]), [])
        article.append((int(found["number"]), row["_id"], row["text"]))
    return {key: [(each, text) for _, each, text in sorted(article)] for key, article in articles.items()}


def join_paragraphs(
    articles: Mapping[tuple[str, str], Sequence[tuple[str, str]]], paragraphs: int
) -> tuple[dict[str, str], dict[str, str]]:
    """Join each article's paragraphs to documents of about `paragraphs` neighbours, of as equal numbers as possible.

    Returns:
        Document id -> its title and text; paragraph id -> its document's id.
    """
    texts, document_of = dict[str, str](), dict[str, str]()
    for (article, title), members in articles.items():
        parts = max(1, round(len(members) / paragraphs))
        for part in range(parts):
            document = f"{article}-part{part}"
            own = members[len(members) * part // parts : len(members) * (part + 1) // parts]
            texts[document] = "\n\n".join([title, *(text for _, text in own)])
            document_of.update((each, document) for each, _ in own)
    return texts, document_of


def first_queries(collection: Collection, count: int) -> Collection:
    """The first queries of a collection, with their own judgements: an average is over these alone."""
    queries = dict(list(collection.queries.items())[:count])
    qrels = {query: collection.qrels[query] for query in queries}
    return Collection(collection.name, collection.corpus, queries, qrels, collection.candidates)


def described(reranker: MatryoshkaReranker, collection: Collection) -> dict[str, Any]:
    """The collection's size, and its documents' lengths in tokens."""
    lengths = [
        tokens
        for _, tokens in reranker.engine.token_counts([("", text) for text in collection.corpus.values()], cut=False)
    ]
    found = [
        any(each in collection.qrels[query] for each in documents) for query, documents in collection.candidates.items()
    ]
    return {
        "queries": len(collection.queries),
        "documents": len(lengths),
        "candidates": round(statistics.mean(map(len, collection.candidates.values())), 1),
        "with_relevant_candidate": round(statistics.mean(found), 4),
        "tokens": {"mean": round(statistics.mean(lengths)), "least": min(lengths), "most": max(lengths)},
        "over_512_tokens": round(statistics.mean(length > 512 for length in lengths), 4),
    }


def compared(reranker: MatryoshkaReranker, collection: Collection, ways: Sequence[Way]) -> list[dict[str, Any]]:
    """Each way's quality and time: for every query the ways take turns, after a query that warms up."""
    runs: dict[str, Run] = {way.name: {} for way in ways}
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    queries = list(collection.queries)
    for turn, query in enumerate([queries[0], *queries]):
        ids = collection.candidates[query]
        documents = [collection.corpus[each] for each in ids]
        for way in ways:
            begin = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # truncation is what is measured
                ranking = reranker.rank(collection.queries[query], documents, top_n=10, **way.arguments)
            if turn:
                seconds[way.name].append(time.perf_counter() - begin)
            runs[way.name][query] = {ids[each.index]: -float(rank) for rank, each in enumerate(ranking)}
    return [
        {
            "name": way.name,
            "quality": round(ndcg(collection, runs[way.name]), 4),
            "ms_per_query": round(1000 * statistics.mean(seconds[way.name]), 1),
        }
        for way in ways
    ]


def windows_compared(reranker: MatryoshkaReranker, collection: Collection) -> list[dict[str, Any]]:
    """Quality, time and windows per document of each window and stride."""
    space = reranker.engine.encoder.passage_space(next(iter(collection.queries.values())))
    ways, splits = [], []
    for window in WINDOWS:
        for share in STRIDES:
            stride = max(1, int(share * (window or space)))
            ways.append(Way(f"{window}:{share}", {"long_documents": "max", "window": window, "stride": stride}))
            splits.append((window, share, stride))
    pairs = [
        (text, collection.corpus[each])
        for query, text in collection.queries.items()
        for each in collection.candidates[query]
    ]
    splitter = DocumentSplitter(reranker.engine.encoder)
    rows = []
    for (window, share, stride), row in zip(splits, compared(reranker, collection, ways), strict=True):
        spans = splitter.spans(pairs, None, Windows(window, stride))
        counts = {"windows_per_document": round(statistics.mean(map(len, spans)), 2)}
        rows.append(
            {"window": window, "stride": share, **counts, **{key: row[key] for key in ("quality", "ms_per_query")}}
        )
    return rows


if __name__ == "__main__":
    main()
