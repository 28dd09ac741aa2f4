"""Hard negatives: passages that a first stage ranks high and that do not answer the query.

Every function returns, per query, `negatives` different passages, none equal to one of its positives or excluded
passages (white space and case aside). They are drawn at random from the first stage's best `top_k`; if those are too
few, random passages of the corpus are added. The result depends on the arguments and the seed alone. To mix kinds, mine
one after the other and add the negatives of each to the positives of the next.

If queries are passages of the corpus themselves (duplicate questions, arguments), a query's best match is the query.
`mine` excludes it.

Shapes: Q queries, N passages of the corpus, D embedding size.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mrr_model.data.bm25 import BM25Index
from mrr_model.data.groups import Group, OnBadRow
from mrr_model.data.sources import corpus_of, own_documents, read_source
from mrr_model.training.config import MineConfig

QUERY_BLOCK = 256
"""Queries whose cosines with the whole corpus are computed at once."""


class MinedGroups(Iterator[Group]):
    """Groups with mined negatives, one at a time.

    Args:
        sources: As `mrr_model.data.sources.read_source` reads them.
        config: How to mine.
        on_bad_row: What to do with a row that cannot be read.
    """

    def __init__(self, sources: Iterable[str], config: MineConfig, on_bad_row: OnBadRow) -> None:
        self.identical = 0
        """Queries so far whose own passage is in the corpus and was left out of the negatives."""
        self._groups = self._mined(sources, config, on_bad_row)

    def __next__(self) -> Group:
        return next(self._groups)

    def _mined(self, sources: Iterable[str], config: MineConfig, on_bad_row: OnBadRow) -> Iterator[Group]:
        for source in sources:
            groups = list(read_source(source, on_bad_row=on_bad_row))
            documents = corpus_of(source, on_bad_row)
            own = own_documents(source, documents, on_bad_row) if documents else {}
            corpus = list(documents.values()) if documents else [text for group in groups for text in _passages(group)]
            keys = set() if config.keep_identical else {_key(text) for text in corpus}
            for group in mine(groups, corpus, config, own):
                self.identical += any(_key(text) in keys for text in _excluded(group, own))
                yield group


def mine_sources(sources: Iterable[str], config: MineConfig, on_bad_row: OnBadRow = "fail") -> MinedGroups:
    """Read the rows of sources and mine negatives for them.

    Negatives come from the corpus of a BEIR folder, and from all passages of another source.

    Args:
        sources: As `mrr_model.data.sources.read_source` reads them.
        config: How to mine.
        on_bad_row: What to do with a row that cannot be read.

    Returns:
        An iterator of groups; its `identical` counts the queries whose own passage was left out.

    Raises:
        ValueError: For a row that cannot be read, or a corpus that is too small.
        FileNotFoundError: For a source or an encoder that does not exist.
        ImportError: If a library that the miner needs is not installed.
    """
    return MinedGroups(sources, config, on_bad_row)


def mine(
    groups: Sequence[Group],
    corpus: Sequence[str],
    config: MineConfig,
    own: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[Group]:
    """Mine negatives for groups, by BM25 or by a bi-encoder, whose cosines can become teacher scores.

    sentence-transformers' own `mine_hard_negatives` leaves out rows for which it finds too few and draws from the
    process's random state; here every row gets its negatives, and the seed decides.

    Args:
        groups: Rows with positives; their negatives and scores are replaced.
        corpus: Passages to draw negatives from.
        config: How to mine.
        own: Query text -> passages that are the query itself. They are no negatives, nor is a passage with the query's
            text, unless `config.keep_identical`.

    Returns:
        The groups with mined negatives.

    Raises:
        ValueError: If the corpus is too small.
        FileNotFoundError: If the encoder does not exist.
        ImportError: If a library that the miner needs is not installed.
    """
    known = list(dict.fromkeys((*corpus, *(text for group in groups for text in group.positives))))
    queries = [group.query for group in groups]
    positives = [group.positives for group in groups]
    excluded = None if config.keep_identical else [_excluded(group, own or {}) for group in groups]
    if config.encoder is None:
        mined = mine_bm25(
            queries,
            positives,
            known,
            negatives=config.negatives,
            top_k=config.top_k,
            seed=config.seed,
            excluded=excluded,
        )
        for group, negatives in zip(groups, mined, strict=True):
            yield replace(group, negatives=tuple(negatives), positive_scores=None, negative_scores=None)
        return
    encode = _encoder(config.encoder)
    query_vectors, passage_vectors = encode(queries), encode(known)
    mined = mine_dense(
        query_vectors,
        passage_vectors,
        positives,
        known,
        negatives=config.negatives,
        top_k=config.top_k,
        margin=config.margin,
        seed=config.seed,
        excluded=excluded,
    )
    row_of = {text: row for row, text in enumerate(known)}
    for group, query, negatives in zip(groups, query_vectors, mined, strict=True):
        row = replace(group, negatives=tuple(negatives), positive_scores=None, negative_scores=None)
        if config.scores:
            passages = passage_vectors[[row_of[text] for text in _passages(row)]]
            cosines = [round(float(cosine), 4) for cosine in passages @ query]
            split = len(row.positives)
            row = replace(row, positive_scores=tuple(cosines[:split]), negative_scores=tuple(cosines[split:]))
        yield row


def _passages(group: Group) -> tuple[str, ...]:
    return (*group.positives, *group.negatives)


def _excluded(group: Group, own: Mapping[str, Sequence[str]]) -> list[str]:
    """The passages that are the group's query itself and not its positives."""
    positives = {_key(text) for text in group.positives}
    return [text for text in (group.query, *own.get(group.query, ())) if _key(text) not in positives]


def _encoder(name: str) -> Callable[[Sequence[str]], Tensor]:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            f"mining with a bi-encoder needs sentence-transformers ({error}): "
            'pip install "matryoshka-reranker[sentence-transformers]"'
        ) from error
    try:
        model = SentenceTransformer(name)
    except OSError as error:
        raise FileNotFoundError(f"encoder={name!r} cannot be loaded: {error}") from None

    def encode(texts: Sequence[str]) -> Tensor:
        vectors: Tensor = model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
        return normalize(vectors.float().cpu(), dim=-1)

    return encode


def mine_bm25(
    queries: Sequence[str],
    positives: Sequence[Sequence[str]],
    corpus: Sequence[str],
    *,
    negatives: int,
    top_k: int = 30,
    seed: int = 0,
    excluded: Sequence[Sequence[str]] | None = None,
) -> list[list[str]]:
    """Draw negatives from the BM25 top-k (`mrr_model.data.bm25`), from which excluded passages are left out first.

    Args:
        queries: Q texts.
        positives: Per query, its positive passages; they need not be in the corpus.
        corpus: N texts.
        negatives: Negatives per query.
        top_k: Candidates per query to draw from. Only passages that share a word with the query are candidates.
        seed: Seed of the draw.
        excluded: Per query, further passages that are not its negatives, such as its own text.

    Returns:
        Per query, its negatives.

    Raises:
        ImportError: If bm25s or PyStemmer is not installed.
        ValueError: If the arguments do not fit each other, or the corpus is too small.
    """
    _check(negatives, top_k, positives, len(queries), "queries")
    excluded = _checked_excluded(excluded, len(queries))
    indices = _indices_by_key(corpus) if any(excluded) else {}
    left_out = [_indices_of(texts, indices) for texts in excluded]
    most = max(map(len, left_out), default=0)
    ranked = BM25Index(dict(enumerate(corpus))).search(queries, top_k + most)
    found = [[index for index in row if index not in own][:top_k] for row, own in zip(ranked, left_out, strict=True)]
    return _draw(found, positives, excluded, corpus, negatives, seed)


def mine_dense(
    query_embeddings: Tensor,
    passage_embeddings: Tensor,
    positives: Sequence[Sequence[str]],
    corpus: Sequence[str],
    *,
    negatives: int,
    top_k: int = 30,
    margin: float = 0.95,
    seed: int = 0,
    excluded: Sequence[Sequence[str]] | None = None,
) -> list[list[str]]:
    """Draw negatives from a bi-encoder's cosine top-k, leaving out likely unlabelled positives.

    A passage whose cosine exceeds `margin` times the cosine of the query's best positive is skipped, and the top k are
    counted after that (TopK-PercPos in NV-Retriever, arXiv 2407.15831). If that best cosine is not above 0, nothing is
    skipped.

    Args:
        query_embeddings: (Q, D) float; need not be normalised.
        passage_embeddings: (N, D) float, row i of corpus[i]; need not be normalised.
        positives: Per query, its positive passages, each of them a text of the corpus.
        corpus: N texts.
        negatives: Negatives per query.
        top_k: Candidates per query to draw from.
        margin: In (0, 1]; 1 skips only what is closer than the positive.
        seed: Seed of the draw.
        excluded: Per query, further passages that are not its negatives, such as its own text.

    Returns:
        Per query, its negatives.

    Raises:
        ValueError: If the arguments do not fit each other, a positive is not in the corpus, or the corpus is too small.
    """
    _check(negatives, top_k, positives, len(query_embeddings), "query_embeddings")
    if len(passage_embeddings) != len(corpus):
        raise ValueError(
            f"passage_embeddings has {len(passage_embeddings)} rows for {len(corpus)} texts in corpus;"
            " expected one each"
        )
    if not 0 < margin <= 1:
        raise ValueError(f"margin must lie in (0, 1], got {margin!r}; 1 skips only what is closer than the positive")
    excluded = _checked_excluded(excluded, len(positives))
    indices = _indices_by_key(corpus)
    left_out = [sorted(_indices_of(texts, indices)) for texts in excluded]
    positive_indices = [_positive_indices(texts, indices, query) for query, texts in enumerate(positives)]
    found: list[list[int]] = []
    passages = normalize(passage_embeddings.float(), dim=-1)
    for start in range(0, len(query_embeddings), QUERY_BLOCK):
        block = normalize(query_embeddings[start : start + QUERY_BLOCK].float(), dim=-1)
        stop = start + len(block)
        for cosines, own, out in zip(
            block @ passages.T, positive_indices[start:stop], left_out[start:stop], strict=True
        ):  # cosines: (N,)
            found.append(_dense_top(cosines, own, out, top_k, margin))
    return _draw(found, positives, excluded, corpus, negatives, seed)


def mine_random(
    positives: Sequence[Sequence[str]],
    corpus: Sequence[str],
    *,
    negatives: int,
    seed: int = 0,
    excluded: Sequence[Sequence[str]] | None = None,
) -> list[list[str]]:
    """Draw negatives at random from the whole corpus; arguments and errors as in `mine_bm25`.

    Example:
        >>> mine_random([["a"], ["b"]], ["a", "A ", "b"], negatives=1)[0]
        ['b']
    """
    _check(negatives, 0, positives, len(positives), "positives")
    excluded = _checked_excluded(excluded, len(positives))
    return _draw([[] for _ in positives], positives, excluded, corpus, negatives, seed)


def _dense_top(cosines: Tensor, positives: list[int], excluded: list[int], top_k: int, margin: float) -> list[int]:
    """Indices of the `top_k` passages of highest cosine, (N,), that are neither excluded nor too close."""
    best = cosines[positives].max()
    skipped = cosines > margin * best if best > 0 else torch.zeros_like(cosines, dtype=torch.bool)
    skipped[positives + excluded] = True
    left = len(cosines) - int(skipped.sum())
    indices: list[int] = cosines.masked_fill(skipped, -torch.inf).topk(min(top_k, left)).indices.tolist()
    return indices


def _draw(
    found: Sequence[Sequence[int]],
    positives: Sequence[Sequence[str]],
    excluded: Sequence[Sequence[str]],
    corpus: Sequence[str],
    negatives: int,
    seed: int,
) -> list[list[str]]:
    """Per query, `negatives` passages: first at random from those found, then at random from the corpus."""
    keys = [_key(text) for text in corpus]
    rng = random.Random(seed)
    drawn: list[list[str]] = []
    for indices, own, left_out in zip(found, positives, excluded, strict=True):
        refused = {_key(text) for text in (*own, *left_out)}
        chosen: list[str] = []
        for index in chain(rng.sample(indices, len(indices)), _random_order(len(corpus), rng)):
            if len(chosen) == negatives:
                break
            if keys[index] not in refused:
                refused.add(keys[index])
                chosen.append(corpus[index])
        if len(chosen) < negatives:
            raise ValueError(
                f"corpus has only {len(chosen)} different passages besides the positives of query {len(drawn)}"
                f"{' and the query itself' if left_out else ''}, but negatives={negatives}; lower it, or "
                "give a larger corpus"
            )
        drawn.append(chosen)
    return drawn


def _random_order(size: int, rng: random.Random) -> Iterator[int]:
    """0 to size-1 in random order, lazily: a Fisher-Yates shuffle that stores only the indices it has moved."""
    moved: dict[int, int] = {}
    for last in range(size - 1, -1, -1):
        index = rng.randrange(last + 1)
        yield moved.get(index, index)
        moved[index] = moved.get(last, last)


def _indices_by_key(corpus: Sequence[str]) -> dict[str, list[int]]:
    indices: dict[str, list[int]] = {}
    for index, text in enumerate(corpus):
        indices.setdefault(_key(text), []).append(index)
    return indices


def _indices_of(texts: Sequence[str], indices: Mapping[str, list[int]]) -> set[int]:
    return {index for text in texts for index in indices.get(_key(text), ())}


def _positive_indices(texts: Sequence[str], indices: dict[str, list[int]], query: int) -> list[int]:
    own: list[int] = []
    for text in texts:
        if _key(text) not in indices:
            raise ValueError(
                f"positive {text[:60]!r} of query {query} is not in corpus; add it, margin is relative to it"
            )
        own.extend(indices[_key(text)])
    if not own:
        raise ValueError(f"query {query} has no positive; expected at least one, margin is relative to it")
    return own


def _key(text: str) -> str:
    """The form in which equal passages are equal."""
    return " ".join(text.split()).casefold()


def _check(negatives: int, top_k: int, positives: Sequence[Sequence[str]], queries: int, name: str) -> None:
    if negatives < 0 or top_k < 0:
        raise ValueError(f"negatives and top_k must not be below 0, got {negatives} and {top_k}")
    if len(positives) != queries:
        raise ValueError(
            f"positives has {len(positives)} entries for {queries} {name}; expected a list of passages for each"
        )
    for index, texts in enumerate(positives):
        if isinstance(texts, str):
            raise ValueError(f"positives[{index}] is a string; expected a list of passages, such as [{texts[:40]!r}]")


def _checked_excluded(excluded: Sequence[Sequence[str]] | None, queries: int) -> Sequence[Sequence[str]]:
    if excluded is None:
        return [()] * queries
    if len(excluded) != queries:
        raise ValueError(f"excluded has {len(excluded)} entries for {queries} queries; expected a list for each")
    return excluded
