"""Where training rows come from: files, folders and datasets in the field's usual forms, read one row at a time.

A source is a string, `PATH` or `NAME`, with `#SPLIT` added for a split other than `train`:

    rows.jsonl, rows.jsonl.gz    the JSON-lines form of `mrr_model.data.groups`
    a BEIR folder                corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv, and candidates/SPLIT.run for negatives
    an MS MARCO folder           the official TSV files, passages or documents
    triples.train.small.tsv      MS MARCO's text triples
    a Hugging Face dataset       a hub name, or a local folder of its files or of save_to_disk()

A dataset's columns decide its form, as in sentence-transformers: (query, positive, negative …), (query,
passage, label), (query, passages, labels); or those of the JSON-lines form. BEIR corpora and the ids of MS MARCO's
rankings are held in memory; everything else is streamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from mrr_model.data import msmarco
from mrr_model.data.beir import candidates_file, is_beir, read_corpus, read_qrels, read_queries, read_run
from mrr_model.data.groups import Group, OnBadRow, checked, group_of, is_finite, read_groups
from mrr_model.data.naming import looks_like_a_path, split_name
from mrr_model.files.damage import reading, short

LABELS = ("label", "labels", "score", "scores")
"""Names of the column that holds labels, as in sentence-transformers."""


def read_source(source: str, *, on_bad_row: OnBadRow = "fail") -> Iterator[Group]:
    """Read the groups of one source, one at a time.

    Args:
        source: `PATH` or `NAME`, perhaps with `#SPLIT`, as listed at the top of this module.
        on_bad_row: What to do with a row that cannot be read; with "skip" it is logged and left out.

    Returns:
        The groups, read as they are needed.

    Raises:
        FileNotFoundError: For a file or folder that does not exist.
        ValueError: For an unknown form, or a row that cannot be read, with its file and line.
        ImportError: For a Hugging Face dataset if `datasets` is not installed.
    """
    name, split = split_name(source)
    path = Path(name).expanduser()
    split = split or "train"
    if path.is_file():
        if path.name.removesuffix(".gz").endswith(".tsv"):
            return msmarco.read_text_triples(path, on_bad_row)
        return read_groups(path, on_bad_row)
    if is_beir(path):
        return read_beir(path, split, on_bad_row)
    if msmarco.holds(path):
        return msmarco.read_folder(path, split, on_bad_row)
    if not path.is_dir() and looks_like_a_path(name):
        raise FileNotFoundError(f"there is no file or folder {name!r}, which the training data names.")
    return read_dataset(name, split, on_bad_row)


def corpus_of(source: str, on_bad_row: OnBadRow = "fail") -> dict[str, str] | None:
    """Read all passages of a BEIR folder by their ids; None for other sources, which have only their rows."""
    folder = Path(split_name(source)[0]).expanduser()
    return read_corpus(folder, on_bad_row) if is_beir(folder) else None


def own_documents(source: str, corpus: Mapping[str, str], on_bad_row: OnBadRow = "fail") -> dict[str, list[str]]:
    """Map query text -> the passages with the query's id, if a BEIR folder's queries are documents themselves."""
    own: dict[str, list[str]] = {}
    for identifier, text in read_queries(Path(split_name(source)[0]).expanduser(), on_bad_row).items():
        if identifier in corpus:
            own.setdefault(text, []).append(corpus[identifier])
    return own


def read_beir(folder: Path, split: str = "train", on_bad_row: OnBadRow = "fail") -> Iterator[Group]:
    """Read one group per judged query of a split.

    Positives are the documents judged relevant. Negatives are those judged not relevant and, if the folder has
    candidates/SPLIT.run, its other candidates, without the document of the query's own id: that is the query.

    Args:
        folder: The BEIR folder.
        split: The split to read.
        on_bad_row: What to do with a bad query, and with a text that is not valid UTF-8. Other lines that cannot be
            read are always errors, as in evaluation.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: For a row that cannot be read.
    """
    corpus, queries = read_corpus(folder, on_bad_row), read_queries(folder, on_bad_row)
    qrels = read_qrels(folder, split)
    candidates = candidates_file(folder, split)
    run = read_run(candidates) if candidates else {}

    def make(query: str) -> Group:
        judged = qrels[query]
        unjudged = [document for document in run.get(query, ()) if document not in judged and document != query]
        ids = [document for document, relevance in judged.items() if relevance < 1] + unjudged
        missing = [document for document in (*judged, *unjudged) if document not in corpus]
        if query not in queries or missing:
            what = f"document {missing[0]!r} is not in corpus.jsonl" if missing else "its text is not in queries.jsonl"
            raise ValueError(f"query {query!r}: {what}")
        positives = tuple(corpus[document] for document, relevance in judged.items() if relevance > 0)
        if not positives:
            raise ValueError(f"query {query!r} has no relevant document")
        return Group(queries[query], positives, tuple(corpus[document] for document in ids))

    return checked(((f"{folder}/qrels/{split}.tsv", partial(make, query)) for query in qrels), on_bad_row)


def read_dataset(name: str, split: str = "train", on_bad_row: OnBadRow = "fail") -> Iterator[Group]:
    """Read a Hugging Face dataset: `NAME` or `NAME:CONFIGURATION` on the hub, or a local folder.

    Pairs with labels are grouped by their query; those of one query must be consecutive. Labels are whole numbers,
    above 0 for relevant; other numbers are a teacher's scores of unlabelled passages.

    Raises:
        ImportError: If `datasets` is not installed.
        FileNotFoundError: If there is no such dataset.
        ValueError: For an unknown split or form, or a row that cannot be read.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f'reading {name!r} needs datasets: pip install "matryoshka-reranker[train]"') from error
    folder = Path(name).expanduser()
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        with reading(name, advice=""):
            loaded = datasets.load_from_disk(str(folder))
        splits = loaded if isinstance(loaded, datasets.DatasetDict) else {split: loaded}
        if split not in splits:
            raise ValueError(f"{name} has no split {split!r}; its splits: {', '.join(splits)}")
        rows = splits[split]
    elif folder.is_dir():
        with reading(name, advice=""):
            rows = datasets.load_dataset(str(folder), split=split, streaming=True)
    else:
        hub_name, _, configuration = name.partition(":")
        try:
            rows = datasets.load_dataset(hub_name, configuration or None, split=split, streaming=True)
        except ConnectionError as error:
            raise FileNotFoundError(
                f"{name!r} is neither a file or folder here nor an available dataset: {error}"
            ) from None
    return checked(_dataset_rows(f"{name}#{split}", rows), on_bad_row)


def _dataset_rows(location: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Callable[[], Group]]]:
    numbered = ((f"{location}:{number}", row) for number, row in enumerate(_read_rows(location, rows), 1))
    first = next(numbered, None)
    if first is None:
        return
    columns = list(first[1])
    labels = [column for column in columns if column in LABELS]
    texts = [column for column in columns if column not in LABELS]
    paired = len(labels) == 1 and len(texts) == 2
    if "query" in columns and "pos" in columns:
        yield from ((at, partial(_json_group, row)) for at, row in chain([first], numbered))
    elif paired and isinstance(first[1][texts[1]], list):
        listed = partial(_listed_row, texts[0], texts[1], labels[0])
        yield from ((at, partial(listed, row)) for at, row in chain([first], numbered))
    elif paired:
        for _, together in groupby(chain([first], numbered), key=lambda row: row[1][texts[0]]):
            members = list(together)
            yield members[0][0], partial(_paired_rows, texts[0], texts[1], labels[0], [row for _, row in members])
    elif not labels and len(texts) >= 2:
        yield from ((at, partial(_tuple_group, [row[c] for c in texts])) for at, row in chain([first], numbered))
    else:
        raise ValueError(
            f"{location}: the columns {', '.join(columns)} are not a known form. Expected query, pos, neg; or a query, "
            "a positive and negatives; or a query, a passage or passages, and label or labels."
        )


def _read_rows(location: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The rows of a dataset; a file that its library cannot read is one ValueError."""
    number = 0
    with reading(location, advice="") as progress:
        for number, row in enumerate(rows, 1):
            progress.progress = f", after row {number}"
            yield row


def _json_group(row: Mapping[str, Any]) -> Group:
    return group_of({**row, "neg": row.get("neg") or []})


def _listed_row(query: str, passages: str, labels: str, row: Mapping[str, Any]) -> Group:
    return _labelled_group(row[query], row[passages], row[labels])


def _paired_rows(query: str, passage: str, label: str, rows: Sequence[Mapping[str, Any]]) -> Group:
    return _labelled_group(rows[0][query], [row[passage] for row in rows], [row[label] for row in rows])


def _tuple_group(texts: Sequence[Any]) -> Group:
    query, positive, *negatives = texts
    flat = [text for part in negatives for text in (part if isinstance(part, list) else [part])]
    return group_of({"query": query, "pos": [positive], "neg": flat})


def _labelled_group(query: Any, passages: Any, labels: Any) -> Group:
    if not isinstance(labels, list) or not isinstance(passages, list) or len(labels) != len(passages):
        raise ValueError(f"expected one label per passage, got {short(repr(labels))} for {short(repr(passages))}")
    if not all(isinstance(label, bool) or is_finite(label) for label in labels):
        raise ValueError(f"expected finite numbers as labels, got {short(repr(labels))}")
    if any(label != int(label) for label in labels):
        return group_of({"query": query, "pos": [], "neg": passages, "pos_scores": [], "neg_scores": labels})
    relevant = [passage for passage, label in zip(passages, labels, strict=True) if label > 0]
    if not relevant:
        raise ValueError("no passage is labelled relevant")
    negatives = [passage for passage, label in zip(passages, labels, strict=True) if label <= 0]
    return group_of({"query": query, "pos": relevant, "neg": negatives})
